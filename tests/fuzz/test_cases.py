"""Everything that a fuzzer once found a fault with, and a few cases of each fuzzer."""

import asyncio

from tests.fuzz.__main__ import CASES, Run
from tests.fuzz.engine import watched_engine
from tests.fuzz.target import case_of, shrunk


def test_no_fuzzer_finds_what_was_found_before_or_lies_at_hand() -> None:
    async def run() -> None:
        with watched_engine() as watched:
            fuzzers = Run(watched, seed=1)
            try:
                for path in sorted(CASES.glob("*-*")):
                    (target,) = (one for one in fuzzers.targets if one.name == path.name.rpartition("-")[0])
                    assert await target.run(path.read_bytes()) == "", path.name
                assert watched.fault() == ""
                assert await fuzzers.turn(), fuzzers.found
                assert fuzzers.found == []
            finally:
                await fuzzers.close()

    asyncio.run(run())


def test_a_case_that_fails_is_shrunk_to_what_matters() -> None:
    async def fails(case: bytes) -> bool:
        return b"a" in case and b"z" in case

    assert asyncio.run(shrunk(b"xxxxaxxxxxxxxxzxxxxx" * 5, fails)) in (b"az", b"za")


def test_a_seed_makes_the_same_cases_again() -> None:
    from tests.fuzz.model_files import Files

    assert [case_of(Files(), 7, number) for number in range(20)] == [case_of(Files(), 7, number) for number in range(20)]
