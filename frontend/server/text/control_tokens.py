"""Keeps what users write from becoming control tokens, such as the end of a turn.

A chat template writes the texts of control tokens around the contents of messages, and the tokenizer turns these texts into the
tokens wherever it finds them. So a *fence*, a character that nobody wrote, is put between the letters of each such text in what
came from users, and at its ends where the template could complete one. A fence goes through a template like any letter. In the
rendered text, what still reads as a control token is the template's own.
"""

import itertools
import re
import secrets
from collections.abc import Callable, Set
from functools import cached_property, partial
from typing import Any, TypeAlias, TypeVar

from tokenizers import AddedToken, Tokenizer

from frontend.errors import InvalidRequest
from frontend.server.text.alternatives import any_of
from frontend.server.text.encoding import token_ids
from frontend.server.text.fences import FENCES

_PRIVATE = range(0xE000, 0xF900)  # Unicode's private use area


# What in a value of JSON is the server's own: "own" all, "free" nothing, "schema" the words of JSON Schema, by which a template
# finds its way. A dictionary says it for the values of an object; its keys are the server's.
Shape: TypeAlias = str | dict[str, Any]
_CALLS: Shape = {"type": "own", "function": {"name": "free", "arguments": "free"}}
MESSAGES: Shape = {"role": "own", "content": {"type": "own"}, "tool_calls": _CALLS}
TOOLS: Shape = {"type": "own", "function": {"parameters": "schema"}}
_WORDS = frozenset(
    (
        *("type", "properties", "required", "items", "enum", "const", "description", "title", "default", "format", "pattern"),
        *("anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions", "additionalProperties", "nullable", "minimum", "maximum"),
    )
)
_TYPES = frozenset(("object", "string", "number", "integer", "boolean", "array", "null"))

Value = TypeVar("Value")


