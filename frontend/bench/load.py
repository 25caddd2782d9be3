"""The load: random prompts, and when each request is sent."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What is asked of the server."""

    num_prompts: int
    input_len: int  # tokens
    output_len: int  # tokens
    range_ratio: float = 0.0  # lengths are uniform in [len × (1 - r), len × (1 + r)]
    request_rate: float = float("inf")  # requests per second, Poisson arrivals; inf: all at once
    token_ids: tuple[int, int] = (1000, 30000)  # ids are drawn from [low, high)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of the load."""

    at: float  # seconds after the start
    token_ids: list[int]
    max_tokens: int


def plan_load(spec: LoadSpec) -> list[PlannedRequest]:
    """The requests in the order of their arrival; the same for the same spec.

    Every prompt starts with other tokens than the rest, so that no server answers from a prefix cache what it should compute.
    """
    rng = np.random.default_rng(spec.seed)
    inputs = _lengths(rng, spec.input_len, spec.range_ratio, spec.num_prompts)
    outputs = _lengths(rng, spec.output_len, spec.range_ratio, spec.num_prompts)
    gaps = (
        rng.exponential(1.0 / spec.request_rate, spec.num_prompts) if np.isfinite(spec.request_rate) else np.zeros(spec.num_prompts)
    )
    times = np.cumsum(gaps) - gaps[0]  # the first is sent at once
    low, high = spec.token_ids
    return [
        PlannedRequest(float(at), rng.integers(low, high, size=size).tolist(), int(limit))
        for at, size, limit in zip(times, inputs, outputs, strict=True)
    ]


def _lengths(rng: np.random.Generator, length: int, ratio: float, count: int) -> list[int]:
    low, high = max(1, int(length * (1 - ratio))), int(np.ceil(length * (1 + ratio)))
    return [int(value) for value in rng.integers(low, high + 1, size=count)]
