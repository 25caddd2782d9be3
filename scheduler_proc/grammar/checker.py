"""Whether grammars can be followed, asked of a helper process and remembered."""

import os
import socket
import subprocess
import sys
from collections import OrderedDict

from protocol.clock import now
from protocol.codec import encode
from protocol.errors import EngineError
from protocol.params import Grammar
from scheduler_proc.grammar.pipe import Pipe
from scheduler_proc.grammar.verdict import RESULTS, Job, Verdict

_WALL = 1.8  # seconds for a grammar: within two there is an answer, unless others wait before it, …
_CPU = 1.0  # … of which it may have so many of a processor; a schema of a thousand properties takes a fifth of one
_PATIENT = 30.0  # seconds, and …
_PATIENT_CPU = 2.0  # … more of both where a request was accepted already: what was followed before must be followed again
_MOST_ASKED = 1024  # grammars that are tried or wait for that, and …
_MOST_CHARACTERS = 16 << 20  # … of these together
_CACHE_CHARACTERS = 8 << 20  # of grammars and their sources
_STUCK = 60.0  # seconds in which the helper has something to do and nothing comes of it: twice what one grammar may take
_BUSY = Verdict(error="too many grammars are being compiled: try again later", busy=True)


class Checker:
    """Owns the helper process. Grammars that are asked for again while they are tried are tried once."""

    def __init__(self, run_dir: str, vocab_size: int) -> None:
        """Raises OSError when no process can be started."""
        self._known: OrderedDict[Grammar, Verdict] = OrderedDict()  # the oldest first
        self._known_characters = 0
        self._jobs: dict[int, Grammar] = {}
        self._asked: set[Grammar] = set()
        self._asked_characters = 0
        self._heard = now()  # of the helper
        self._count = 0
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "scheduler_proc.grammar.helper", str(theirs.fileno()), run_dir, str(vocab_size)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # a fork is a whole copy of one thread only
            )
        self._pipe = Pipe(ours)

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""
        return self._pipe.fileno()

    def ask(self, grammar: Grammar, *, patient: bool = False) -> Verdict | None:
        """The verdict where it is known; None: it will be among what `receive` returns. `patient`: the request was accepted."""
        if (verdict := self._known.get(grammar)) is not None:
            self._known.move_to_end(grammar)
            return verdict
        if grammar in self._asked:
            return None
        full = len(self._asked) >= _MOST_ASKED or self._asked_characters + len(grammar.text) > _MOST_CHARACTERS
        if full and not patient:
            return _BUSY
        self._asked.add(grammar)
        self._asked_characters += len(grammar.text)
        self._count += 1
        wall, cpu = (_PATIENT, _PATIENT_CPU) if patient else (_WALL, _CPU)
        self._jobs[self._count] = grammar
        self._pipe.send(encode(Job(self._count, grammar, wall, cpu)))
        return None

    def receive(self) -> list[tuple[Grammar, Verdict]]:
        """The verdicts that are here by now. To be called from time to time, too.

        Raises EngineError when the helper is gone: whoever starts this process anew starts another.
        """
        self._pipe.flush()
        results = []
        for frame in self._pipe.receive():
            result = RESULTS.decode(frame)
            grammar = self._jobs.pop(result.number)
            self._asked.discard(grammar)
            self._asked_characters -= len(grammar.text)
            self._remember(grammar, result.verdict)
            results.append((grammar, result.verdict))
        if results or not self._jobs:
            self._heard = now()
        if self._pipe.closed or now() - self._heard > _STUCK:
            raise EngineError(f"the process that tries grammars is gone or stuck (exit code {self._process.poll()})")
        return results

    def close(self) -> None:
        """Ends the helper."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _remember(self, grammar: Grammar, verdict: Verdict) -> None:
        if verdict.busy:
            return
        self._known[grammar] = verdict
        self._known_characters += _size(grammar, verdict)
        while self._known_characters > _CACHE_CHARACTERS:
            self._known_characters -= _size(*self._known.popitem(last=False))


def _size(grammar: Grammar, verdict: Verdict) -> int:
    return 100 + len(grammar.text) + len(verdict.source) + len(verdict.error)
