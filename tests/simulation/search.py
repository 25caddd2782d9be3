"""Looks for scenarios that go wrong, and makes them small: `scripts/simulate [--seeds N] [--first SEED] [--jobs N]`."""

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Iterator, Sequence

from protocol.clock import now
from tests.simulation.engine import Simulation
from tests.simulation.scenario import Scenario, make_scenario


def problem(scenario: Scenario) -> str:
    """What goes wrong, in a line; empty: nothing."""
    try:
        Simulation(scenario).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
        return f"{type(error).__name__}: {error}"
    return ""


def shrink(scenario: Scenario) -> Scenario:
    """A scenario that still goes wrong, and does not without any of its requests and faults."""
    found = True
    while found:
        found = False
        for smaller in _smaller(scenario):
            if problem(smaller):
                scenario, found = smaller, True
                break
    return scenario


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    yield from (scenario.without(fault=index) for index in range(len(scenario.faults)))
    if len(scenario.asked) > 1:
        yield from (scenario.without(asked=index) for index in range(len(scenario.asked)))


def _of_seed(seed: int) -> tuple[int, str]:
    return seed, problem(make_scenario(seed))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where one goes wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args(arguments)
    began, wrong = now(), []
    with multiprocessing.get_context("spawn").Pool(options.jobs, logging.disable, (logging.ERROR,)) as pool:
        for seed, text in pool.imap_unordered(_of_seed, range(options.first, options.first + options.seeds), chunksize=50):
            if text:
                wrong.append(seed)
                print(f"seed {seed}: {text}", flush=True)
                if len(wrong) <= 3:
                    small = shrink(make_scenario(seed))
                    print(f"  at its smallest: {small}\n  {problem(small)}", flush=True)
    print(f"{options.seeds} seeds in {now() - began:.0f} s, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
