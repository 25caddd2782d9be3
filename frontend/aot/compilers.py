"""The processes that compile: each does one program after the other, and what one dies of is told as that program's error."""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from frontend.aot.options import Options
from protocol.aot_messages import Answer, Compile, Compiled, Drawn, Job, Order, Refused
from protocol.aot_report import ProgramReport
from protocol.errors import EngineError

_LONGEST_LINE = 1 << 26  # bytes of an answer
_LAST_WORDS = 400  # bytes of what a process wrote before it died
_ANSWERS: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Drawn | Compiled | Refused)

COMMAND = (sys.executable, "-m", "tpu_worker.aot")


class CompilersError(EngineError):
    """No process comes as far as to say what there is to compile."""


class RefusedError(EngineError):
    """The job cannot be done."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.text)
        self.exit_code = refused.exit_code


class _DiedError(Exception):
    """A process ended, or wrote what is no answer."""


class _Process:
    """One that compiles."""

    def __init__(self, process: asyncio.subprocess.Process, words: Path) -> None:
        self._process = process
        self._words = words

    @classmethod
    async def start(cls, command: Sequence[str], job: Job) -> tuple["_Process", Drawn]:
        """Raises RefusedError, or _DiedError."""
        words = Path(job.scratch).with_suffix(".log")
        with words.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LONGEST_LINE,
                process_group=0,  # the terminal's Ctrl-C reaches `engine-aot` alone
            )
        started = cls(process, words)
        try:
            answer = await started._ask(job)
            if isinstance(answer, Refused):
                raise RefusedError(answer)
            if not isinstance(answer, Drawn):
                raise _DiedError("it answered something else than it was asked")
        except BaseException:
            await started.end()
            raise
        return started, answer

    async def compile(self, name: str) -> ProgramReport:
        """Raises _DiedError."""
        answer = await self._ask(Compile(name=name))
        if not isinstance(answer, Compiled) or answer.program.name != name:
            raise _DiedError("it answered something else than it was asked")
        return answer.program

    async def end(self) -> None:
        """At once: nothing is lost, and libtpu would take seconds to be asked."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def _last_words(self) -> str:
        """The last line that it wrote, or as much as can be read."""
        with self._words.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_WORDS))
            lines = file.read().decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _ask(self, order: Order) -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(msgspec.json.encode(order) + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        except (OSError, ValueError) as error:
            raise _DiedError(str(error)) from error
        if not line.endswith(b"\n"):
            code = await self._process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            if code == -signal.SIGKILL:
                how += ", as is done when memory runs out: fewer --jobs take less"
            last = self._last_words()
            raise _DiedError(f"the compiling process {how}{': ' + last if last else ''}")
        try:
            return _ANSWERS.decode(line)
        except msgspec.DecodeError as error:
            raise _DiedError(f"the compiling process wrote what is no answer: {error}") from error


async def compile_all(
    options: Options, report: Callable[[ProgramReport, int], None], command: Sequence[str] = COMMAND
) -> tuple[Drawn, list[ProgramReport]]:
    """Every program of the engine, in the order that the first process names. `report` hears of each as it is done, and of how many
    there are. `command`: what starts a process.

    A process that dies, or writes what is no answer, takes one program with it, and another goes on in its place. However this
    ends, no process is left. Raises RefusedError or CompilersError when the first one does not come as far as to say what there is
    to compile.
    """
    running: set[_Process] = set()
    with tempfile.TemporaryDirectory(prefix="engine-aot-") as scratch:

        async def start(number: int) -> tuple[_Process, Drawn]:
            own = os.path.join(scratch, str(number))
            os.mkdir(own)
            job = Job(
                config=options.config, topology=options.topology.name, context=options.context, scratch=own, save=options.save
            )
            process, drawn = await _Process.start(command, job)
            running.add(process)
            return process, drawn

        async def work(process: _Process | None) -> None:
            while left:
                name = left.popleft()
                try:
                    if process is None:
                        process, _ = await start(next(numbers))
                    done[name] = await process.compile(name)
                except (_DiedError, RefusedError) as error:
                    done[name] = ProgramReport(name=name, error=str(error))
                    if process is not None:
                        running.discard(process)
                        await process.end()
                        process = None
                report(done[name], len(drawn.programs))

        numbers = itertools.count()
        try:
            try:
                first, drawn = await start(next(numbers))
            except _DiedError as error:
                raise CompilersError(f"nothing can be compiled: {error}") from error
            left, done = deque(drawn.programs), dict[str, ProgramReport]()
            async with asyncio.TaskGroup() as group:
                for process in (first, *[None] * (min(options.jobs, len(left)) - 1)):
                    group.create_task(work(process))
        finally:
            await asyncio.gather(*(process.end() for process in running))
    return drawn, [done[name] for name in drawn.programs]
