"""From what users call a prompt to what travels, checked here because a bad value would not decode at the other end."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import msgspec
import numpy as np

from frontend.errors import InvalidRequest
from frontend.wire import ChatTurn, Conversation, Prompt, TextPrompt, TokenPrompt
from protocol.codec import Decoder, encode, pack_int32
from protocol.errors import ProtocolError
from protocol.params import SamplingParams

AnyPrompt: TypeAlias = str | Sequence[int]  # text or token ids

_PARAMS: Decoder[SamplingParams] = Decoder(SamplingParams)
_CONVERSATION: Decoder[Conversation] = Decoder(Conversation)


def as_list(prompts: AnyPrompt | Sequence[AnyPrompt]) -> list[AnyPrompt]:
    """One prompt or several, as several. An empty list is no prompts, not an empty one."""
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) and isinstance(prompts[0], int | np.integer):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[AnyPrompt]", prompts))


def from_user(prompt: AnyPrompt, add_special_tokens: bool) -> Prompt:
    """Raises InvalidRequest when it is neither text nor token ids."""
    if isinstance(prompt, str):
        return TextPrompt(prompt, add_special_tokens)
    try:
        return TokenPrompt(pack_int32(_integers(prompt)))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"a prompt is a string or a list of token ids: {error}", "prompt") from error


def conversation(messages: Sequence[Mapping[str, str]], continue_final_message: bool) -> Conversation:
    """Raises InvalidRequest when a message has no role or no text."""
    try:
        turns = [ChatTurn(message["role"], message["content"], message.get("name")) for message in messages]
        made = Conversation(turns, not continue_final_message, continue_final_message)
        return _CONVERSATION.decode(encode(made))
    except (KeyError, TypeError, AttributeError, ValueError, ProtocolError) as error:
        raise InvalidRequest(f"a message is a dict with the strings 'role' and 'content': {error!r}", "messages") from error


def checked(params: SamplingParams | None) -> SamplingParams:
    """The defaults for None. Raises InvalidRequest when a field has a wrong type; the engine checks the values."""
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params must be SamplingParams, not {type(params).__name__}")
    try:
        return _PARAMS.decode(encode(params))
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError, ProtocolError) as error:
        raise InvalidRequest(f"SamplingParams: {error.__cause__ or error}") from error


def params_of_each(params: "SamplingParams | Sequence[SamplingParams] | None", count: int) -> list[SamplingParams]:
    """Parameters of each of `count` prompts, from the same for all or one for each."""
    if params is None or isinstance(params, SamplingParams):
        return [checked(params)] * count
    if len(params) != count:
        raise InvalidRequest(f"{count} prompts came with {len(params)} SamplingParams: give one for all, or one for each")
    return [checked(one) for one in params]


def _integers(prompt: Sequence[int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.int32]]":
    array = np.asarray(prompt)
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(f"{type(prompt).__name__} of {array.dtype} with {array.ndim} dimensions")
    if int(array.min()) < -(2**31) or int(array.max()) >= 2**31:
        raise ValueError("token ids outside the vocabulary")
    return array.astype(np.int32)
