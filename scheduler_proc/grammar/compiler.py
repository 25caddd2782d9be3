"""Compiles, on a thread of its own, what a helper has compiled before: it ends, but may take a tenth of a second."""

import os
import queue
import threading
from collections import OrderedDict, deque

from llguidance import LLMatcher

from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens

_STACK = 16 << 20  # bytes of the thread: four times what the helper's attempt had
_MOST_KEPT = 128  # grammars; a large one takes some ten megabytes

Compiled = LLMatcher | GrammarError


class Compiler:
    """Takes sources, gives matchers at their beginning."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()  # by source, the oldest first
        self._asked: set[str] = set()
        self._todo: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done: deque[tuple[str, Compiled]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        before = threading.stack_size(_STACK)
        self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
        self._thread.start()
        threading.stack_size(before)

    def fileno(self) -> int:
        """Readable when `receive` has something."""
        return self._event

    def ask(self, source: str) -> LLMatcher | None:
        """A matcher of one's own, where the source is compiled; None: it will be among what `receive` returns."""
        if (matcher := self._kept.get(source)) is not None:
            self._kept.move_to_end(source)
            return matcher.deep_copy()
        if source not in self._asked:
            self._asked.add(source)
            self._todo.put(source)
        return None

    def receive(self) -> list[tuple[str, Compiled]]:
        """What was compiled since; `ask` has it from now on."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        done = []
        while self._done:
            source, compiled = self._done.popleft()
            self._asked.discard(source)
            if isinstance(compiled, LLMatcher):
                self._kept[source] = compiled
                if len(self._kept) > _MOST_KEPT:
                    self._kept.popitem(last=False)
            done.append((source, compiled))
        return done

    def close(self) -> None:
        """Ends the thread, after what it compiles."""
        self._todo.put(None)
        self._thread.join()
        os.close(self._event)

    def _run(self) -> None:
        while (source := self._todo.get()) is not None:
            compiled: Compiled
            try:
                compiled = self._tokens.compile(source)
                self._tokens.mask(compiled)  # its lexer knows the states of the beginning then, and so does each copy
            except GrammarError as error:
                compiled = error
            self._done.append((source, compiled))
            os.eventfd_write(self._event, 1)
