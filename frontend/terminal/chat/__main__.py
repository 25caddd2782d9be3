"""`engine-chat`: a conversation with a running engine, at a terminal; or one answer, to what comes from a pipe."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from frontend.client import InvalidRequest, SamplingParams
from frontend.errors import CONTEXT_LENGTH_EXCEEDED
from frontend.terminal.chat.answering import Engine
from frontend.terminal.chat.conversation import HELP, Conversation
from frontend.terminal.chat.screen import Screen
from protocol.errors import EngineError, ExitCode

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="engine-chat", description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", nargs="*", help="asked first; where nobody types, the only one")
    parser.add_argument("--ipc", metavar="PATH", help="the socket of the engine; default: as the Python client finds it")
    parser.add_argument("--system", metavar="TEXT", default="", help="who the model is told to be")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the most likely token (1)")
    parser.add_argument("--top-p", type=float, metavar="P", help="share of the likeliest tokens that are chosen among (1)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (what the context holds)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same for each answer; default: another one each time")
    options = parser.parse_args(arguments)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_p", "max_tokens", "seed")}
    given = {name: value for name, value in sampling.items() if value is not None}
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    screen = Screen()
    try:
        with asyncio.Runner() as runner:
            engine = Engine(options.ipc, screen)
            try:
                chat = Chat(runner, screen, engine, Conversation(options.system), SamplingParams(**given))
                return chat.run(" ".join(options.question))
            finally:
                engine.close()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the answer has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CRASHED


class Chat:
    """Asks for lines, and answers them."""

    def __init__(
        self, runner: asyncio.Runner, screen: Screen, engine: Engine, conversation: Conversation, params: SamplingParams
    ) -> None:
        self._runner = runner  # whose loop stands still while the user types, and whose tasks Ctrl-C cancels
        self._screen = screen
        self._engine = engine
        self._conversation = conversation
        self._params = params

    def run(self, first: str) -> int:
        """Stays until the user leaves; returns the exit code. `first`: a question that comes before the user's."""
        try:
            self._runner.run(self._engine.greet() if self._screen.interactive else self._engine.connect())
        except EngineError as error:
            self._screen.error(str(error))
            return error.exit_code
        if not self._screen.interactive:
            question = first or self._screen.read()
            return self._ask(question) if question else ExitCode.OK
        if first:
            self._ask(first)
        while (line := self._read()) is not None:
            if not line:
                continue
            if (told := self._conversation.command(line)) is not None:
                self._screen.note(told)
            else:
                self._ask(line)
        return ExitCode.OK

    def _read(self) -> str | None:
        try:
            return self._screen.read()
        except KeyboardInterrupt:
            self._screen.note("\nCtrl-D leaves")
            return ""

    def _ask(self, question: str) -> int:
        """Answers a question; what came of a stopped answer is part of the conversation."""
        text: list[str] = []
        code = ExitCode.OK
        try:
            self._runner.run(self._engine.answer(self._conversation.messages(question), self._params, text))
        except KeyboardInterrupt:
            if not self._screen.interactive:
                raise
            self._screen.note("\nstopped" if not text else "stopped")
        except EngineError as error:
            code = error.exit_code
            hint = ""
            if isinstance(error, InvalidRequest) and error.code == CONTEXT_LENGTH_EXCEEDED and self._conversation.turns:
                hint = "; /clear begins a new conversation"
            self._screen.error(f"{error}{hint}")
        if text:
            self._conversation.turns.append((question, "".join(text)))
        return code


if __name__ == "__main__":
    sys.exit(main())
