"""Which prompts share a step."""

from collections import Counter

import numpy as np

from protocol.codec import unpack_int32
from protocol.config import PROTOCOL_VERSION
from protocol.messages import WorkerReady
from protocol.params import EngineParams
from scheduler_proc.breaches import Breaches
from scheduler_proc.constraints import Constraints
from scheduler_proc.lane import Lane
from scheduler_proc.plan import plan_step
from scheduler_proc.request import Request, RequestState
from scheduler_proc.story import StoryRing


def chunks(prompts: list[int], saturating_tokens: int, budget: int = 32) -> list[list[int]]:
    """Prompt tokens of each request in the first three steps, for prompts of these lengths that come at once."""
    ready = WorkerReady(PROTOCOL_VERSION, 0, 0, 64, 4, 8, 64, 100, "sim", saturating_tokens)
    story = StoryRing(Breaches(Counter(), strict=True))
    lane = Lane(ready, queue_depth=3, token_budget=budget, prefix_caching=False, story=story, constraints=Constraints())
    for order, length in enumerate(prompts):
        tokens = np.arange(length, dtype=np.int32)
        request = Request(order, tokens, length, length + 1, EngineParams(1), priority=0, order=order, stream=True, cache_salt="")
        story.move(request, RequestState.WAITING, "arrived")
        lane.admit(request, "admitted")
    steps = []
    while (output := plan_step(lane, 0, lambda _: None, lambda _: None)) is not None:
        steps.append(unpack_int32(output.prefill_counts_i32).tolist())
    return steps


def test_prompts_fill_the_budget_of_a_device_that_says_nothing() -> None:
    assert chunks([10, 10, 10], 0) == [[10, 10, 10]]
    assert chunks([20, 20], 0) == [[20, 12], [8]]


def test_a_saturated_step_takes_no_further_prompt() -> None:
    assert chunks([10, 10, 10], 8) == [[10], [10], [10]]
    assert chunks([5, 5, 5], 8) == [[5, 5], [5]]


def test_saturation_does_not_cut_a_prompt() -> None:
    assert chunks([40, 3], 8) == [[32], [8], [3]]
