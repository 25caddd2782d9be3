"""Numbers of requests."""

from itertools import islice

from protocol.codec import pack_uint64, unpack_uint64
from protocol.request_ids import MAX_FRONTENDS, epoch_of, frontend_of, request_ids


def test_an_only_frontend_counts_from_one() -> None:
    assert list(islice(request_ids(0, 0), 3)) == [1, 2, 3]


def test_a_number_names_its_frontend_and_incarnation_and_travels() -> None:
    seen = set()
    for frontend in (0, 1, MAX_FRONTENDS - 1):
        for epoch in (0, 1, 65_535):
            for number in islice(request_ids(frontend, epoch), 3):
                assert (frontend_of(number), epoch_of(number)) == (frontend, epoch)
                assert 0 < number < 2**63
                assert unpack_uint64(pack_uint64([number])).tolist() == [number]
                seen.add(number)
    assert len(seen) == 27


def test_an_epoch_beyond_the_last_stays_with_its_frontend() -> None:
    assert frontend_of(next(request_ids(3, 10**6))) == 3
