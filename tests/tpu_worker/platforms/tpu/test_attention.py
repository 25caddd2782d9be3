"""The TPU's attention in Pallas' interpreter, against the reference."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # where it says what races it found
from jax.experimental.pallas import tpu as pltpu

from protocol.codec import Float32Array, Int32Array
from tests.margins import TYPICAL, Margins
from tpu_worker.lanes import fill_lanes
from tpu_worker.platforms import reference
from tpu_worker.platforms.cache_types import CacheType, quantise, round_to
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.platforms.tpu.attention import Attend, prepare
from tpu_worker.platforms.tpu.layout import Cache, RowLayout, ScaledCache, split_scales
from tpu_worker.platforms.tpu.pages import Interpret

ROUNDOFF = 2.0**-8  # of bfloat16
NOWHERE = -7  # where no block is


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    dim: int
    page: int
    window: int | None = None
    cap: float | None = None
    sinks: bool = False
    kept: CacheType = "bfloat16"

    @property
    def spec(self) -> AttentionSpec:
        return AttentionSpec(self.dim, 1.0, self.window, self.cap)


@dataclass(frozen=True)
class Step:
    """Rows of (start, count), of which those with a count of 0 are padding, in a bucket of T tokens."""

    rows: tuple[tuple[int, int], ...]
    tokens: int


# Ends of pages, of tiles and of runs; prompts that begin and end within one, chunks that go on where one ended.
MIXED = Step(((131, 1), (0, 1), (0, 37), (16, 2), (63, 1), (50, 16), (0, 0), (15, 70), (0, 0)), 141)
DECODE = Step(((0, 1), (15, 1), (16, 1), (130, 1), (30, 3), (63, 1), (0, 2), (0, 0), (0, 0), (0, 0), (0, 0)), 11)
LONG = Step(((700, 1), (511, 1), (512, 1), (480, 200), (0, 90), (1030, 1)), 300)


def rounded(values: Float32Array, kept: CacheType = "bfloat16") -> Float32Array:
    """What becomes of heads [..., D] in a cache of this type."""
    if kept == "int8":
        numbers, scales = quantise(jnp.asarray(values))
        return np.asarray(numbers * scales.astype(jnp.float32)[..., None])
    return np.asarray(round_to(jnp.asarray(values), kept), np.float32)


LONGEST = 200  # tokens of a row


def draw_step(rng: np.random.Generator, tokens: int) -> Step:
    """Rows of any length that begin anywhere, some of them padding."""
    rows: list[tuple[int, int]] = []
    room, most = tokens, int(rng.choice([1, 3, 20, 75]))
    for _ in range(rng.integers(0, 9)):
        count = min(int(rng.integers(1, most + 1)), room)
        rows += [(int(rng.integers(0, LONGEST - count)), count)] if count else []
        room -= count
    return Step((*rows, *((0, 0),) * (8 - len(rows))), tokens)


@dataclass(frozen=True)
class Problem:
    """A step's operands. Whatever must not be read is NaN, or a block that is not there."""

    q: Float32Array  # [T, H, D]
    k: Float32Array  # [T, KH, D], not rounded to what the cache keeps
    v: Float32Array
    cache: Float32Array  # [2, NB, page, KH, D], likewise
    tables: Int32Array
    starts: Int32Array
    counts: Int32Array
    sinks: Float32Array | None

    @property
    def used(self) -> int:
        return int(self.counts.sum())

    def cache_after(self) -> Float32Array:
        """With what the step writes."""
        cache, token = self.cache.copy(), 0
        for table, start, count in zip(self.tables, self.starts, self.counts, strict=True):
            at, page = start + np.arange(count), cache.shape[2]
            cache[:, table[at // page], at % page] = self.k[token : token + count], self.v[token : token + count]
            token += count
        return cache


def draw(shape: Shape, step: Step, seed: int = 0, longest: int | None = None) -> Problem:
    """longest: tokens of a row that its table has room for; None: those of the longest row."""
    rng = np.random.default_rng(seed)
    starts, counts = (np.array(column, np.int32) for column in zip(*step.rows, strict=True))
    width = -(-(longest or int((starts + counts).max())) // shape.page) + 1
    blocks = len(starts) * width + 3
    order = rng.permutation(blocks).astype(np.int32)
    tables, unwritten = order[: len(starts) * width].reshape(len(starts), width), order[-1]
    cache = np.full((2, blocks, shape.page, shape.kv_heads, shape.dim), np.nan, np.float32)
    for row, (start, count) in enumerate(step.rows):
        at = np.arange(start)
        before = rng.normal(size=(2, start, shape.kv_heads, shape.dim)).astype(np.float32)
        cache[:, tables[row, at // shape.page], at % shape.page] = before
        tables[row, -(-(start + count) // shape.page) :] = NOWHERE
        if shape.window:  # what no token from here on sees belongs to others
            tables[row, : max(0, start + 1 - shape.window) // shape.page] = unwritten
    q = rounded(rng.normal(size=(step.tokens, shape.heads, shape.dim)).astype(np.float32) * np.float32(2 * shape.dim**-0.5))
    k, v = rng.normal(size=(2, step.tokens, shape.kv_heads, shape.dim)).astype(np.float32)
    for values in (q, k, v):
        values[int(counts.sum()) :] = np.nan
    sinks = np.linspace(-2, 4, shape.heads, dtype=np.float32) if shape.sinks else None
    return Problem(q, k, v, cache, tables, starts, counts, sinks)


def pack_cache(shape: Shape, cache: Float32Array) -> Cache:
    """[2, NB, page, KH, D] as the platform keeps it. What is NaN are of integers any, and scales of NaN."""
    layout = RowLayout(shape.dim, shape.kept)
    halves = jnp.pad(cache, [(0, 0)] * 4 + [(0, layout.width // 2 - shape.dim)])
    rows, scales = layout.keep(jnp.concatenate([*halves], axis=-1).astype(layout.new_dtype))
    rows = rows.swapaxes(1, 2)
    if scales is None:
        return rows
    unwritten = jnp.isnan(split_scales(scales)[0])[..., None].swapaxes(1, 2)
    garbage = np.random.default_rng(1).integers(-128, 128, rows.shape, np.int8)
    lanes = ((0, 0), (0, 0), (0, 0), (0, fill_lanes(shape.page) - shape.page))
    padded = jnp.pad(scales.swapaxes(1, 2)[:, :, None], lanes, constant_values=-1)  # of NaN
    return ScaledCache(jnp.where(unwritten, garbage, rows), padded)


@functools.cache
def program(shape: Shape, tokens: int, interpret: Interpret) -> Callable[..., tuple[jax.Array, Cache]]:
    def attend(qkv: jax.Array, cache: Cache, meta: AttentionMetadata, sinks: jax.Array | None) -> tuple[jax.Array, Cache]:
        return Attend(interpret, shape.kept)(qkv, cache, prepare(meta, tokens, shape.page), None, shape.spec, sinks)

    return jax.jit(attend)


def operands(problem: Problem) -> tuple[Float32Array, AttentionMetadata]:
    """qkv [T, (H + 2 KH) * D], and what attention is told of the step."""
    offsets = np.concatenate([[0], np.cumsum(problem.counts)]).astype(np.int32)
    meta = AttentionMetadata(*map(jnp.asarray, (problem.tables, problem.starts, problem.counts, offsets)))
    return np.concatenate([problem.q, problem.k, problem.v], axis=1).reshape(len(problem.q), -1), meta


def run(shape: Shape, problem: Problem, interpret: Interpret = True) -> tuple[Float32Array, Cache]:
    """(output [T, H, D], cache)."""
    qkv, meta = operands(problem)
    out, cache = program(shape, len(qkv), interpret)(qkv, pack_cache(shape, problem.cache), meta, problem.sinks)
    return np.asarray(out).reshape(problem.q.shape), cache


def refer(shape: Shape, problem: Problem) -> tuple[Float32Array, Float32Array]:
    """What the reference makes of rounded keys and values: (output [T, H, D], cache)."""
    return reference.attend(
        problem.q,
        rounded(problem.k, shape.kept),
        rounded(problem.v, shape.kept),
        rounded(problem.cache, shape.kept),
        problem.tables,
        problem.starts,
        problem.counts,
        scale=1.0,
        sliding_window=shape.window,
        soft_cap=shape.cap,
        sinks=problem.sinks,
    )


def check(
    margins: Margins, shape: Shape, step: Step, interpret: Interpret = True, seed: int = 0, longest: int | None = None
) -> None:
    problem = draw(shape, step, seed, longest)
    expected, _ = refer(shape, problem)
    out, written = run(shape, problem, interpret)
    # Weights are rounded before values of size 1 are weighted, and so is what comes of it; that they are multiplied with scales
    # first changes nothing of that. In float32 it is scores that are wrong, and so weights: sums of as many products as heads have
    # features, of which each is rounded, and NumPy's are too.
    typical = TYPICAL * ROUNDOFF * 2**0.5
    if shape.kept == "float32":
        typical = 2 * TYPICAL * 2.0**-24 * (2 + shape.dim**0.5)
    if problem.used:
        what = f"TPU attention{'' if shape.kept == 'bfloat16' else f', {shape.kept}'}"
        margins.check_rounding(what, out[: problem.used], expected[: problem.used], typical)
    assert not out[problem.used :].any()
    for ours, theirs in zip(jax.tree.leaves(written), jax.tree.leaves(pack_cache(shape, problem.cache_after())), strict=True):
        np.testing.assert_array_equal(bits(ours), bits(theirs))  # nothing else has changed, NaN neither


def bits(cache: jax.Array) -> npt.NDArray[np.uint8]:
    """Of numbers with a sign 0 as it is without one: sums have none."""
    exact = np.ascontiguousarray(cache if cache.dtype.kind == "i" else jnp.where(cache == 0, jnp.zeros((), cache.dtype), cache))
    return exact.view(np.uint8)


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        (Shape(8, 2, 64, 16, window=37, cap=5.0, sinks=True), MIXED),
        (Shape(7, 1, 128, 64), DECODE),
        (Shape(4, 2, 64, 64, window=37, kept="int8"), MIXED),
        (Shape(3, 1, 128, 32, kept="fp8_e4m3"), DECODE),
    ],
    ids=["mixed", "decode", "mixed, int8", "decode, fp8"],
)
def test_agrees_with_the_reference(margins: Margins, shape: Shape, step: Step) -> None:
    check(margins, shape, step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "step"),
    [
        (Shape(8, 2, 64, 64), LONG),
        (Shape(6, 3, 64, 32, window=21, sinks=True), DECODE),
        (Shape(9, 3, 64, 64, cap=3.0), MIXED),
        (Shape(2, 2, 16, 16, window=129, sinks=True), LONG),
        (Shape(5, 1, 80, 16, window=1), MIXED),
        (Shape(4, 4, 96, 128), MIXED),
        (Shape(16, 2, 128, 128), MIXED),
        (Shape(7, 1, 128, 64, window=37, cap=5.0, sinks=True), LONG),
        (Shape(4, 1, 256, 256, window=300), LONG),
        (Shape(2, 2, 256, 128, cap=3.0), DECODE),
        (Shape(40, 40, 128, 16), DECODE),
        (Shape(4, 2, 64, 16), Step(((20, 1), (5, 1), (0, 0)), 20)),
        (Shape(4, 2, 64, 16), Step(((20, 9), (0, 11), (0, 0)), 20)),
        (Shape(4, 2, 64, 16), Step(((0, 0), (0, 0)), 32)),
        (Shape(4, 2, 64, 16), Step(((0, 0), (0, 0)), 2)),
        (Shape(9, 3, 64, 32, cap=3.0, sinks=True, kept="int8"), DECODE),
        (Shape(4, 1, 256, 256, window=300, sinks=True, kept="int8"), LONG),
        (Shape(7, 1, 96, 128, cap=5.0, kept="int8"), MIXED),
        (Shape(8, 2, 64, 64, window=37, cap=5.0, kept="fp8_e4m3"), MIXED),
        (Shape(6, 3, 80, 64, window=21, sinks=True, kept="fp8_e5m2"), MIXED),
        (Shape(8, 2, 64, 16, window=37, cap=5.0, sinks=True, kept="float32"), MIXED),
    ],
    ids=str,
)
def test_agrees_with_the_reference_in_every_shape(margins: Margins, shape: Shape, step: Step) -> None:
    check(margins, shape, step)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [8, 75])
@pytest.mark.parametrize(
    "shape", [Shape(4, 2, 64, 16, window=40), Shape(3, 1, 128, 32), Shape(4, 2, 64, 32, window=40, kept="int8")], ids=str
)
def test_any_step(margins: Margins, shape: Shape, tokens: int) -> None:
    """As many tokens as rows, and more: rows of any length that begin anywhere, some of them padding."""
    rng = np.random.default_rng(tokens)
    for seed in range(60):
        check(margins, shape, draw_step(rng, tokens), seed=seed, longest=LONGEST)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "step"),
    [
        (
            Shape(4, 2, 64, 16, window=37, cap=5.0, sinks=True),
            Step(((0, 1), (15, 1), (16, 1), (40, 3), (63, 1), (0, 2), (0, 0), (0, 0), (0, 0)), 9),
        ),
        (Shape(4, 2, 64, 16), Step(((20, 1), (0, 5), (16, 2), (14, 12), (0, 0)), 40)),
        (Shape(2, 1, 64, 32, kept="int8"), Step(((20, 1), (0, 5), (32, 1), (30, 12), (0, 0)), 40)),
    ],
    ids=["decode", "mixed", "mixed, int8"],
)
def test_nothing_is_read_before_it_has_come(margins: Margins, shape: Shape, step: Step) -> None:
    """In the interpreter that knows of semaphores: what is moved comes when it is waited for, no sooner; memory is NaN first."""
    params = pltpu.InterpretParams(detect_races=True, dma_execution_mode="on_wait", uninitialized_memory="nan")
    check(margins, shape, step, params)
    races = interpret_pallas_call.races
    assert races is not None and not races.races_found
