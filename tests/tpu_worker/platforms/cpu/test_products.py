"""The C++ matrix product against NumPy, and a row's bits against its company."""

import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from protocol.config import FloatType
from tests.margins import ROUNDOFF, TYPICAL, Margins, rounding_of_sums
from tests.tpu_worker.compiler import needs_compiler
from tests.tpu_worker.random_blocks import WITHOUT_OFFSET, inputs_of, random_blocks, steps_of
from tpu_worker import sampler
from tpu_worker.models.layers import Activation
from tpu_worker.platforms import xla
from tpu_worker.platforms.cpu import make_products
from tpu_worker.platforms.cpu import products as cpu
from tpu_worker.platforms.cpu.arena import Arena, process_arena
from tpu_worker.platforms.cpu.native import build
from tpu_worker.stacking import take
from tpu_worker.weights.blocks import BLOCK, BlockMatrix, concatenate, quantise

pytestmark = needs_compiler

F32 = npt.NDArray[np.float32]
SHAPES = [(64, 64), (1, 33), (100, 77), (48, 1), (192, 1536), (40, 700)]  # (out, in): whole panels, cut ones, several depth blocks
LARGE = 2.5  # times the root mean square of its row: such an input is not merely rounded (native/narrow.h)
WIDE = 256  # inputs: whole blocks of every kind
ROWS = [1, 2, 3, 4, 5, 6, 7, 13, 97, 200]  # every tile, and more than a block of rows


