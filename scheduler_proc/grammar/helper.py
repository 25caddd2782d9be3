"""Tries grammars where nothing can be harmed: `python -m scheduler_proc.grammar.helper FD RUN_DIR VOCAB_SIZE`.

A grammar is a program of a stranger: to compile it may take hours, gigabytes, or the whole stack, which ends a process. So this
process, which holds the tokenizer and nothing else, forks a child for each grammar. The child may use so much processor time,
memory and stack, and is killed when nobody waits for it any more. There is one thread, so that a fork is a whole copy.
"""

import os
import resource
import select
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass

from protocol.clock import now
from protocol.codec import encode
from protocol.process import die_with_parent, name_process
from protocol.vocabulary import read_vocabulary
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.pipe import Pipe
from scheduler_proc.grammar.tokens import Tokens
from scheduler_proc.grammar.verdict import JOBS, VERDICTS, Job, Result, Verdict

_MEMORY = 256 << 20  # bytes beyond the tokenizer: a schema of a thousand properties takes ten megabytes
_STACK = 4 << 20  # bytes: half of what threads have, so that what compiles here also compiles there
_AT_ONCE = 8  # grammars that were begun just now; nearly all are done within 20 ms
_MOST_TOGETHER = 16
_LONG = 0.2  # seconds after which a child makes room for the next: who waits must not wait for hogs, …
_MOST_LONG = 4  # … of which there are so many at most
_LOW = 10  # their niceness: they must not slow down the engine
_TOO_LONG = "it is too complex: it takes too long to compile"
_TOO_LARGE = "it is too complex: it takes too much memory to compile, or recurs too deeply"
_NO_TIME = Verdict(error="too many grammars are being compiled: try again later", busy=True)


@dataclass(slots=True)
class _Child:
    """A process that tries grammars, mostly one."""

    jobs: list[Job]  # that are not answered; it is at the first
    pid: int
    began: float  # with the first
    pipe: Pipe
    is_long: bool = False

    @property
    def until(self) -> float:
        """When it is killed."""
        return self.began + self.jobs[0].wall_seconds


class Helper:
    """Forks, waits, kills, answers."""

    def __init__(self, tokens: Tokens, asker: Pipe) -> None:
        self._tokens = tokens
        self._asker = asker
        self._waiting: deque[Job] = deque()
        self._children: dict[int, _Child] = {}  # by descriptor

    def run(self) -> None:
        """Until the asker is gone."""
        while not self._asker.closed:
            asker = self._asker.fileno()
            ready, _, _ = select.select([asker, *self._children], [asker] if self._asker.wants_write else [], [], self._timeout())
            for descriptor in ready:
                if descriptor in self._children:
                    self._hear(self._children[descriptor])
            self._waiting.extend(map(JOBS.decode, self._asker.receive()))
            self._watch()
            self._feed()
            self._asker.flush()
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)

    def _feed(self) -> None:
        """Begins what waits. A fork takes as long as several grammars, so where many wait, a child gets several."""
        free = _AT_ONCE - sum(not child.is_long for child in self._children.values())
        for _ in range(min(free, len(self._waiting))):
            share = min(_MOST_TOGETHER, -(-len(self._waiting) // _AT_ONCE))
            self._begin([self._waiting.popleft() for _ in range(min(share, len(self._waiting)))])

    def _begin(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _try(self._tokens, jobs, theirs)
        theirs.close()
        self._children[ours.fileno()] = _Child(jobs, pid, now(), Pipe(ours))

    def _hear(self, child: _Child) -> None:
        """It said verdicts, or ended without one."""
        for frame in child.pipe.receive()[: len(child.jobs)]:
            self._answer(child.jobs.pop(0), VERDICTS.decode(frame))
            child.began = now()
        if not child.jobs or child.pipe.closed:
            self._end(child)

    def _watch(self) -> None:
        time = now()
        for child in list(self._children.values()):
            if child.pipe.fileno() not in self._children:
                continue  # made room for one before it
            if time > child.until:
                self._end(child)
            elif time - child.began > _LONG and not child.is_long:
                child.is_long = True
                os.setpriority(os.PRIO_PROCESS, child.pid, _LOW)
                self._waiting.extendleft(reversed(child.jobs[1:]))  # they need not wait behind it
                del child.jobs[1:]
                long = [other for other in self._children.values() if other.is_long]
                if len(long) > _MOST_LONG:
                    self._end(min(long, key=lambda other: other.until))

    def _end(self, child: _Child) -> None:
        """Kills it, if it did not end by itself, and says what that means for the grammar that it was at."""
        del self._children[child.pipe.fileno()]
        os.kill(child.pid, signal.SIGKILL)
        _, status, used = os.wait4(child.pid, 0)
        for frame in child.pipe.receive()[: len(child.jobs)]:  # it may have been done just then
            self._answer(child.jobs.pop(0), VERDICTS.decode(frame))
        child.pipe.close()
        if not child.jobs:
            return
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGPROF)):
            verdict = Verdict(error=_TOO_LARGE)
        elif used.ru_utime + used.ru_stime > child.jobs[0].cpu_seconds / 2:
            verdict = Verdict(error=_TOO_LONG)
        else:
            verdict = _NO_TIME
        self._answer(child.jobs.pop(0), verdict)
        self._waiting.extendleft(reversed(child.jobs))

    def _answer(self, job: Job, verdict: Verdict) -> None:
        self._asker.send(encode(Result(job.number, verdict)))

    def _timeout(self) -> float | None:
        """Seconds until something is due, if nothing is heard before."""
        times = [child.until if child.is_long else child.began + _LONG for child in self._children.values()]
        return max(0.0, min(times) - now()) + 0.001 if times else None


def _try(tokens: Tokens, jobs: list[Job], answer: socket.socket) -> None:
    """The child's whole life."""
    try:
        _limit()
        for job in jobs:
            signal.setitimer(signal.ITIMER_PROF, job.cpu_seconds)  # SIGPROF ends the process
            frame = encode(examine(tokens, job))
            answer.sendall(len(frame).to_bytes(4, "little") + frame)
    except MemoryError:
        os.abort()
    finally:
        os._exit(0)


def examine(tokens: Tokens, job: Job) -> Verdict:
    """Compiles a grammar and computes its first mask."""
    try:
        source = tokens.translate(job.grammar)
        matcher = tokens.compile(source)
        tokens.mask(matcher)
    except GrammarError as error:
        return Verdict(error=str(error))
    return Verdict(source=source)


def _limit() -> None:
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK, _STACK))


def main() -> None:
    """Serves until the other end is closed."""
    die_with_parent()
    name_process("grammar-helper")
    descriptor, run_dir, vocab_size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    tokens = Tokens(read_vocabulary(run_dir), vocab_size)
    Helper(tokens, Pipe(socket.socket(fileno=descriptor))).run()


if __name__ == "__main__":
    main()
