"""What clients call their requests."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler_proc.names import MOST_OF_ONE_NAME, Names


def test_names_lead_to_requests_and_back() -> None:
    names = Names()
    for request_id, name in ((1, "a"), (2, "b"), (3, ""), (4, "a")):
        names.add(request_id, name)
    assert names.find("a") == (1, 4) and names.find("b") == (2,) and names.find("") == () and names.find("c") == ()
    assert [names.of(request_id) for request_id in range(6)] == ["", "a", "b", "", "a", ""]


def test_one_name_for_everything_is_bounded() -> None:
    names = Names()
    for request_id in range(1000):
        names.add(request_id, "same")
    assert names.find("same") == tuple(range(1000 - MOST_OF_ONE_NAME, 1000))
    assert names.of(0) == "" and names.of(999) == "same"


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.integers(1, 8))
def test_the_oldest_are_forgotten_in_both_directions(given_names: list[str], capacity: int) -> None:
    names = Names(capacity)
    for request_id, name in enumerate(given_names):
        names.add(request_id, name)
    kept = list(enumerate(given_names))[-capacity:]
    for name in "abcd":
        assert names.find(name) == tuple(request_id for request_id, called in kept if called == name)
    assert [names.of(request_id) for request_id, _ in kept] == [name for _, name in kept]
    assert all(names.of(request_id) == "" for request_id in range(len(given_names) - len(kept)))