Kind = str  # f32, bf16, int8, or one of build.KINDS
ALL_KINDS: tuple[Kind, ...] = ("f32", "bf16", "int8", *build.KINDS)
KINDS: tuple[Kind, ...] = ("f32", "bf16", "int8", "Q4_1", "Q6_K")  # one of a scale for each block, one of several for eight


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def as_multiplied(x: npt.ArrayLike, kind: Kind = "bf16") -> npt.NDArray[np.float64]:
    """Inputs as this machine multiplies them."""
    values = np.asarray(x, np.float32)
    if kind == "f32" or not cpu.rounds_inputs():
        return values.astype(np.float64)
    rows, width = values.shape
    values = np.pad(values, ((0, 0), (0, -width % BLOCK)))
    halves = rounded(values)
    rest = rounded((values - halves).astype(np.float32))
    if kind == "bf16":
        pairs = np.abs(values).reshape(rows, -1, 2).max(axis=2)
        kept = pairs > LARGE * np.sqrt(np.sum(values.astype(np.float64) ** 2, axis=1, keepdims=True) / width)
    else:  # the largest of each block, by all but the last five bits of its magnitude, or the last of several
        magnitudes = (values.view(np.uint32) & 0x7FFFFFE0).reshape(rows, -1, BLOCK)
        largest = BLOCK - 1 - magnitudes[..., ::-1].argmax(axis=2)
        kept = np.arange(BLOCK // 2) == largest[..., None] // 2
    multiplied: npt.NDArray[np.float64] = halves + rest * np.repeat(kept.reshape(rows, -1), 2, axis=1)
    return multiplied[:, :width]


def rounded(weight: F32) -> npt.NDArray[np.float64]:
    return weight.astype(ml_dtypes.bfloat16).astype(np.float64)


def pack(weight: F32, kind: Kind = "bf16", gated: bool = False) -> cpu.PackedWeight | cpu.MixedWeight:
    """Of any kind; of those in blocks, another weight of this shape, with whole blocks of inputs."""
    if kind in build.KINDS:
        return cpu.pack(random_blocks(kind, *weight.shape), gated=gated)
    dtype: FloatType = "float32" if kind == "f32" else "bfloat16"
    return cpu.pack(weight, quantization="int8" if kind == "int8" else "auto", dtype=dtype, gated=gated)


def kept(weight: F32, kind: Kind) -> npt.NDArray[np.float64]:
    """The weight as `pack` keeps it."""
    if kind in ("f32", "bf16"):
        return weight.astype(np.float64) if kind == "f32" else rounded(weight)
    blocks = quantise(weight) if kind == "int8" else random_blocks(kind, *weight.shape)
    return blocks.values()[:, : weight.shape[1]].astype(np.float64)


linear = jax.jit(cpu.linear, static_argnames=("eps", "activation"))


def rounding(x: npt.ArrayLike, weight: F32, kind: Kind) -> npt.NDArray[np.float64]:
    """The error in the root mean square that float32 makes of a product: see `margins.rounding_of_sums`."""
    weights = kept(weight, kind)
    sizes = np.abs(weights)
    if kind in build.KINDS and kind not in WITHOUT_OFFSET:
        # Scales times quants, and minima times inputs, are summed apart. Quants are counted from up to 32 below zero, and from
        # another 128 where bf16 is multiplied.
        sizes += steps_of(kind, weights.astype(np.float32)) * (32 + (128 if cpu.rounds_inputs() else 0))
    return rounding_of_sums(as_multiplied(x, kind), sizes)


def wide_enough(kind: Kind, width: int) -> int:
    """Whole blocks of inputs."""
    return -(-width // inputs_of(kind)) * inputs_of(kind) if kind in build.KINDS else width


@pytest.mark.every_processor
@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_product(margins: Margins, kind: Kind, out: int, width: int) -> None:
    width = wide_enough(kind, width)
    weight = normal(0, out, width)
    packed = pack(weight, kind)
    for rows in (1, 3, 13, 200):
        x = normal(rows, rows, width)
        expected = as_multiplied(x, kind) @ kept(weight, kind).T
        margins.check_rounding(f"products with {kind}", linear(x, packed), expected, rounding(x, weight, kind))


@pytest.mark.every_processor
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q6_K", "MXFP4", "INT4_128", "INT8_32", "FP8_32"])
@pytest.mark.parametrize("gated", [False, True])
def test_blocks_with_inputs_that_are_not_rounded(margins: Margins, kind: Kind, gated: bool) -> None:
    """Of float32: an error is that of sums, and of what quants are counted from, on every processor."""
    blocks = random_blocks(kind, 96, 512)
    packed = cpu.pack(blocks, dtype="float32", gated=gated)
    weights = blocks.values().astype(np.float64)
    offsets = 0.0 if kind in WITHOUT_OFFSET else steps_of(kind, blocks.values()) * 32
    for rows in (1, 3, 13):
        x = normal(rows, rows, 512)
        expected = x.astype(np.float64) @ weights.T
        typical = rounding_of_sums(x.astype(np.float64), np.abs(weights) + offsets)
        if gated:
            (gate, up), (in_gate, in_up) = np.split(expected, 2, axis=1), np.split(typical, 2, axis=1)
            active = textbook("silu", gate)  # which rises by at most 1.1
            both = 1.1 * in_gate * np.abs(up) + in_up * np.abs(active) + 3 * ROUNDOFF * np.abs(active * up) + 1e-30
            margins.check_rounding("gated blocks in float32", linear(x, packed, activation="silu"), active * up, both)
        else:
            margins.check_rounding(f"blocks of {kind} in float32", linear(x, packed), expected, typical)


@pytest.mark.every_processor
@pytest.mark.parametrize("kind", build.KINDS)
def test_blocks_stand_for_what_they_are_dequantised_to(margins: Margins, kind: Kind) -> None:
    """Multiplied by 1 they are what `values` makes of them, but for a few roundings of what quants are counted from."""
    blocks = random_blocks(kind, 70, 512)
    expected = blocks.values()
    found = np.asarray(linear(np.eye(512, dtype=np.float32), cpu.pack(blocks))).T
    counted_from = 32 + (128 if cpu.rounds_inputs() else 0)
    offsets = 0.0 if kind in WITHOUT_OFFSET else counted_from * steps_of(kind, expected).max()
    bound = 3 * ROUNDOFF * (np.abs(expected).max() + offsets)
    margins.check(f"weights in blocks of {kind}", np.abs(found - expected).max().item(), bound.item())


@pytest.mark.every_processor
@pytest.mark.parametrize(("out", "width"), [(100, 77), (192, 1536)])
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_row_has_the_same_bits_in_any_company(kind: Kind, out: int, width: int) -> None:
    width = wide_enough(kind, width)
    packed, gated = pack(normal(0, out, width), kind), pack(normal(1, out, width), kind, gated=True)
    x, norm, residual = normal(2, max(ROWS), width), normal(3, width), normal(4, max(ROWS), out // 2)
    plain = np.asarray(linear(x, packed))
    fuse = partial(linear, weight=gated, activation="silu", norm=norm, eps=1e-5)
    fused = np.asarray(fuse(x, residual=residual))
    for rows in ROWS:
        first = max(ROWS) - rows  # another place in the batch for each row
        np.testing.assert_array_equal(linear(x[first:], packed), plain[first:])
        np.testing.assert_array_equal(fuse(x[first:], residual=residual[first:]), fused[first:])


@pytest.mark.slow
def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    code = """
import hashlib, jax, numpy as np
from tests.tpu_worker.platforms.cpu.test_products import ALL_KINDS, cpu, pack
random = np.random.default_rng(0)
kinds = [(kind, gated) for kind in ALL_KINDS for gated in (False, True)]
weights = [(pack(random.standard_normal((1536, 512), np.float32), *kind), "silu" if kind[1] else None) for kind in kinds]
linear = jax.jit(cpu.linear, static_argnames=("eps", "activation"))
digest = hashlib.sha256()
for rows in (3, 64, 130, 400):
    x = random.standard_normal((rows, 512), np.float32)
    for weight, activation in weights:
        out = linear(x, weight, activation=activation, norm=np.ones(512, np.float32), eps=1e-5)
        digest.update(np.asarray(out).tobytes())
print(digest.hexdigest())
"""

    def digest(threads: int) -> str:
        environment = {**os.environ, "NPROC": str(threads)}  # of XLA's pool
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout

    assert digest(1) == digest(7) != ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_stacked_weights(kind: Kind) -> None:
    weights, norms, x = normal(0, 3, 48, WIDE), normal(1, 3, WIDE), normal(2, 7, WIDE)
    alone = [pack(weight, kind) for weight in weights]
    stacks = jax.tree.map(lambda *parts: jnp.stack(parts), *alone)
    for index, packed in enumerate(alone):
        layer, norm = take(stacks, index), take(jnp.asarray(norms), index)
        expected = linear(x, packed, norm=norms[index], eps=1e-5)
        np.testing.assert_array_equal(linear(x, layer, norm=norm, eps=1e-5), expected)
    for bad in (take(stacks, 3), take(stacks, -1)):
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="no such layer"):
            linear(x, bad).block_until_ready()
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="not those of the weights"):
        linear(x, take(stacks, 2), norm=norms[2]).block_until_ready()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_read(kind: Kind) -> None:
    packed = pack(normal(0, 48, WIDE), kind)
    x = normal(1, 16, WIDE)
    whole = np.asarray(linear(x, packed))
    for rows in (0, 1, 5, 16):
        poisoned = x.copy()
        poisoned[rows:] = np.nan
        out = np.asarray(linear(poisoned, packed, num_rows=jnp.int32(rows)))
        np.testing.assert_array_equal(out[:rows], whole[:rows])


@pytest.mark.parametrize("width", [1, 15, 16, 77, 4096, 49152])
def test_greedy(width: int) -> None:
    """The first of the largest; -1 where one is NaN or +inf, or nothing is finite; padding is never read."""
    logits = np.round(normal(0, 12, width) * 4)  # with many equals
    logits[1, width // 2] = np.nan
    logits[2, width - 1] = np.inf
    logits[3] = -np.inf
    logits[4, : width - 1] = -np.inf
    logits[5] = 7.0
    logits[10:] = np.nan
    tokens = jax.jit(cpu.greedy)(logits, jnp.int32(10))
    np.testing.assert_array_equal(tokens[:10], sampler.greedy(jnp.asarray(logits))[:10])
    np.testing.assert_array_equal(tokens[10:], 0)
    assert tokens[1] == tokens[2] == tokens[3] == -1
    assert (tokens[4], tokens[5]) == (width - 1, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such options")
def test_freed_memory_is_kept() -> None:
    """A step's buffers are freed and wanted again: once they were touched, the system is not asked for their pages anew."""
    code = """
import resource, numpy as np
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.cpu.memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(48 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # of 12288 pages


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_stays_alone(kind: Kind) -> None:
    packed = pack(normal(0, 48, WIDE), kind)
    x = normal(1, 8, WIDE)
    expected = np.asarray(linear(x, packed))
    x[3, 7] = np.nan
    out = np.asarray(linear(x, packed))
    assert np.isnan(out[3]).all()
    np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(expected, 3, 0))


@pytest.mark.every_processor
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("kind", KINDS)
def test_norm_gate_and_residual(margins: Margins, kind: Kind, activation: Activation) -> None:
    out, width, eps = 56, wide_enough(kind, 96), 1e-5
    weight = normal(0, 2 * out, width) * np.float32(0.2)
    x, norm, residual = normal(1, 9, width), normal(2, width), normal(3, 9, out)
    packed = pack(weight, kind, gated=True)
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + eps) * norm
    gate, up = np.split(as_multiplied(normed, kind) @ kept(weight, kind).T, 2, axis=1)
    active = textbook(activation, gate)
    expected = active * up + residual
    found = np.asarray(linear(x, packed, activation=activation, norm=norm, eps=eps, residual=residual))
    in_gate, in_up = np.split(rounding(normed, weight, kind), 2, axis=1)
    # An activation is hardly steeper than 1. Norm, exponential, quotient and sum are a few roundings more.
    rest = 3 * ROUNDOFF * (np.abs(gate * up) + np.abs(active * up) + np.abs(residual))
    typical = in_gate * np.abs(up) + in_up * np.abs(active) + rest
    # Where inputs are rounded, a norm that differs in its last bit may round one the other way, about once in 2^15 times: one of
    # these rows may be off by a step of bf16 in one input.
    rows = np.argsort(np.max(np.abs(found - expected) / typical, axis=1))[: -1 if cpu.rounds_inputs() else None]
    margins.check_rounding(f"gate, norm and residual with {kind}", found[rows], expected[rows], typical[rows])
    step = 2**-7 * np.abs(normed).max() * np.abs(weight).max()
    largest = np.max(np.abs(found - expected) / (np.abs(up) + np.abs(active) + 1)).item()
    margins.check(f"gate, norm and residual with {kind}: an input that rounds the other way", largest, step)


def textbook(activation: Activation, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    if activation == "silu":
        share = 1 / (1 + np.exp(np.minimum(-x, 700)))
    else:
        share = (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2
    return x * share


@pytest.mark.every_processor
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_far_out(margins: Margins, activation: Activation) -> None:
    packed = cpu.pack(np.array([[1.0], [1.0]], np.float32), gated=True)  # activation(x) * x
    x = np.array([[-1e15], [-1e4], [-100.0], [-20.0], [-0.5], [0.0], [0.5], [20.0], [1e4], [1e15]], np.float32)
    inputs = as_multiplied(x)[:, 0]
    expected = textbook(activation, inputs) * inputs
    # A rounding of the exponent moves the exponential by as much as the exponent is large; below e^-87 it is no normal number.
    typical = TYPICAL * ROUNDOFF * np.abs(expected) * (4 + np.minimum(np.abs(inputs), 87)) + 1e-35
    margins.check_rounding("activations far out", linear(x, packed, activation=activation)[:, 0], expected, typical)


def test_a_gate_has_an_activation_and_nothing_else_has() -> None:
    x, weight = jnp.asarray(normal(0, 4, 64)), normal(1, 64, 64)
    for products in (make_products("none"), xla.PRODUCTS):
        plain, gated = (products.pack(weight, products.allocate, gated=gated) for gated in (False, True))
        with pytest.raises(ValueError, match="activation silu of a weight that is not gated"):
            products.linear(x, plain, activation="silu")
        with pytest.raises(ValueError, match="activation None of a weight that is gated"):
            products.linear(x, gated)


def test_int8_is_within_half_a_step() -> None:
    weight = normal(0, 32, 200)
    weight[5], weight[6, :BLOCK] = 0, 0
    weight[7] = 1e-5  # of which float16 holds the scale with a few bits only
    blocks = quantise(weight)
    assert blocks.shape == (32, 224)
    assert not blocks.values()[:, 200:].any()
    steps = np.abs(np.pad(weight, ((0, 0), (0, 24)))).reshape(32, 7, BLOCK).max(axis=2) / 127
    error = np.abs(blocks.values()[:, :200] - weight)
    assert (error <= np.repeat(steps, BLOCK, axis=1)[:, :200] * 0.51 + 127 * 2**-25).all()
    assert not blocks.values()[5].any()


@pytest.mark.every_processor
def test_every_scale_of_float16_is_kept() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 4)
    finite = np.where(np.isfinite(halves), halves, np.float16(0))
    x = np.zeros((4, 4 * BLOCK), np.float32)
    x[np.arange(4), np.arange(4) * BLOCK] = 1  # each row asks for one of the blocks
    eight = np.zeros((len(finite), 4, 34), np.uint8)  # scale, quants
    eight[..., :2], eight[..., 2] = finite[..., None].view(np.uint8), 1
    four = np.zeros((len(finite), 4, 20), np.uint8)  # scale, minimum, quants
    four[..., 2:4] = finite[..., None].view(np.uint8)
    for kind, blocks in (("Q8_0", eight), ("Q4_1", four)):
        packed = cpu.pack(BlockMatrix(kind, blocks.reshape(len(finite), -1)))
        np.testing.assert_array_equal(np.asarray(linear(x, packed)).T, finite.astype(np.float32))


def mixture(*kinds: str) -> list[BlockMatrix]:
    return [random_blocks(kind, rows, 512, seed) for seed, (kind, rows) in enumerate(zip(kinds, (100, 40, 7, 65), strict=False))]


@pytest.mark.every_processor
@pytest.mark.parametrize(
    "kinds", [("Q4_K", "Q6_K"), ("Q5_0", "Q8_0", "Q4_1"), ("Q6_K", "Q5_K", "Q4_0", "Q5_1"), ("INT4_128", "INT8_32", "FP8_128")]
)
def test_parts_of_several_kinds(kinds: tuple[str, ...]) -> None:
    """One call yields what calls for the parts do, bit by bit; the outputs of a part need fill no panel."""
    parts = mixture(*kinds)
    x, norm, residual = normal(0, 13, 512), normal(1, 512), normal(2, 13, sum(part.shape[0] for part in parts))
    alone = np.concatenate([linear(x, cpu.pack(part), norm=norm, eps=1e-5) for part in parts], axis=1)
    packed = cpu.pack(parts)
    assert isinstance(packed, cpu.MixedWeight)
    assert tuple(part.kind for part in packed.parts) == kinds
    np.testing.assert_array_equal(linear(x, packed, norm=norm, eps=1e-5), alone)
    np.testing.assert_array_equal(linear(x, packed, norm=norm, eps=1e-5, residual=residual), alone + residual)
    stacks = jax.tree.map(lambda array: jnp.stack([jnp.zeros_like(array), array]), packed)
    for rows in (1, 6, 13):
        found = linear(x[:rows], take(stacks, 1), norm=take(jnp.stack([norm, norm]), 1), eps=1e-5)
        np.testing.assert_array_equal(found, alone[:rows])


@pytest.mark.every_processor
def test_gates_of_another_kind_than_what_they_gate(margins: Margins) -> None:
    gate, up = random_blocks("Q4_K", 100, 512, 1), random_blocks("Q6_K", 100, 512, 2)
    x, residual = normal(0, 200, 512), normal(1, 200, 100)
    gates, ups = (np.asarray(linear(x, cpu.pack(part)), np.float64) for part in (gate, up))
    packed = cpu.pack([gate, up], gated=True)
    found = np.asarray(linear(x, packed, activation="silu", residual=residual))
    active = textbook("silu", gates)
    typical = ROUNDOFF * (3 * np.abs(active * ups) + np.abs(residual)) + 1e-30
    margins.check_rounding("gates of another kind", found, active * ups + residual, typical)
    for rows in (1, 5):
        np.testing.assert_array_equal(linear(x[:rows], packed, activation="silu", residual=residual[:rows]), found[:rows])


def test_parts_that_make_no_weight_are_refused() -> None:
    parts = mixture("Q4_K", "Q6_K", "Q4_0", "Q5_1")
    with pytest.raises(ValueError, match="4 kinds of blocks in a weight"):
        cpu.pack(parts, gated=True)
    with pytest.raises(ValueError, match="2 kinds of blocks in a weight"):
        cpu.pack(parts[:2], gated=True)  # a gate of other size
    with pytest.raises(ValueError, match="5 kinds of blocks in a weight"):
        cpu.pack([*parts, parts[0]])
    with pytest.raises(ValueError, match="no rows in blocks of Q4_K"):
        BlockMatrix("Q4_K", np.zeros((4, 143), np.uint8))


@pytest.mark.parametrize("kind", build.KINDS)
@pytest.mark.parametrize("gated", [False, True])
def test_blocks_become_bf16_as_their_values_do(kind: str, gated: bool) -> None:
    blocks = random_blocks(kind, 70, 256)
    expected = cpu.pack(blocks.values(), gated=gated)
    assert isinstance(expected, cpu.PackedWeight)
    for weight in (blocks, [blocks]):
        packed = cpu.pack(weight, quantization="none", gated=gated)
        assert isinstance(packed, cpu.PackedWeight)
        np.testing.assert_array_equal(packed.panels, expected.panels)


def test_rows_of_blocks() -> None:
    four, six = random_blocks("Q4_K", 12, 256), random_blocks("Q6_K", 12, 256)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(four.take(order).values(), four.values()[order])
    assert concatenate([four]) == (four,)
    kinds = [(part.kind, part.shape[0]) for part in concatenate([four, four.take(order), six, four])]
    assert kinds == [("Q4_K", 24), ("Q6_K", 12), ("Q4_K", 12)]
    both = concatenate([four, four.take(order)])[0]
    np.testing.assert_array_equal(both.values(), np.concatenate([four.values(), four.values()[order]]))


def test_weights_round_to_the_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 48 * 40, np.uint32)
    bits[:64] = (bits[:64] & 0xFFFF0000) | 0x8000  # ties
    weight = bits.view(np.float32).reshape(48, 40)
    weight[~np.isfinite(weight) | (np.abs(weight) > 1e30) | (np.abs(weight) < 1e-30)] = 0.0
    expected = rounded(weight).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(linear(np.eye(40, dtype=np.float32), cpu.pack(weight))).T, expected)


def test_all_float_types_pack_alike() -> None:
    weight = normal(0, 20, 12).astype(ml_dtypes.bfloat16)
    panels = cpu.pack(weight).panels  # type: ignore[union-attr]
    for same in (weight.astype(np.float32), weight.astype(np.float64), weight.astype(np.float32)[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(cpu.pack(same).panels, panels)  # type: ignore[union-attr]


def test_arrays_of_an_arena_are_apart_and_aligned() -> None:
    arena = Arena()
    arrays = [arena.zeros(shape, np.uint16) for shape in ((3, 5), (1,), (40 << 20,), (7, 11))]  # the third takes a chunk of its own
    for value, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        assert not array.any()
        array[...] = value
    assert [np.unique(array[:100]).tolist() for array in arrays] == [[0], [1], [2], [3]]


def test_packed_weights_are_not_copied() -> None:
    shared = process_arena()
    before = shared.zeros((64,), np.uint8).ctypes.data
    panels = pack(normal(0, 32, 64)).panels  # type: ignore[union-attr]
    after = shared.zeros((64,), np.uint8).ctypes.data
    assert isinstance(panels, jax.Array)
    assert after < before or before < panels.unsafe_buffer_pointer() < after  # unless a new chunk was begun


def test_a_weight_that_does_not_fit_is_refused() -> None:
    for kind in KINDS:
        packed = pack(normal(0, 16, WIDE), kind)
        assert isinstance(packed, cpu.PackedWeight)
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="not packed for"):
            linear(normal(1, 2, WIDE - 1), packed).block_until_ready()
        of_another_machine = replace(packed, panels=jnp.asarray(packed.panels)[..., :-1])
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="not packed for"):
            linear(normal(1, 2, WIDE), of_another_machine).block_until_ready()
    with pytest.raises(ValueError, match="gate rows"):
        cpu.pack(normal(0, 3, 4), gated=True)
