"""What a request brings."""

from dataclasses import dataclass, field

from frontend.client.structured import Value, parse
from frontend.wire import Logprob, ToolCall
from protocol.messages import FinishReason

_SHOWN = 60  # characters of a text, and …
_SHOWN_IDS = 8  # … token ids that a representation shows: a batch of them is to be read


@dataclass(slots=True, repr=False)
class CompletionOutput:
    """One of the `n` outputs of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string that ended it
    reasoning: str = ""  # of a chat: what the model thought before its answer
    tool_calls: list[ToolCall] = field(default_factory=list)  # of a chat with tools

    def __repr__(self) -> str:
        reason = "" if self.stop_reason is None else f", stop_reason={self.stop_reason!r}"
        text = f"text={_shortened(self.text)}, token_ids={_shortened_ids(self.token_ids)}"
        calls = f", tool_calls={self.tool_calls!r}" if self.tool_calls else ""
        return f"CompletionOutput(index={self.index}, {text}, finish_reason={self.finish_reason!r}{reason}{calls})"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, all outputs together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache


@dataclass(slots=True, repr=False)
class RequestOutput:
    """The answer to one prompt. `text`, `token_ids`, `logprobs` and `finish_reason` are those of the first output."""

    prompt: str | None  # None: it came as token ids or as a conversation
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[Logprob | None] | None = None  # one per token of the prompt, where asked; None: the first
    max_tokens_clipped: int | None = None  # what was granted, where the context had no room for the `max_tokens` asked for

    def __repr__(self) -> str:
        prompt = _shortened_ids(self.prompt_token_ids) if self.prompt is None else _shortened(self.prompt)
        clipped = "" if self.max_tokens_clipped is None else f", max_tokens_clipped={self.max_tokens_clipped}"
        return f"RequestOutput(prompt={prompt}, outputs={self.outputs!r}, {self.usage!r}{clipped})"

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    def parse(self, kind: type[Value]) -> Value:
        """The first output as a value of the type that was given as `schema`.

        Raises ValueError when it is none, as when `max_tokens` cut it short.
        """
        return parse(self.text, kind)

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first output."""
        return self.outputs[0].token_ids

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Calls of the first output. The result of one goes back as {"role": "tool", "tool_call_id": its id, "content": …}."""
        return self.outputs[0].tool_calls

    @property
    def logprobs(self) -> list[Logprob]:
        """Log-probabilities of the first output's tokens, where asked."""
        return self.outputs[0].logprobs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first output ended."""
        return self.outputs[0].finish_reason

    @property
    def usage(self) -> Usage:
        """How many tokens were read and written."""
        written = sum(len(output.token_ids) for output in self.outputs)
        return Usage(len(self.prompt_token_ids), written, self.num_cached_tokens)


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}… ({len(text)} characters)"


def _shortened_ids(token_ids: list[int]) -> str:
    if len(token_ids) <= _SHOWN_IDS:
        return repr(token_ids)
    return f"[{', '.join(map(str, token_ids[:_SHOWN_IDS]))}, … ({len(token_ids)} tokens)]"
