"""What a model thinks before it answers, between two tags: told from the answer while the text comes."""

from collections.abc import Callable
from typing import NamedTuple

from frontend.server.text.tools.parser import held

_MOST_SPACE = 64  # characters of space at an end of the thoughts that are dropped


class Tags(NamedTuple):
    """The tags around thoughts."""

    opening: str
    closing: str
    always: bool = False  # every answer begins with thoughts, whether the opening tag is there or not


THINK = Tags("<think>", "</think>")
_MISTRAL = Tags("[THINK]", "[/THINK]")
_KNOWN = (THINK, _MISTRAL, Tags("<seed:think>", "</seed:think>"))

# The names of vLLM, with which an operator says what the template does not.
PARSERS: dict[str, Tags | None] = {
    "qwen3": THINK,
    "glm45": THINK,
    "deepseek_r1": Tags("<think>", "</think>", always=True),
    "mistral": _MISTRAL,
    "seed_oss": _KNOWN[2],
    "openai_gptoss": None,  # channels, which tell more: see `tools.harmony`
}


def detect(template: str) -> Tags | None:
    """The tags of a model, by the text of its chat template."""
    return next((tags for tags in _KNOWN if tags.closing in template), None)


def leaves_open(tags: Tags, prompt: str) -> bool:
    """Whether a prompt ends with an opening tag, so that the answer begins with thoughts."""
    return prompt.rstrip().endswith(tags.opening)


class ThoughtSplitter:
    """Splits one answer. Thoughts come first, or there are none. The space around them belongs to the tags.

    The pieces, put together, do not depend on how the text was cut.
    """

    __slots__ = ("_step", "_tags", "_text", "_thinks", "_thoughts")

    def __init__(self, tags: Tags, *, opened: bool) -> None:
        """`opened`: the prompt has the opening tag."""
        self._tags = tags
        self._thinks = opened or tags.always
        self._text = ""  # not yet told apart
        self._thoughts = ""
        self._step: Callable[[bool], bool] | None = self._begin  # None: only the answer is left

    def feed(self, text: str, final: bool = False) -> tuple[str, str]:
        """(thoughts, answer) that the next piece of text makes certain. `final`: nothing follows."""
        if self._step is None:
            return "", text
        self._text += text
        while self._step is not None and self._step(final):
            pass
        thoughts, self._thoughts = self._thoughts, ""
        answer = ""
        if self._step is None:
            answer, self._text = self._text, ""
        return thoughts, answer

    # States, as in ToolParser.

    def _begin(self, final: bool) -> bool:
        text, opening = self._text.lstrip(), self._tags.opening
        space = len(self._text) - len(text)
        if space <= _MOST_SPACE and text.startswith(opening):
            self._text, self._thinks = text[len(opening) :], True
        elif space <= _MOST_SPACE and opening.startswith(text) and not final:
            return False
        self._step = self._first_thought if self._thinks else None
        return True

    def _first_thought(self, final: bool) -> bool:
        self._text = self._text.lstrip()
        if not self._text:
            return False
        self._step = self._think
        return True

    def _think(self, final: bool) -> bool:
        place = self._text.find(self._tags.closing)
        if place < 0 and final:
            self._thoughts, self._text = self._thoughts + self._text, ""
            return False
        end = place if place >= 0 else len(self._text) - held(self._text, (self._tags.closing,))
        size = max(len(self._text[:end].rstrip()), end - _MOST_SPACE)
        self._thoughts += self._text[:size]
        if place < 0:
            self._text = self._text[size:]
            return False
        self._text = self._text[place + len(self._tags.closing) :]
        self._step = self._first_answer
        return True

    def _first_answer(self, final: bool) -> bool:
        self._text = self._text.lstrip()
        if self._text:
            self._step = None
        return False
