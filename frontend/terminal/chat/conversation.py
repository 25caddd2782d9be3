"""What was said so far, and what the user's lines mean."""

import re
from dataclasses import dataclass, field

HELP = """\
/clear          begin a new conversation
/system TEXT    tell the model who it is; without TEXT, tell it nothing
/help           this text
Ctrl-C stops an answer, Ctrl-D leaves. A line that ends in \\ goes on in the next one."""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)  # a path, such as /usr/bin, is none


@dataclass
class Conversation:
    """A system message, and turns of user and assistant."""

    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)  # (question, answer)

    def messages(self, question: str) -> list[dict[str, str]]:
        """Everything so far and the question, as the client takes it."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*messages, {"role": "user", "content": question}]

    def command(self, line: str) -> str | None:
        """Does what a line that is a command says, and returns what to tell the user; None: the line is a question."""
        match = _COMMAND.fullmatch(line)
        if match is None:
            return None
        name, text = match[1], (match[2] or "").strip()
        if name == "help":
            return HELP
        if name == "clear":
            self.turns.clear()
            return "a new conversation" + (", with the same system message" if self.system else "")
        if name == "system":
            self.system = text
            return "the model is told so from now on" if text else "no system message"
        return f"/{name} is no command; /help lists them"
