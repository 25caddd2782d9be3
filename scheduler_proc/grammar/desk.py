"""From grammars to matchers: tried by the helper first, then compiled here. Who asked hears of it when it is done."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from llguidance import LLMatcher

from protocol.params import Grammar
from scheduler_proc.grammar.checker import Checker
from scheduler_proc.grammar.compiler import Compiler
from scheduler_proc.grammar.verdict import Verdict


@dataclass(slots=True)
class Answers:
    """What came of it since the last time."""

    verdicts: list[tuple[int, Verdict]] = field(default_factory=list)  # by question
    matchers: list[tuple[int, LLMatcher]] = field(default_factory=list)  # by request
    failures: list[tuple[int, str]] = field(default_factory=list)  # by request


class Desk:
    """Questions of frontends, which want a verdict, and accepted requests, which want a matcher."""

    def __init__(self, checker: Checker, compiler: Compiler) -> None:
        self._checker = checker
        self._compiler = compiler
        self._questions: dict[Grammar, list[int]] = {}
        self._requests: dict[Grammar, list[int]] = {}  # whose grammar is being tried
        self._sources: dict[str, list[int]] = {}  # whose source is being compiled
        self._answers = Answers()

    @property
    def is_waiting(self) -> bool:
        """Whether anything is being tried."""
        return bool(self._questions or self._requests)

    def check(self, question: int, grammar: Grammar) -> None:
        """Asks for a verdict."""
        grammar = _plain(grammar)
        verdict = self._checker.ask(grammar)
        if verdict is None:
            self._questions.setdefault(grammar, []).append(question)
        else:
            self._answers.verdicts.append((question, verdict))

    def constrain(self, request_id: int, grammar: Grammar) -> None:
        """Asks for a matcher."""
        self._constrain((request_id,), _plain(grammar))

    def clear(self) -> None:
        """No request wants anything any more."""
        self._requests.clear()
        self._sources.clear()
        self._answers.matchers.clear()
        self._answers.failures.clear()

    def answers(self) -> Answers:
        """What is known by now. Raises EngineError when no helper lives."""
        for grammar, verdict in self._checker.receive():
            self._answers.verdicts.extend((question, verdict) for question in self._questions.pop(grammar, ()))
            waiting = self._requests.pop(grammar, ())
            if verdict.busy:  # an accepted request can wait longer than the one who asked first
                self._constrain(waiting, grammar)
            else:
                self._decide(waiting, verdict)
        for source, compiled in self._compiler.receive():
            for request_id in self._sources.pop(source, ()):
                matcher = self._compiler.ask(source)
                if matcher is not None:
                    self._answers.matchers.append((request_id, matcher))
                else:
                    self._answers.failures.append((request_id, str(compiled)))
        answers, self._answers = self._answers, Answers()
        return answers

    def _constrain(self, request_ids: Iterable[int], grammar: Grammar) -> None:
        verdict = self._checker.ask(grammar, patient=True) if request_ids else None
        if verdict is None:
            self._requests.setdefault(grammar, []).extend(request_ids)
        else:
            self._decide(request_ids, verdict)

    def _decide(self, request_ids: Iterable[int], verdict: Verdict) -> None:
        for request_id in request_ids:
            if verdict.error:
                self._answers.failures.append((request_id, verdict.error))
            elif (matcher := self._compiler.ask(verdict.source)) is not None:
                self._answers.matchers.append((request_id, matcher))
            else:
                self._sources.setdefault(verdict.source, []).append(request_id)


def _plain(grammar: Grammar) -> Grammar:
    """Without what does not concern the library."""
    return Grammar(grammar.kind, grammar.text)