class ControlTokens:
    """The control tokens of one tokenizer. Stateless after construction; runs on any thread."""

    def __init__(self, tokenizer: Tokenizer, control_ids: Set[int]) -> None:
        """`control_ids`: the added tokens that no user may write."""
        added = tokenizer.get_added_tokens_decoder()
        self._control = {token.content: token_id for token_id, token in added.items() if token_id in control_ids and token.content}
        texts = sorted(self._control, key=len, reverse=True)  # of two that begin alike, the tokenizer takes the longer one
        self._longest = len(texts[0]) if texts else 0
        self._beginnings = {text[:size] for text in texts for size in range(1, len(text))}
        self._ends = {text[size:] for text in texts for size in range(1, len(text))}
        single, several = any_of([text for text in texts if len(text) == 1]), any_of([text for text in texts if len(text) > 1])
        self._single, self._several = re.compile(single), re.compile(several)
        # A normalizer makes control tokens of texts that are none yet, such as "<S>" where it writes small letters.
        self._always = tokenizer.normalizer is not None and any(added[token_id].normalized for token_id in self._control.values())
        words = {token.content for token in added.values() if token.single_word}
        special = [text for text in texts if len(text) == 1 or text in words]
        patterns = [_as_written(text, text in words) for text in special]
        self._written = re.compile("|".join([*patterns, any_of({*texts} - {*special}) if special else several]))
        # The twin shares the model and knows each control token by a name that nobody can write, since it is drawn here: to it, the
        # texts of control tokens are ordinary ones.
        secret = "".join(chr(secrets.choice(_PRIVATE)) for _ in range(10))
        numbers = ("".join(map(chr, number)) for number in itertools.product(_PRIVATE, repeat=2))
        self._names = {text: secret + number for text, number in zip(texts, numbers, strict=False)}
        self._twin = Tokenizer(tokenizer.model)
        self._twin.normalizer, self._twin.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        names = {token_id: self._names.get(token.content, token.content) for token_id, token in added.items()}
        self._twin.add_tokens([_renamed(added[token_id], name) for token_id, name in names.items()])
        twin_ids = {self._twin.token_to_id(name): token_id for token_id, name in names.items()}
        self._ids = {twin_id: token_id for twin_id, token_id in twin_ids.items() if twin_id is not None}  # of added tokens

    def fence(self, messages: Value, shape: Shape = MESSAGES) -> tuple[Value, str]:
        """The messages with fences, and the character that is one; "" where none was needed, as with nearly all messages. `shape`:
        what in them is the server's own.

        Raises InvalidRequest when every character that could be a fence is in the messages.
        """
        texts: list[str] = []

        def note(text: str) -> str:
            texts.append(text)
            return text

        _rewritten(messages, note, shape)
        if not self._always and not any(map(self._is_risky, texts)):
            return messages, ""
        fence = next((fence for fence in FENCES if not any(fence in text for text in texts)), None)
        if fence is None:
            raise InvalidRequest("the messages hold texts of control tokens beside all of Unicode's noncharacters", "messages")
        fenced: Value = _rewritten(messages, partial(self._fenced, fence=fence), shape)
        return fenced, fence

    def encode(self, text: str, fence: str) -> list[int]:
        """Token ids of a text that was rendered from messages with fences; nothing is added at its ends."""
        named = self._written.sub(lambda match: self._names[match[0]], text).replace(fence, "")
        found: list[int] = []
        for twin_id in token_ids(self._twin, named, add_special_tokens=False):
            if (token_id := self._ids.get(twin_id)) is not None:
                found.append(token_id)
            else:
                found += self._spelled.get(twin_id, (twin_id,))
        return found

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """Control tokens that the model itself finds in ordinary text, as Unigram does -> their text in other tokens."""
        unknown = set(self._twin.encode("\U0010fffe", add_special_tokens=False).ids)
        return {
            token_id: [token.id for part in (text[:1], text[1:]) for token in self._twin.model.tokenize(part)]
            for text, token_id in self._control.items()
            if token_id not in unknown and token_id in self._twin.encode(text, add_special_tokens=False).ids
        }

    def _is_risky(self, text: str) -> bool:
        return any(pattern.search(text) is not None for pattern in (self._several, self._single)) or bool(self._open_ends(text))

    def _fenced(self, text: str, fence: str) -> str:
        for place in sorted(self._open_ends(text), reverse=True):
            text = text[:place] + fence + text[place:]
        text = self._single.sub(lambda match: fence + match[0] + fence, text)
        while self._several.search(text) is not None:  # again for those that overlap
            text = self._several.sub(lambda match: fence.join(match[0]), text)
        return text

    def _open_ends(self, text: str) -> set[int]:
        """Where a text ends, trimmed or not, such that what the template writes next to it could complete a control token."""
        places: set[int] = set()
        for start, end in {(0, len(text)), (len(text) - len(text.lstrip()), len(text.rstrip()))}:
            if start >= end:
                continue
            inside = end - start < self._longest and any(text[start:end] in control for control in self._control)
            sizes = range(1, min(self._longest, end - start + 1))
            if inside or any(text[start : start + size] in self._ends for size in sizes):
                places.add(start)
            if inside or any(text[end - size : end] in self._beginnings for size in sizes):
                places.add(end)
        return places


def _as_written(text: str, single_word: bool) -> str:
    """The pattern of a control token that is not found wherever its letters are, in a rendered text with fences."""
    fence = f"[{FENCES[0]}-{FENCES[-1]}]"
    pattern = re.escape(text)
    if len(text) == 1:  # no inside for a fence: they go around it
        pattern = f"(?<!{fence}){pattern}(?!{fence})"
    if single_word:  # tokenizers: not with a letter before it or behind it; two fences may meet there
        pattern = rf"(?<!\w)(?<!\w{fence})(?<!\w{fence}{fence}){pattern}(?!{fence}*\w)"
    return pattern


def _renamed(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=token.special,
    )


def _rewritten(value: Any, change: Callable[[str], str], shape: Shape) -> Any:
    """JSON's values with every string changed that is not the server's own."""
    if shape == "own":
        return value
    if isinstance(value, str):
        return value if shape == "schema" and value in _TYPES else change(value)
    if isinstance(value, list):
        return [_rewritten(item, change, shape) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(shape, str):
        words = _WORDS if shape == "schema" else ()
        return {key if key in words else change(key): _rewritten(item, change, shape) for key, item in value.items()}
    return {key: _rewritten(item, change, shape.get(key, "free")) for key, item in value.items()}
