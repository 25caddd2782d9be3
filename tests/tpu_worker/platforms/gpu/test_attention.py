"""The GPU's attention in Pallas' interpreter, against the reference."""

import functools
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from protocol.codec import Float32Array
from tests.margins import TYPICAL, Margins
from tests.tpu_worker.platforms.tpu.test_attention import (
    DECODE,
    LONG,
    LONGEST,
    MIXED,
    ROUNDOFF,
    Problem,
    Shape,
    Step,
    bits,
    draw,
    draw_step,
    operands,
    refer,
)
from tpu_worker.platforms.gpu.attention import Attend, prepare
from tpu_worker.platforms.gpu.singles import Splits, most_splits
from tpu_worker.platforms.metadata import AttentionMetadata


def pack_cache(cache: Float32Array) -> jax.Array:
    """[2, NB, page, KH, D] as the platform keeps it."""
    return jnp.asarray(cache.astype(ml_dtypes.bfloat16).transpose(1, 3, 0, 2, 4))


@functools.cache
def program(shape: Shape, tokens: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def attend(qkv: jax.Array, cache: jax.Array, meta: AttentionMetadata, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return Attend(interpret=True)(qkv, cache, prepare(meta, tokens, shape.page), None, shape.spec, sinks)

    return jax.jit(attend)


def run(shape: Shape, problem: Problem) -> tuple[Float32Array, jax.Array]:
    """(output [T, H, D], cache)."""
    qkv, meta = operands(problem)
    out, cache = program(shape, len(qkv))(qkv, pack_cache(problem.cache), meta, problem.sinks)
    return np.asarray(out).reshape(problem.q.shape), cache


def check(margins: Margins, shape: Shape, step: Step, seed: int = 0, longest: int | None = None) -> None:
    problem = draw(shape, step, seed, longest)
    expected, cache = refer(shape, problem)
    out, written = run(shape, problem)
    # Weights are rounded before values of size 1 are weighted, and so is what comes of it.
    if problem.used:
        margins.check_rounding("GPU attention", out[: problem.used], expected[: problem.used], TYPICAL * ROUNDOFF * 2**0.5)
    assert not out[problem.used :].any()
    np.testing.assert_array_equal(bits(written), bits(pack_cache(cache)))  # nothing else has changed, NaN neither


# One row sees what is split among all programs that there may be, and one has a part of the last split.
FAR = Step(((2600, 1), (0, 1), (255, 1), (256, 1), (511, 1), (0, 0)), 6)


@pytest.mark.parametrize(
    ("shape", "step"),
    [(Shape(8, 2, 64, 16, window=37, cap=5.0, sinks=True), MIXED), (Shape(7, 1, 128, 64), DECODE), (Shape(4, 1, 64, 128), FAR)],
    ids=["mixed", "decode", "splits"],
)
def test_agrees_with_the_reference(margins: Margins, shape: Shape, step: Step) -> None:
    check(margins, shape, step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "step"),
    [
        (Shape(8, 2, 64, 64), LONG),
        (Shape(8, 2, 64, 16, window=700, cap=5.0, sinks=True), FAR),
        (Shape(6, 3, 64, 32, window=21, sinks=True), DECODE),
        (Shape(9, 3, 64, 64, cap=3.0), MIXED),
        (Shape(2, 2, 16, 16, window=129, sinks=True), LONG),
        (Shape(5, 1, 80, 24, window=1), MIXED),  # neither heads nor blocks are powers of two
        (Shape(4, 4, 96, 128), MIXED),
        (Shape(16, 2, 128, 128), MIXED),
        (Shape(32, 1, 64, 16), MIXED),  # more queries of a head of keys than a tile needs
        (Shape(7, 1, 128, 64, window=37, cap=5.0, sinks=True), LONG),
        (Shape(4, 1, 256, 128, window=300), LONG),
        (Shape(2, 2, 256, 128, cap=3.0), DECODE),
        (Shape(20, 20, 128, 16), DECODE),
        (Shape(4, 2, 64, 16), Step(((20, 1), (5, 1), (0, 0)), 20)),
        (Shape(4, 2, 64, 16), Step(((20, 9), (0, 11), (0, 0)), 20)),
        (Shape(4, 2, 64, 16), Step(((0, 0), (0, 0)), 32)),
        (Shape(4, 2, 64, 16), Step(((0, 0), (0, 0)), 2)),
    ],
    ids=str,
)
def test_agrees_with_the_reference_in_every_shape(margins: Margins, shape: Shape, step: Step) -> None:
    check(margins, shape, step)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [8, 75])
