"""What a load says about a server, with the definitions of `vllm bench serve`.

TTFT: from sending a request to the first streamed chunk with choices. ITL: between two such chunks. E2EL: to the last of them.
TPOT: (E2EL - TTFT) / (output tokens - 1), over requests of two tokens and more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

METRICS = {
    "ttft": "time to first token",
    "tpot": "time per output token after the first",
    "itl": "inter-token latency",
    "e2el": "end-to-end latency",
}


@dataclass(slots=True)
class RequestResult:
    """One request as its client saw it. Times in seconds on `protocol.clock`."""

    sent: float
    prompt_tokens: int
    output_tokens: int = 0
    chunk_times: list[float] = field(default_factory=list)  # arrival of each chunk with choices
    error: str = ""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Milliseconds."""

    mean: float
    median: float
    std: float
    percentiles: dict[float, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run."""

    duration: float  # seconds from the first request sent to the last answer
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    distributions: dict[str, Distribution]  # by the names of METRICS

    @property
    def percentiles(self) -> list[float]:
        """The ranks that were asked for."""
        return list(self.distributions["e2el"].percentiles)

    @property
    def request_throughput(self) -> float:
        """Requests per second."""
        return self.completed / self.duration

    @property
    def output_throughput(self) -> float:
        """Output tokens per second."""
        return self.total_output_tokens / self.duration

    @property
    def total_token_throughput(self) -> float:
        """Prompt and output tokens per second."""
        return (self.total_input_tokens + self.total_output_tokens) / self.duration

    def as_dict(self) -> dict[str, float]:
        """Flat, under the names that `vllm bench serve --save-result` uses, so that one script reads both."""
        flat: dict[str, float] = {
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "total_input_tokens": self.total_input_tokens,
            "total_output_tokens": self.total_output_tokens,
            "request_throughput": self.request_throughput,
            "output_throughput": self.output_throughput,
            "total_token_throughput": self.total_token_throughput,
        }
        for name, values in self.distributions.items():
            flat |= {f"mean_{name}_ms": values.mean, f"median_{name}_ms": values.median, f"std_{name}_ms": values.std}
            flat |= {f"p{rank:g}_{name}_ms": value for rank, value in values.percentiles.items()}
        return flat


def summarize(results: Sequence[RequestResult], duration: float, percentiles: Sequence[float] = (99.0,)) -> Summary:
    """Failed requests count as failed and in nothing else. `duration` in seconds."""
    answered = [result for result in results if not result.error]
    samples: dict[str, list[float]] = {name: [] for name in METRICS}
    for result in answered:
        if not result.chunk_times:
            continue
        first, last = result.chunk_times[0], result.chunk_times[-1]
        samples["ttft"].append(first - result.sent)
        samples["e2el"].append(last - result.sent)
        samples["itl"] += np.diff(result.chunk_times).tolist()
        if result.output_tokens > 1:
            samples["tpot"].append((last - first) / (result.output_tokens - 1))
    return Summary(
        duration=duration,
        completed=len(answered),
        failed=len(results) - len(answered),
        total_input_tokens=sum(result.prompt_tokens for result in answered),
        total_output_tokens=sum(result.output_tokens for result in answered),
        distributions={name: _distribution(np.asarray(values) * 1e3, percentiles) for name, values in samples.items()},
    )


def _distribution(values: npt.NDArray[np.float64], percentiles: Sequence[float]) -> Distribution:
    if values.size == 0:
        values = np.zeros(1)
    ranks = {float(rank): float(np.percentile(values, rank)) for rank in percentiles}
    return Distribution(float(values.mean()), float(np.median(values)), float(values.std()), ranks)
