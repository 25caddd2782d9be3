"""Fuzzes an engine: `scripts/fuzz --minutes N [--seed S] [--only TARGET]`. What fails is shrunk and kept in tests/fuzz/cases."""

import argparse
import asyncio
import hashlib
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.engine import Watched, watched_engine
from tests.fuzz.model_files import Files
from tests.fuzz.over_http import Bodies, Bytes
from tests.fuzz.over_pipes import Pipes
from tests.fuzz.over_socket import Frames
from tests.fuzz.target import Target, case_of, shrunk

CASES = Path(__file__).parent / "cases"
_AT_A_TIME = 8
_SAME = 20  # letters of a fault that tell it from others
_BATCH = 64  # cases, after which the engine is looked at


class Run:
    """One engine under all fuzzers."""

    def __init__(self, watched: Watched, seed: int, only: str = "") -> None:
        self._watched = watched
        self._seed = seed
        self._files = Files()
        self._pipes = Pipes(watched.run_dir)
        host, port = watched.host, watched.port
        self.bodies = Bodies(host, port, watched.document())
        all_targets: list[Target] = [
            self.bodies,
            Bytes(host, port),
            Frames(watched.socket),
            self._pipes,
            self._files,
        ]
        self.targets = [target for target in all_targets if only in target.name]
        self.sent: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.found: list[tuple[str, str, Path | None]] = []  # target, what is wrong, the case
        self._next: Counter[str] = Counter()

    async def turn(self) -> bool:
        """A batch of each target. False when the engine cannot be fuzzed any more."""
        for target in self.targets:
            first = self._next[target.name]
            self._next[target.name] += _BATCH
            cases = [case_of(target, self._seed, number) for number in range(first, first + _BATCH)]
            gate = asyncio.Semaphore(_AT_A_TIME)

            async def one(case: bytes, target: Target = target, gate: asyncio.Semaphore = gate) -> None:
                async with gate:
                    if wrong := await target.run(case):
                        await self._note(target, case, wrong)

            await asyncio.gather(*map(one, cases))
            self.sent[target.name] += len(cases) * target.per_case
            if wrong := await asyncio.to_thread(self._watched.fault):
                self.found.append((target.name, f"after cases {first} to {first + _BATCH - 1} of seed {self._seed}: {wrong}", None))
                self.faults[target.name] += 1
                return False
        return True

    async def close(self) -> None:
        await self._files.close()
        self._pipes.close()

    async def _note(self, target: Target, case: bytes, wrong: str) -> None:
        self.faults[target.name] += 1
        if self.faults[target.name] > 20:  # the same again, most likely
            return

        async def fails(candidate: bytes) -> bool:
            return (await target.run(candidate))[:_SAME] == wrong[:_SAME]

        small = await shrunk(case, fails) if "no answer" not in wrong else case
        CASES.mkdir(exist_ok=True)
        path = CASES / f"{target.name}-{hashlib.sha256(small).hexdigest()[:12]}"
        path.write_bytes(small)
        self.found.append((target.name, wrong, path))


async def fuzz(seconds: float, seed: int, only: str, most: int) -> Run:
    """Until the time is over, or so many requests and frames are sent."""
    with watched_engine() as watched:
        run = Run(watched, seed, only)
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and run.sent.total() < most and await run.turn():
                pass
        finally:
            await run.close()
    return run


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was sent and found. Returns 1 when anything was."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="the same seed makes the same cases (drawn, unless given)")
    parser.add_argument("--only", default="", help="fuzzers whose names hold this: bodies, http, socket, pipes, files")
    parser.add_argument("--most", type=int, default=sys.maxsize, help="end after so many requests, frames and files")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    began = time.monotonic()
    run = asyncio.run(fuzz(60 * options.minutes, seed, options.only, options.most))
    print(f"seed {seed}: {run.sent.total()} in {time.monotonic() - began:.0f} s; {dict(run.sent)}; faults: {run.faults.total()}")
    if run.bodies.statuses:
        print(f"statuses of the answers to bodies: {dict(run.bodies.statuses.most_common())}")
    for name, wrong, path in run.found:
        print(f"{name}: {wrong}" + (f"\n  {path}" if path else ""))
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