@pytest.mark.parametrize("shape", [Shape(4, 2, 64, 16, window=40), Shape(3, 1, 128, 32)], ids=str)
def test_any_step(margins: Margins, shape: Shape, tokens: int) -> None:
    """As many tokens as rows, and more: rows of any length that begin anywhere, some of them padding."""
    rng = np.random.default_rng(tokens)
    for seed in range(30):
        check(margins, shape, draw_step(rng, tokens), seed=seed, longest=LONGEST)


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 90])
def test_neighbours_and_chunks_change_no_bit(window: int | None) -> None:
    """Of a row alone and between others, and of a prompt in one piece and behind a part of it."""
    shape = Shape(4, 2, 64, 16, window=window)
    together = draw(shape, Step(((300, 1), (0, 150), (40, 1), (0, 0)), 160))
    found = run(shape, together)[0]
    alone = draw(shape, Step(((0, 0), (0, 0), (0, 0), (0, 0)), 160))
    for row, first in ((0, 0), (1, 1), (2, 151)):
        count = int(together.counts[row])
        counts = np.zeros(4, np.int32)
        counts[row] = count
        q, k, v = (np.concatenate([x[first : first + count], y[: 160 - count]]) for x, y in zip(
            (together.q, together.k, together.v), (alone.q, alone.k, alone.v), strict=True
        ))  # fmt: skip
        by_itself = replace(together, q=q, k=k, v=v, counts=counts)
        np.testing.assert_array_equal(run(shape, by_itself)[0][:count], found[first : first + count])
    # The last 83 tokens of the prompt, behind the others in the cache.
    cache = np.asarray(run(shape, together)[1].astype(jnp.float32)).transpose(2, 0, 3, 1, 4)
    cached, rest = 67, 83
    q, k, v = (np.concatenate([x[1 + cached : 151], y[: 160 - rest]]) for x, y in zip(
        (together.q, together.k, together.v), (alone.q, alone.k, alone.v), strict=True
    ))  # fmt: skip
    counts, starts = np.array([0, rest, 0, 0], np.int32), np.array([0, cached, 0, 0], np.int32)
    behind = replace(together, q=q, k=k, v=v, cache=cache, starts=starts, counts=counts)
    np.testing.assert_array_equal(run(shape, behind)[0][:rest], found[1 + cached : 151])


@pytest.mark.parametrize("window", [None, 1, 100, 5000])
@pytest.mark.parametrize("most", [8, 64])
@pytest.mark.parametrize("tile", [32, 64])
def test_splits_hold_what_is_seen_once(window: int | None, most: int, tile: int) -> None:
    splits = Splits(most, tile, window)
    for position in (0, 1, 63, 64, 255, 256, 257, 2047, 2048, 16383, 16384, 16385, 131071):
        number = int(splits.lengths(jnp.int32(position))[2])
        assert 1 <= number <= most
        spans = [splits.span(jnp.int32(position), jnp.int32(split)) for split in range(number)]
        assert int(spans[0].first) == (0 if window is None else max(0, position - window + 1))
        assert int(spans[-1].end) == position + 1
        assert all(int(one.end) == int(other.first) for one, other in pairwise(spans))
        assert all(int(span.first) < int(span.end) for span in spans)


@pytest.mark.parametrize(("tokens", "kv_heads", "most"), [(1, 8, 64), (4, 8, 32), (16, 8, 8), (256, 8, 8), (1, 1, 64)])
def test_small_steps_are_split_more(tokens: int, kv_heads: int, most: int) -> None:
    assert most_splits(tokens, kv_heads) == most
