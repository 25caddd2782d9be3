"""Tries grammars where nothing can be harmed: `python -m scheduler_proc.grammar.helper FD RUN_DIR VOCAB_SIZE`.

A grammar is a program of a stranger: to compile it may take hours, gigabytes, or the whole stack, which ends a process. So this
process, which holds the tokenizer and nothing else, forks a child for each grammar. The child may use so much processor time,
memory and stack, and is killed when nobody waits for it any more. There is one thread, so that a fork is a whole copy.
"""

import ctypes
import os
import resource
import select
import signal
import socket
import sys
from dataclasses import dataclass

from protocol.clock import now
from protocol.codec import encode
from protocol.vocabulary import read_vocabulary
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.pipe import Pipe
from scheduler_proc.grammar.tokens import Tokens
from scheduler_proc.grammar.verdict import JOBS, VERDICTS, Job, Result, Verdict

_MEMORY = 256 << 20  # bytes beyond the tokenizer: a schema of a thousand properties takes ten megabytes
_STACK = 4 << 20  # bytes: half of what threads have, so that what compiles here also compiles there
_LONG = 0.2  # seconds after which a child has the lowest priority: it must not slow down the engine
_LOWEST = 19
_TOO_LONG = "it is too complex: it took longer than {:g} s to compile"
_TOO_LARGE = "it is too complex: it takes too much memory to compile, or recurs too deeply"
_BUSY = "too many grammars are being compiled"
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Child:
    """A grammar that is being tried."""

    job: Job
    pid: int
    began: float
    pipe: Pipe
    slowed: bool = False


class Helper:
    """Forks, waits, kills, answers."""

    def __init__(self, tokens: Tokens, asker: Pipe) -> None:
        self._tokens = tokens
        self._asker = asker
        self._children: dict[int, _Child] = {}  # by descriptor

    def run(self) -> None:
        """Until the asker is gone."""
        while not self._asker.closed:
            asker = self._asker.fileno()
            ready, _, _ = select.select([asker, *self._children], [asker] if self._asker.wants_write else [], [], self._timeout())
            for descriptor in ready:
                if descriptor in self._children:
                    self._hear(self._children[descriptor])
            for frame in self._asker.receive():
                self._begin(JOBS.decode(frame))
            self._asker.flush()
            self._watch()
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL)

    def _begin(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _try(self._tokens, job, theirs)
        theirs.close()
        child = _Child(job, pid, now(), Pipe(ours))
        self._children[ours.fileno()] = child

    def _hear(self, child: _Child) -> None:
        """It said its verdict, or ended without one."""
        frames = child.pipe.receive()
        if frames:
            self._end(child, VERDICTS.decode(frames[0]))
        elif child.pipe.closed:
            self._end(child, None)

    def _watch(self) -> None:
        time = now()
        for child in list(self._children.values()):
            if time - child.began > child.job.wall_seconds:
                os.kill(child.pid, signal.SIGKILL)
                self._end(child, Verdict(error=_BUSY, busy=True))
            elif time - child.began > _LONG and not child.slowed:
                child.slowed = True
                os.setpriority(os.PRIO_PROCESS, child.pid, _LOWEST)

    def _end(self, child: _Child, verdict: Verdict | None) -> None:
        del self._children[child.pipe.fileno()]
        child.pipe.close()
        _, status = os.waitpid(child.pid, 0)
        if verdict is None:
            spent = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
            verdict = Verdict(error=_TOO_LONG.format(child.job.cpu_seconds) if spent else _TOO_LARGE)
        self._asker.send(encode(Result(child.job.number, verdict)))

    def _timeout(self) -> float | None:
        time = now()
        times = [child.began + (child.job.wall_seconds if child.slowed else _LONG) for child in self._children.values()]
        return max(0.0, min(times) - time) + 0.001 if times else None


def _try(tokens: Tokens, job: Job, answer: socket.socket) -> None:
    """The child's whole life."""
    try:
        _limit(job.cpu_seconds)
        verdict = examine(tokens, job)
        frame = encode(verdict)
        answer.sendall(len(frame).to_bytes(4, "little") + frame)
    except MemoryError:
        os._exit(1)
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


def _limit(cpu_seconds: float) -> None:
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/statm", "rb") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    resource.setrlimit(resource.RLIMIT_STACK, (_STACK, _STACK))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF ends the process


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serves until the other end is closed."""
    _die_with_parent()
    descriptor, run_dir, vocab_size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    tokens = Tokens(read_vocabulary(run_dir), vocab_size)
    Helper(tokens, Pipe(socket.socket(fileno=descriptor))).run()


if __name__ == "__main__":
    main()
