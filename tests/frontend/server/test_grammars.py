"""Questions about grammars, with the process that answers them played by the test."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from frontend.errors import InvalidRequest, Overloaded
from frontend.server.grammars import Grammars
from protocol.channel import Receiver, Sender
from protocol.config import EngineConfig
from protocol.endpoints import GRAMMAR_QUESTIONS, grammar_answers, ipc_address
from protocol.grammar_messages import FRONTEND_TO_GRAMMAR, CheckGrammar, FrontendToGrammar, GrammarChecked
from protocol.params import Grammar

GRAMMAR = Grammar("regex", "a", 5)


def ask(run_dir: Path, answer: Callable[[list[CheckGrammar]], GrammarChecked | None], times: int = 1) -> list[CheckGrammar]:
    """Asks so many times about the grammar, one after the other; `answer` sees all questions so far. Returns these."""
    config = EngineConfig(model_path="", model_format="gguf", served_model_names=("m",))
    questions: list[CheckGrammar] = []

    async def run() -> None:
        inbox: Receiver[FrontendToGrammar] = Receiver(ipc_address(str(run_dir), GRAMMAR_QUESTIONS), FRONTEND_TO_GRAMMAR, bind=True)
        asker = Grammars(config, str(run_dir), patience=0.5)
        outbox = Sender(ipc_address(str(run_dir), grammar_answers(0)), bind=False)

        def hear(question: FrontendToGrammar) -> None:
            questions.append(question)
            if (found := answer(questions)) is not None:
                outbox.send(found)

        inbox.watch(asyncio.get_running_loop(), hear)
        asker.start()
        try:
            for _ in range(times):
                await asker.check(GRAMMAR)
            assert asker.has_passed(GRAMMAR)
        finally:
            inbox.unwatch(asyncio.get_running_loop())
            inbox.close()
            asker.close()
            outbox.close()

    asyncio.run(run())
    return questions


def test_what_passed_is_not_asked_again_whatever_else_is_wanted_of_it(tmp_path: Path) -> None:
    (question,) = ask(tmp_path, lambda questions: GrammarChecked(questions[-1].query_id), times=3)
    assert question.grammar == Grammar("regex", "a")


def test_a_refusal_says_why_and_a_busy_process_when_to_come_back(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="regular expression: unclosed group"):
        ask(tmp_path, lambda questions: GrammarChecked(questions[-1].query_id, "unclosed group"))
    with pytest.raises(Overloaded, match="too many"):
        ask(tmp_path, lambda questions: GrammarChecked(questions[-1].query_id, "too many", busy=True))


def test_a_question_that_a_dead_process_took_along_is_asked_again(tmp_path: Path) -> None:
    questions = ask(tmp_path, lambda questions: GrammarChecked(questions[-1].query_id) if len(questions) == 3 else None)
    assert len({question.query_id for question in questions}) == 1
