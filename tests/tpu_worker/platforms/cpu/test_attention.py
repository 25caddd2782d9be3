"""The C++ attention against the reference, and a token's bits against batch, chunks and buckets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from protocol.config import FloatType
from tests.margins import ROUNDOFF, TYPICAL, Margins
from tests.tpu_worker.compiler import needs_compiler
from tpu_worker.platforms import reference
from tpu_worker.platforms.cpu import attention as cpu
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.stacking import Layer

pytestmark = needs_compiler

F32 = npt.NDArray[np.float32]
attend = jax.jit(cpu.attend_apart, static_argnames="spec", donate_argnames="cache")
attend_fused = jax.jit(cpu.attend, static_argnames="spec", donate_argnames="cache")


@dataclass(frozen=True)
class Sample:
    """Queries, keys and values of a sequence; keys and values hold what the cache holds, so that it loses nothing."""

    q: F32
    k: F32
    v: F32


@dataclass(frozen=True)
class Shape:
    heads: int = 9
    kv_heads: int = 3
    dim: int = 64
    block_size: int = 16
    dtype: FloatType = "bfloat16"  # of the cache


def layer(caches: jax.Array) -> Layer:
    return Layer(caches, jnp.int32(1))


def draw(shape: Shape, length: int, seed: int) -> Sample:
    random = np.random.default_rng(seed)
    kv = random.standard_normal((2, length, shape.kv_heads, shape.dim), np.float32).astype(shape.dtype).astype(np.float32)
    return Sample(random.standard_normal((length, shape.heads, shape.dim), np.float32) * 2, kv[0], kv[1])


def metadata(tables: npt.NDArray[np.int32], starts: Sequence[int], counts: Sequence[int]) -> AttentionMetadata:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return AttentionMetadata(*(jnp.asarray(array, jnp.int32) for array in (tables, starts, counts, offsets)))


def run(shape: Shape, sequences: list[Sample], cuts: list[list[int]], *, rows: int, tokens: int, **options: Any) -> list[F32]:
    """Computes the sequences side by side, each in the chunks that its cuts give, in a bucket of `rows` and `tokens`.

    Blocks lie in a random order; the cache, the padding of batch and tables, and what lies behind windows are poisoned.
    """
    width = max(-(-len(s.q) // shape.block_size) for s in sequences) + 1
    num_blocks = rows * width + 3
    blocks = np.random.default_rng(9).permutation(num_blocks).astype(np.int32)
    order, unused = blocks[: rows * width].reshape(rows, width), blocks[-1]
    window = options.get("sliding_window")
    caches = cpu.make_caches(3, num_blocks, shape.block_size, shape.kv_heads, shape.dim, dtype=shape.dtype)
    poison = 0x7FFF if shape.dtype == "bfloat16" else np.nan
    cache = layer(jnp.full_like(caches, poison))
    done, outs = [0] * len(sequences), [np.zeros_like(s.q) for s in sequences]
    chunks = [np.diff([0, *cut, len(s.q)]).tolist() for s, cut in zip(sequences, cuts, strict=True)]
    for step in range(max(map(len, chunks))):
        counts = [c[step] if step < len(c) else 0 for c in chunks] + [0] * (rows - len(sequences))
        tables = order.copy()
        for row in range(rows):
            end = done[row] + counts[row] if row < len(done) else 0
            tables[row, -(-end // shape.block_size) :] = -7
            if window and row < len(done):  # what no token from here on sees belongs to others
                tables[row, : max(0, done[row] + 1 - window) // shape.block_size] = unused
        q, k, v = (
            np.full((tokens, heads, shape.dim), np.nan, np.float32) for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        at = 0
        for row, sequence in enumerate(sequences):
            here, there = slice(at, at + counts[row]), slice(done[row], done[row] + counts[row])
            q[here], k[here], v[here] = sequence.q[there], sequence.k[there], sequence.v[there]
            at += counts[row]
        meta = metadata(tables, done + [0] * (rows - len(sequences)), counts)
        spec = AttentionSpec(shape.dim, shape.dim**-0.5, **{name: one for name, one in options.items() if name != "sinks"})
        out, cache = attend(q, k, v, cache, meta, spec, sinks_of(shape) if "sinks" in options else None)
        result = np.asarray(out)
        at = 0
        for row in range(len(sequences)):
            outs[row][done[row] : done[row] + counts[row]] = result[at : at + counts[row]]
            at += counts[row]
            done[row] += counts[row]
    np.testing.assert_array_equal(np.asarray(cache.stack)[[0, 2]], poison)  # the layers beside it
    np.testing.assert_array_equal(np.asarray(cache.stack)[1, unused], poison)
    return outs


def sinks_of(shape: Shape) -> F32:
    return np.linspace(-2, 6, shape.heads, dtype=np.float32)


def expected(shape: Shape, sequence: Sample, **options: Any) -> F32:
    length = len(sequence.q)
    if "sinks" in options:
        options["sinks"] = sinks_of(shape)
    blocks = -(-length // shape.block_size)
    empty = np.zeros((2, blocks, shape.block_size, shape.kv_heads, shape.dim), np.float32)
    table, start, count = np.arange(blocks, dtype=np.int32)[None], np.zeros(1, np.int32), np.array([length], np.int32)
    out, _ = reference.attend(sequence.q, sequence.k, sequence.v, empty, table, start, count, scale=shape.dim**-0.5, **options)
    return out


SHAPES = [
    Shape(),
    Shape(heads=4, kv_heads=4, dim=96, block_size=32),
    Shape(heads=8, kv_heads=1, dim=128, block_size=48),
    Shape(heads=2, kv_heads=1, dim=80, block_size=128),
    Shape(heads=6, kv_heads=2, dim=48, block_size=32, dtype="float32"),
]


@pytest.mark.parametrize(
    "options",
    [{}, {"sliding_window": 37}, {"soft_cap": 5.0}, {"sliding_window": 1, "soft_cap": 2.0}, {"sinks": True, "sliding_window": 37}],
    ids=str,
)
@pytest.mark.every_processor
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_reference(margins: Margins, shape: Shape, options: dict[str, Any]) -> None:
    sequences = [draw(shape, length, length) for length in (1, 16, 65, 150)]
    outs = run(shape, sequences, [[], [15], [64], [17, 80, 149]], rows=6, tokens=240, **options)
    # Scores are sums of products that come to about 2; weights, and so the output, are wrong by as much as scores are.
    typical = TYPICAL * ROUNDOFF * (2 * (shape.dim / 2) ** 0.5 + 2)
    for sequence, out in zip(sequences, outs, strict=True):
        margins.check_rounding("attention", out, expected(shape, sequence, **options), typical)


@pytest.mark.every_processor
@pytest.mark.parametrize("options", [{}, {"sliding_window": 37, "soft_cap": 5.0}, {"sinks": True}], ids=str)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], SHAPES[4]], ids=str)
def test_a_token_has_the_same_bits_in_any_batch_chunk_and_bucket(shape: Shape, options: dict[str, Any]) -> None:
    length = 150
    sequence, others = draw(shape, length, 0), [draw(shape, n, n) for n in (3, 70, 130)]
    whole = run(shape, [sequence], [[]], rows=1, tokens=length, **options)[0]
    one_by_one = list(range(100, length))
    for cuts in ([1, 2, 3], [16, 48, 112], [63, 64, 65, 129], one_by_one):
        outs = run(shape, [*others, sequence], [[], [33], [5, 6, 90], cuts], rows=8, tokens=320, **options)
        np.testing.assert_array_equal(outs[-1], whole)


@pytest.mark.every_processor
def test_fused_rotates_as_it_should(margins: Margins) -> None:
    shape, length, rotary = Shape(), 70, 32  # a head whose second half is not rotated
    random = np.random.default_rng(0)
    qkv = random.standard_normal((length, (shape.heads + 2 * shape.kv_heads) * shape.dim), np.float32)
    angles = np.arange(length)[:, None] / 100.0 ** (np.arange(rotary // 2) / (rotary // 2))
    rope = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    heads = qkv.reshape(length, -1, shape.dim)
    a, b, rest = np.split(heads, [rotary // 2, rotary], axis=2)
    cos, sin = np.split(rope[:, None], 2, axis=2)
    rotated = np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=2)
    q, k, v = rotated[:, : shape.heads], rotated[:, shape.heads : -shape.kv_heads], heads[:, -shape.kv_heads :]
    blocks = -(-length // shape.block_size)
    meta = metadata(np.arange(blocks, dtype=np.int32)[None], [0], [length])
    empty = jnp.zeros(cpu.make_caches(2, blocks, shape.block_size, shape.kv_heads, shape.dim).shape, jnp.uint16)
    plain, plain_cache = attend(q, k, v, layer(empty.copy()), meta, AttentionSpec(shape.dim, 0.125))
    fused, fused_cache = attend_fused(qkv, layer(empty.copy()), meta, rope, AttentionSpec(shape.dim, 0.125))
    plain = np.asarray(plain).reshape(length, -1)
    # A fused multiply-add may round a key to the other bf16, about once in 2^15 times. That moves a score by a step of bf16 of a
    # product of two numbers of up to 4, over 8; and an output by that share of what values differ, of up to 4, at most a quarter.
    errors = np.abs(np.asarray(fused, np.float64) - plain)
    differing = (np.asarray(fused_cache.stack) != np.asarray(plain_cache.stack)).mean().item()
    margins.check("rotated keys that round the other way", differing, 1e-3)
    margins.check("attention to rotated keys: typical error", np.sqrt(np.mean(errors**2)).item(), 1e-4)
    margins.check("attention to rotated keys: largest error", errors.max().item(), 2**-7 * 4 * 4 / 8 * 4 / 4)
    unrotated, _ = attend_fused(qkv, layer(empty.copy()), meta, None, AttentionSpec(shape.dim, 0.125))
    assert np.abs(np.asarray(unrotated) - plain).max() > 0.1


def test_a_broken_request_stays_alone() -> None:
    shape = Shape()
    good, bad = draw(shape, 40, 0), draw(shape, 40, 1)
    bad.k[20], bad.v[21] = np.nan, np.inf
    outs = run(shape, [good, bad], [[], [30]], rows=2, tokens=80)
    np.testing.assert_array_equal(outs[0], run(shape, [good], [[]], rows=1, tokens=40)[0])
    assert np.isfinite(outs[1][:20]).all()
    assert not np.isfinite(outs[1][21:]).any()


def test_the_cache_is_updated_in_place() -> None:
    caches = cpu.make_caches(2, 4, 16, 3, 64)
    address, before = caches.unsafe_buffer_pointer(), np.array(caches)  # whatever the memory held
    sequence = draw(Shape(), 5, 0)
    meta = metadata(np.array([[2]], np.int32), [0], [5])
    _, cache = attend(sequence.q, sequence.k, sequence.v, layer(caches), meta, AttentionSpec(64, 0.125))
    assert cache.stack.unsafe_buffer_pointer() == address
    after = np.asarray(cache.stack)
    assert (after[1, 2] != before[1, 2]).any()
    assert (after[1, [0, 1, 3]] == before[1, [0, 1, 3]]).all()
    assert (after[0] == before[0]).all()


@pytest.mark.parametrize("index", [-1, 2])
def test_a_layer_that_does_not_exist_is_refused(index: int) -> None:
    sequence = draw(Shape(), 5, 0)
    cache = Layer(cpu.make_caches(2, 4, 16, 3, 64), jnp.int32(index))
    meta = metadata(np.array([[2]], np.int32), [0], [5])
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="no such layer"):
        jax.block_until_ready(attend(sequence.q, sequence.k, sequence.v, cache, meta, AttentionSpec(64, 0.125)))


@pytest.mark.parametrize(
    ("table", "start", "count", "reason"),
    [
        ([4], 0, 5, "block that does not exist"),
        ([-1], 0, 5, "block that does not exist"),
        ([0], 12, 5, "does not fit its block table"),
        ([0], -1, 5, "does not fit its block table"),
        ([0], 0, -1, "do not follow one another"),
    ],
)
def test_metadata_that_leads_astray_is_refused(table: list[int], start: int, count: int, reason: str) -> None:
    sequence = draw(Shape(), 5, 0)
    meta, cache = metadata(np.array([table], np.int32), [start], [count]), layer(cpu.make_caches(2, 4, 16, 3, 64))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=reason):
        jax.block_until_ready(attend(sequence.q, sequence.k, sequence.v, cache, meta, AttentionSpec(64, 0.125)))


def test_sizes() -> None:
    assert cpu.supports(16, 64)
    assert not cpu.supports(8, 64)
    assert not cpu.supports(16, 72)
