"""What the frontend counts of its requests: distributions of their times and sizes, and how they ended.

Histograms here are lists of integers: a step's tokens are observed together, since all that waited for the same step waited equally
long, so that a token costs a few dictionary operations.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

# Upper bounds of the buckets, in seconds: vLLM's, which dashboards know, and finer ones below, where fast devices are.
_FIRST_TOKEN = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
    *(640.0, 2560.0),
)
_BETWEEN_TOKENS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0),
)
_REQUEST = (
    *(0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0),
    *(480.0, 960.0, 1920.0, 7680.0),
)
_OUTPUTS = (1.0, 2.0, 5.0, 10.0, 20.0)
_TOKENS = tuple(float(step * 10**power) for power in range(7) for step in (1, 2, 5))

_SECONDS = 1e-9  # of a nanosecond


class Histogram:
    """How often a value lay in each bucket. `bounds`: the upper end of each, rising; what is larger has a bucket of its own."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.text = text
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` values that are the same."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count


@dataclass(slots=True)
class Timeline:
    """When things happened to one request: nanoseconds on the one clock; 0: not yet."""

    num_prompt_tokens: int
    max_tokens: int
    submitted_ns: int
    first_ns: int = 0
    last_ns: int = 0  # when its last token came in
    queue_ns: int = 0  # how long it waited for a slot, as the scheduler says with the first token
    num_tokens: int = 0  # of output
    num_cached_tokens: int = 0  # of the prompt, that the prefix cache held
    reason: str = ""  # why it ended


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """The measures of one frontend at one time."""

    ended: dict[str, int]
    num_open: int  # requests that have not ended
    histograms: list[tuple[list[int], float]]  # counts and sum, in the order of Measures.histograms
    ignored: dict[str, int] = {}
    journal_bytes: int = 0  # of the prompts of these requests


class Measures:
    """The measures of one frontend."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()  # requests by why they ended
        self.ignored: Counter[str] = Counter()  # fields of requests over HTTP that nobody knows
        self.first_token = Histogram("time_to_first_token_seconds", "From a request's acceptance to its first token.", _FIRST_TOKEN)
        self.between_tokens = Histogram("inter_token_latency_seconds", "From one token of a request to the next.", _BETWEEN_TOKENS)
        self.per_token = Histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a request.", _BETWEEN_TOKENS
        )
        self.whole = Histogram("e2e_request_latency_seconds", "From a request's acceptance to its end.", _REQUEST)
        self.queue = Histogram("request_queue_time_seconds", "Before a request was given a slot.", _REQUEST)
        self.inference = Histogram("request_inference_time_seconds", "From a request's slot to its last token.", _REQUEST)
        self.prefill = Histogram("request_prefill_time_seconds", "From a request's slot to its first token.", _REQUEST)
        self.decode = Histogram("request_decode_time_seconds", "From a request's first token to its last.", _REQUEST)
        self.prompt_tokens = Histogram("request_prompt_tokens", "Tokens of a request's prompt.", _TOKENS)
        self.output_tokens = Histogram("request_generation_tokens", "Tokens that a request generated.", _TOKENS)
        self.most_tokens = Histogram("request_max_num_generation_tokens", "The same, of its longest output.", _TOKENS)
        self.max_tokens = Histogram("request_params_max_tokens", "Tokens that a request might have generated.", _TOKENS)
        self.computed = Histogram("request_prefill_kv_computed_tokens", "Prompt tokens that no cache held.", _TOKENS)
        self.outputs = Histogram("request_params_n", "Outputs that a client's request asked for.", _OUTPUTS)

    @property
    def histograms(self) -> tuple[Histogram, ...]:
        """All of them."""
        return tuple(value for value in vars(self).values() if isinstance(value, Histogram))

    def snapshot(self, num_open: int, journal_bytes: int = 0) -> Snapshot:
        """All of it. `num_open`: requests that have not ended. `journal_bytes`: of their prompts."""
        histograms = [(histogram.counts, histogram.sum) for histogram in self.histograms]
        return Snapshot(self.ended, num_open, histograms, self.ignored, journal_bytes)

    def first_came(self, timeline: Timeline, now_ns: int) -> None:
        """The first token of a request came in."""
        timeline.first_ns = now_ns
        self.first_token.observe((now_ns - timeline.submitted_ns) * _SECONDS)

    def others_came(self, previous_ns: dict[int, int], now_ns: int) -> None:
        """Tokens of one step came in. `previous_ns`: for how many of them the token before came in at that time."""
        for previous, count in previous_ns.items():
            self.between_tokens.observe((now_ns - previous) * _SECONDS, count)

    def all_came(self, timeline: Timeline, prefill_ns: int, now_ns: int) -> None:
        """All tokens of a request came with its end, so that the time between two is known as a mean only."""
        self.first_came(timeline, min(now_ns, timeline.submitted_ns + timeline.queue_ns + prefill_ns))
        timeline.last_ns = now_ns
        if timeline.num_tokens > 1:
            between = (now_ns - timeline.first_ns) * _SECONDS / (timeline.num_tokens - 1)
            self.between_tokens.observe(between, timeline.num_tokens - 1)

    def request_ended(self, timeline: Timeline, reason: str, now_ns: int) -> None:
        """A request ended, for whatever reason. Times of what it never reached are not counted."""
        self.ended[reason] += 1
        timeline.reason = reason
        self.whole.observe((now_ns - timeline.submitted_ns) * _SECONDS)
        self.prompt_tokens.observe(timeline.num_prompt_tokens)
        self.output_tokens.observe(timeline.num_tokens)
        self.most_tokens.observe(timeline.num_tokens)
        self.computed.observe(max(0, timeline.num_prompt_tokens - timeline.num_cached_tokens))
        self.max_tokens.observe(timeline.max_tokens)
        if not timeline.first_ns:
            return
        decode = timeline.last_ns - timeline.first_ns
        prefill = max(0, timeline.first_ns - timeline.submitted_ns - timeline.queue_ns)
        self.queue.observe(timeline.queue_ns * _SECONDS)
        self.prefill.observe(prefill * _SECONDS)
        self.decode.observe(decode * _SECONDS)
        self.inference.observe((prefill + decode) * _SECONDS)
        if timeline.num_tokens > 1:
            self.per_token.observe(decode * _SECONDS / (timeline.num_tokens - 1))
