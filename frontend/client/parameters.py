"""Parameters as users write them, checked before anything is sent."""

import difflib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from frontend.client import structured
from frontend.errors import InvalidRequest
from protocol.params import Grammar, ParameterError, SamplingParams, check

_TYPES = {field.name: field.type for field in msgspec.structs.fields(SamplingParams)}
_TEXTS = ("stop", "bad_words")

Params = TypeVar("Params", SamplingParams | None, SamplingParams | Sequence[SamplingParams] | None)  # one set, or several


class SamplingFields(structured.StructuredFields, total=False):
    """The fields of SamplingParams, as keywords of the client's methods."""

    max_tokens: int | None
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    n: int
    stop: list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logprobs: int | None
    detokenize: bool
    priority: int
    structured: Grammar | None
    logit_bias: dict[int, float]
    allowed_token_ids: list[int] | None
    bad_words: list[str]
    prompt_logprobs: int | None
    truncate_prompt_tokens: int | None


_NAMES = (*structured.StructuredFields.__annotations__, *_TYPES)


def merged(params: Params, fields: SamplingFields, defaults: SamplingParams | None = None) -> Params | SamplingParams:
    """The parameters with these fields in place of theirs, or of the defaults where there are none.

    Raises TypeError, as any call does, on a keyword that is none.
    """
    if not fields:
        return defaults if params is None else params
    for name in fields:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, 1)
            raise TypeError(f"{name!r} is no sampling parameter" + (f"; did you mean {near[0]!r}?" if near else ""))
    changes: dict[str, Any] = {**fields}
    structured.take(changes)
    if params is None or isinstance(params, SamplingParams):
        return msgspec.structs.replace(params or defaults or SamplingParams(), **changes)
    return [msgspec.structs.replace(one, **changes) if isinstance(one, SamplingParams) else one for one in params]


def checked(params: SamplingParams | None, vocab_size: int) -> SamplingParams:
    """The parameters, defaults for None. Raises InvalidRequest naming the field of a wrong type or out of range."""
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params must be SamplingParams, not {type(params).__name__}", "params")
    # A Struct takes any value; only conversion looks at the types. Unlike the encoder it takes integers of any size, for `check`.
    same = SamplingParams(**{name: _converted(name, kind, getattr(params, name)) for name, kind in _TYPES.items()})
    try:
        check(same, vocab_size)
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    texts = {name: [sendable(text, f"{name}[{index}]") for index, text in enumerate(getattr(same, name))] for name in _TEXTS}
    return msgspec.structs.replace(same, **texts)


def checked_salt(cache_salt: str) -> str:
    """A salt that can be sent."""
    if not isinstance(cache_salt, str):
        raise InvalidRequest(f"cache_salt must be a text, not {type(cache_salt).__name__}", "cache_salt")
    return sendable(cache_salt, "cache_salt")


def _converted(name: str, kind: object, value: object) -> Any:
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    try:
        return msgspec.convert(plain, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        reason, _, path = str(error).partition(" - at `$")
        param = name + path.rstrip("`")
        raise InvalidRequest(f"{param}: {reason}", param) from error


def sendable(text: str, param: str) -> str:
    """A plain string of what UTF-8 can say, from one of any kind."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{param}: {error}", param) from error
    return str.__str__(text)
