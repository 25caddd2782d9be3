"""Steps go to the device in their order; constrained rows are sampled when their masks are here, the others at once."""

import numpy as np

from protocol.codec import pack_int32, unpack_int32
from protocol.config import EngineConfig, SimulatedTimes
from protocol.messages import MasksMissing, NewRequest, SchedulerOutput, ScoresReady, StepMasks
from protocol.params import EngineParams, Grammar
from tests.tpu_worker.device_driver import pack_bits
from tpu_worker.collector import Part
from tpu_worker.masks import Masks
from tpu_worker.simulator import SimulatedDevice, simulated_token
from tpu_worker.slots import Slots
from tpu_worker.steps import Steps

VOCAB = 100
ALLOWED = [3, 40, 41, 99]
PROMPTS = [[5, 6, 7], [8, 9]]  # of a constrained request and of a plain one


class Bench:
    """One worker's main thread, and the queue that its collector would work through."""

    def __init__(self) -> None:
        config = EngineConfig(
            model_path="", model_format="gguf", served_model_names=("m",), device="sim", block_size=4, max_num_seqs=4,
            simulated=SimulatedTimes(0, 0, 0),
        )  # fmt: skip
        self.device = SimulatedDevice(config, vocab_size=VOCAB, max_model_len=64)
        self.queue: list[Part | MasksMissing | ScoresReady] = []
        self.steps = Steps(1, Slots(4), Masks(1, VOCAB, 4, 2), self.device, self.queue.append)

    def start(self) -> None:
        """The prompts of both requests, in one step."""
        params = EngineParams(max_tokens=9, structured=Grammar("json_object")), EngineParams(max_tokens=9)
        new = tuple(
            NewRequest(slot, pack_int32(prompt), len(prompt), 0, pack_int32([2 * slot, 2 * slot + 1]), params[slot])
            for slot, prompt in enumerate(PROMPTS)
        )
        self.steps.take_in(
            SchedulerOutput(1, 0, new=new, prefill_slots_i32=pack_int32([0, 1]), prefill_counts_i32=pack_int32([3, 2]))
        )

    def decode(self, step_id: int, *joins: int) -> None:
        self.steps.take_in(SchedulerOutput(1, step_id, joins_i32=pack_int32(joins) if joins else b"", num_decodes=2))

    def mask(self, step_id: int, epoch: int = 1) -> None:
        self.steps.take_in(StepMasks(epoch, step_id, pack_int32([0]), pack_bits([ALLOWED], VOCAB).tobytes()))

    def answers(self) -> list[tuple[int, list[int] | None, bool, list[int]]]:
        """Step, rows, whether more follows, and tokens of each part that is on the device."""
        parts = [part for part in self.queue if isinstance(part, Part)]
        self.queue.clear()
        return [
            (p.step_id, None if p.rows is None else p.rows.tolist(), p.more, self.device.collect(p.handle).token_ids.tolist())
            for p in parts
        ]


def masked(context: list[int]) -> int:
    return simulated_token(context, 0, VOCAB, ALLOWED)


def test_rows_without_a_mask_do_not_wait() -> None:
    bench = Bench()
    bench.start()
    plain = simulated_token(PROMPTS[1], 0, VOCAB)
    assert bench.answers() == [(0, [1], True, [plain])]
    bench.decode(1, 0, 1)
    assert bench.answers() == [] and bench.steps.dispatched == 1  # its first row needs a token that is not sampled
    bench.mask(0)
    first = masked(PROMPTS[0])
    second = simulated_token([*PROMPTS[1], plain], 0, VOCAB)
    assert bench.answers() == [(0, [0], False, [first]), (1, [1], True, [second])]
    bench.mask(1)
    assert bench.answers() == [(1, [0], False, [masked([*PROMPTS[0], first])])]


def test_masks_that_are_here_first_hold_nothing_up() -> None:
    bench = Bench()
    bench.mask(1)
    bench.mask(0)
    bench.mask(0, epoch=0)
    bench.start()
    bench.decode(1, 0, 1)
    assert [(step, rows, more) for step, rows, more, _ in bench.answers()] == [
        (0, [1], True), (0, [0], False), (1, [1], True), (1, [0], False),
    ]  # fmt: skip


def test_a_step_that_waits_for_long_says_for_what() -> None:
    bench = Bench()
    bench.steps.tell_missing()
    bench.start()
    bench.steps.tell_missing()
    assert not any(isinstance(entry, MasksMissing) for entry in bench.queue)  # it only began to wait
    bench.steps.tell_missing()
    bench.steps.tell_missing()
    told = [entry for entry in bench.queue if isinstance(entry, MasksMissing)]
    assert [(entry.epoch, entry.step_id, unpack_int32(entry.rows_i32).tolist()) for entry in told] == [(1, 0, [0])] * 2
    bench.mask(0)
    bench.queue.clear()
    bench.steps.tell_missing()
    bench.steps.tell_missing()
    assert not bench.queue


def test_steps_for_another_incarnation_are_dropped() -> None:
    bench = Bench()
    bench.steps.take_in(SchedulerOutput(0, 0, num_decodes=17))
    assert bench.steps.dispatched == 0 and not bench.queue


def test_a_mask_that_allows_nothing_fails_its_row() -> None:
    bench = Bench()
    bench.start()
    bench.steps.take_in(StepMasks(1, 0, pack_int32([0]), np.zeros(4, "<u4").tobytes()))
    _, part = bench.queue
    assert isinstance(part, Part)
    bench.device.collect(bench.queue[0].handle)  # type: ignore[union-attr]
    assert bench.device.collect(part.handle).failed_rows == (0,)


def test_known_tokens_are_computed_as_a_chunk() -> None:
    """The first token of the chunk is one that an earlier step sampled; the others are told."""
    bench = Bench()
    bench.start()
    bench.mask(0)
    first = masked(PROMPTS[0])
    bench.steps.take_in(
        SchedulerOutput(
            1, 1, joins_i32=pack_int32([1]), num_decodes=1, prefill_slots_i32=pack_int32([0]), prefill_counts_i32=pack_int32([4]),
            extended_i32=pack_int32([0]), extensions_i32=pack_int32([41, 3, 40]),
        )
    )  # fmt: skip
    bench.mask(1)
    bench.steps.take_in(SchedulerOutput(1, 2, joins_i32=pack_int32([0]), num_decodes=2))
    assert [(step, rows) for step, rows, *_ in bench.answers()] == [(0, [1]), (0, [0]), (1, [0])]  # that mask was for the wrong row
    bench.steps.take_in(StepMasks(1, 1, pack_int32([1]), pack_bits([ALLOWED], VOCAB).tobytes()))
    answers = bench.answers()
    assert answers[0] == (1, [1], False, [masked([*PROMPTS[0], first, 41, 3, 40])])
    assert [(step, rows) for step, rows, *_ in answers] == [(1, [1]), (2, [0])]
