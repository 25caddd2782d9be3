"""What a request brings."""

from dataclasses import dataclass, field

from frontend.wire import Logprob
from protocol.messages import FinishReason


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` outputs of a request."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop id or stop string that ended it


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, all outputs together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt. `text`, `token_ids`, `logprobs` and `finish_reason` are those of the first output."""

    prompt: str | None  # None: it came as token ids or as a conversation
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first output."""
        return self.outputs[0].token_ids

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
