"""What an operator sees of a running engine."""

import io
import re

import pytest
from rich.console import Console

from frontend.client import Client, Health, Move, Story
from frontend.rates import rates
from frontend.terminal.top.picture import picture
from protocol.errors import ExitCode
from protocol.messages import EngineStats, WorkerStats
from tests.frontend.server.ipc.serving import Served
from tests.frontend.terminal.terminals import at_terminal, piped

TOP = "frontend.terminal.top"
_S = 1_000_000_000  # nanoseconds


def stats(now_ns: int, counters: dict[str, int], *workers: WorkerStats, waiting: int = 0) -> EngineStats:
    return EngineStats(0, waiting, workers, counters, now_ns=now_ns)


def worker(steps: int, busy_ns: int, *, alive: bool = True) -> WorkerStats:
    return WorkerStats(0, alive, 3, 100, 40, steps, 2, device_busy_ns=busy_ns)


def test_rates_are_those_between_two_looks() -> None:
    before = stats(10 * _S, {"generation_tokens": 100, "prefix_cache_queries": 50}, worker(10, 4 * _S))
    counters = {"generation_tokens": 500, "prefix_cache_queries": 90, "prefix_cache_hits": 10, "prefill_tokens": 30}
    seen = rates(before, stats(12 * _S, counters, worker(30, 5 * _S), waiting=4))
    assert (seen.running, seen.waiting, seen.generated, seen.prefilled, seen.cached) == (3, 4, 200.0, 15.0, 0.25)
    assert seen.workers[0].steps == 10.0 and seen.workers[0].idle == pytest.approx(0.5)
    assert rates(before, before).cached is None


def test_a_worker_that_was_replaced_has_no_rates_yet() -> None:
    before = stats(10 * _S, {}, worker(100, 4 * _S))
    assert rates(before, stats(11 * _S, {}, worker(3, _S))).workers[0].idle is None
    assert rates(before, stats(11 * _S, {}, worker(0, 0, alive=False))).workers[0].idle is None
    assert rates(stats(9 * _S, {}), before).workers[0].idle is None


@pytest.mark.parametrize("width", [80, 200])
def test_a_narrow_terminal_cuts_the_causes_and_nothing_else(width: int) -> None:
    looks = stats(10 * _S, {}, worker(1, _S)), stats(11 * _S, {}, worker(2, 2 * _S))
    moves = (Move("new", "waiting", "arrived", 10 * _S), Move("waiting", "decoding", "every known token is planned", 10 * _S))
    now = "decoding on worker 1 in slot 2: 572 tokens are here, it ends at 8191"
    story = Story(1, 4711, moves, now, "90a5ce767182b89c5fe892af", now_ns=12 * _S)
    health = Health(
        status="ok", workers=1, workers_wanted=1, model="demo", device="sim", max_model_len=100, queue_depth=2, requests=0
    )
    console = Console(width=width, file=io.StringIO())
    console.print(picture(health, rates(*looks), {}, [story]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert re.search(r"4711  90a5ce767182b89c5fe892af  decoding +2\.0 s  decoding on worker", shown)
    assert ("it ends at 8191" in shown) == (width == 200)


def test_without_a_terminal_there_is_one_picture(served: Served) -> None:
    with Client(served.path) as client:
        stream = client.stream("run on and on", ignore_eos=True, seed=1)
        next(stream)
        done = piped(TOP, "--interval", "0.1", socket=served.path)
        stream.close()
    assert (done.returncode, done.stderr) == (ExitCode.OK, "")
    assert "demo on sim" in done.stdout and "1 of 1 workers" in done.stdout
    assert "1 run, 0 wait" in done.stdout and "decoding" in done.stdout


def test_at_a_terminal_it_goes_on_until_ctrl_c(served: Served) -> None:
    with at_terminal(TOP, "--interval", "0.1", socket=served.path) as terminal:
        for _ in range(3):
            terminal.until("device idle")
        terminal.type("\x03")
        assert "Traceback" not in terminal.rest()
        assert terminal.process.wait() == ExitCode.OK
