"""What the Python client returns."""

from dataclasses import dataclass

from frontend.wire import Delta, Logprob
from protocol.messages import FinishReason


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of the `n` outputs of a prompt."""

    index: int
    text: str  # empty without `detokenize`
    token_ids: list[int]
    finish_reason: FinishReason  # "abort": cancelled before its end
    stop_reason: int | str | None = None  # the stop token id or stop string; None: end of sequence, or no stop
    logprobs: list[Logprob] | None = None  # one per token, where asked


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written by one request. The prompt counts once, however many outputs it has."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answer to one prompt. `text` and its neighbours are those of the first output, which mostly is the only one."""

    prompt: str | None  # None for token ids and conversations
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first output."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first output, the stop token included."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first output ended."""
        return self.outputs[0].finish_reason

    @property
    def logprobs(self) -> list[Logprob] | None:
        """Log-probabilities of the first output, where asked."""
        return self.outputs[0].logprobs

    @property
    def usage(self) -> Usage:
        """Tokens of the whole request."""
        completion = sum(len(output.token_ids) for output in self.outputs)
        return Usage(len(self.prompt_token_ids), completion, self.num_cached_tokens)


def join(index: int, deltas: list[Delta], *, with_logprobs: bool) -> CompletionOutput:
    """One output from its deltas, in order. None with a finish reason: the output was cancelled."""
    if len(deltas) == 1:
        (last,) = deltas
        text, token_ids = last.text, last.token_ids
    else:
        text = "".join([delta.text for delta in deltas])
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    reason: FinishReason | None = deltas[-1].finish_reason if deltas else None
    logprobs = [entry for delta in deltas for entry in delta.logprobs] if with_logprobs else None
    return CompletionOutput(index, text, token_ids, reason or "abort", deltas[-1].stop_reason if deltas else None, logprobs)
