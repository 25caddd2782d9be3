"""The whole engine in virtual time, under faults."""

import logging
from collections.abc import Iterator

import pytest

from tests.simulation.engine import Simulation
from tests.simulation.scenario import Asked, Fault, Scenario, make_scenario
from tests.simulation.search import main, problem, shrink


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What goes wrong on purpose is reported by those that notice it."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_whatever_goes_wrong_every_request_gets_what_follows_from_it_alone(first: int) -> None:
    wrong = {seed: text for seed in range(first, first + 100) if (text := problem(make_scenario(seed)))}
    assert not wrong


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_seeds() -> None:
    assert main(["--first", "400", "--seeds", "10000"]) == 0


def test_every_kind_of_fault_meets_requests_under_way() -> None:
    """The scenarios are worth running: faults of every kind come between the first request and the last."""
    met = set()
    for seed in range(400):
        scenario = make_scenario(seed)
        first = min(asked.at for asked in scenario.asked)
        met |= {(fault.kind, fault.where.split()[0]) for fault in scenario.faults if fault.at > first}
    kinds = {kind for kind, _ in met}
    assert kinds == {"kill", "stop", "duplicate", "reorder", "drop"}
    assert {where for kind, where in met if kind == "kill"} == {"worker", "scheduler", "frontend"}


# What the simulation found, at its smallest.


def test_a_step_that_comes_twice_is_run_once() -> None:
    asked = Asked(0.077, tuple(range(21)), 13, 626577446, stops=(30, 38))
    faults = tuple(Fault(0.08 + 0.002 * number, "duplicate", "scheduler>worker") for number in range(10))
    Simulation(Scenario(103, 3, 3, (asked,), faults)).run()


def test_a_request_that_is_told_again_is_not_ended_by_what_was_told_before() -> None:
    asked = (Asked(0.0145, tuple(range(18)), 12, 52045822), Asked(0.0007, tuple(range(10)), 9, 117793828, streams=False))
    times = [0.0145 + 0.001 * number for number in range(12)]
    twice = tuple(Fault(time, "duplicate", "frontend>scheduler") for time in times)
    late = tuple(Fault(time, "reorder", "scheduler>frontend") for time in times)
    Simulation(Scenario(2193, 3, 3, asked, twice + late)).run()


def test_a_scenario_that_goes_wrong_becomes_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(scenario: Scenario) -> str:
        kills = [fault for fault in scenario.faults if fault.kind == "kill"]
        return "wrong" if kills and len(scenario.asked) > 1 else ""

    monkeypatch.setattr("tests.simulation.search.problem", wrong)
    seed = next(seed for seed in range(1000) if wrong(make_scenario(seed)) and len(make_scenario(seed).faults) > 2)
    small = shrink(make_scenario(seed))
    assert len(small.asked) == 2
    assert [fault.kind for fault in small.faults] == ["kill"]
