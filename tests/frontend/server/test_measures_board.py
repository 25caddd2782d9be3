"""What several frontends tell of each other."""

from pathlib import Path

from frontend.server.measures import Measures, Timeline
from frontend.server.measures_board import MeasuresBoard

_SECOND = 1_000_000_000


def _measures(*reasons: str) -> Measures:
    measures = Measures()
    for reason in reasons:
        measures.request_ended(Timeline(num_prompt_tokens=1, max_tokens=1, submitted_ns=0), reason, _SECOND)
    return measures


def test_an_only_frontend_tells_what_is_so_now_and_writes_nothing(tmp_path: Path) -> None:
    board, measures = MeasuresBoard(str(tmp_path), 0, 1), _measures("stop")
    board.publish(measures.snapshot(5))
    assert list(tmp_path.iterdir()) == []
    measures.ended["stop"] += 1
    (snapshot,) = board.all(measures.snapshot(6)).values()
    assert (snapshot.ended, snapshot.num_open) == ({"stop": 2}, 6)


def test_whoever_is_asked_tells_the_same_of_all(tmp_path: Path) -> None:
    boards = [MeasuresBoard(str(tmp_path), index, 3) for index in range(3)]
    measures = [_measures("stop"), _measures("length", "abort"), _measures()]
    assert boards[0].all(measures[0].snapshot(1)) == {}  # nobody has come so far
    for index in (0, 1):
        boards[index].publish(measures[index].snapshot(10 + index))
    measures[0].ended["stop"] += 1  # since
    told = [board.all(measures[index].snapshot(99)) for index, board in enumerate(boards)]
    assert told[0] == told[1] == told[2]
    assert {index: (snapshot.ended, snapshot.num_open) for index, snapshot in told[0].items()} == {
        0: ({"stop": 1}, 10),
        1: ({"length": 1, "abort": 1}, 11),
    }
    names = [histogram.name for histogram in measures[1].histograms]
    counts, total = told[0][1].histograms[names.index("e2e_request_latency_seconds")]
    assert (sum(counts), total) == (2, 2.0)


def test_what_cannot_be_read_or_written_harms_nobody(tmp_path: Path) -> None:
    board = MeasuresBoard(str(tmp_path), 0, 2)
    board.publish(_measures("stop").snapshot(1))
    (tmp_path / "measures-1").write_bytes(b"\xc1 nonsense")
    assert list(board.all(_measures().snapshot(0))) == [0]
    MeasuresBoard(str(tmp_path / "gone"), 0, 2).publish(_measures().snapshot(0))
