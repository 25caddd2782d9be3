"""The C++ matrix product against NumPy, and a row's bits against its company."""

import os
import platform
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tpu_worker import sampler
from tpu_worker.matmul import cpu
from tpu_worker.native.memory import Arena, process_arena
from tpu_worker.stacking import take

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler")

F32 = npt.NDArray[np.float32]
SHAPES = [(64, 64), (1, 33), (100, 77), (48, 1), (192, 1536), (40, 700)]  # (out, in): whole panels, cut ones, several depth blocks
LARGE = 2.5  # times the root mean square of its row: such an input is not merely rounded (tpu_worker/native/gemm.h)
ROWS = [1, 2, 3, 4, 5, 6, 7, 13, 97, 200]  # every tile, and more than a block of rows


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def as_multiplied(x: npt.ArrayLike, kind: cpu.Kind = "bf16") -> npt.NDArray[np.float64]:
    """Inputs as this machine multiplies them."""
    values = np.asarray(x, np.float32)
    if kind != "bf16" or not cpu.rounds_inputs():
        return values.astype(np.float64)
    halves = rounded(values)
    rest = rounded((values - halves).astype(np.float32))
    pairs = np.pad(np.abs(values), ((0, 0), (0, values.shape[1] % 2))).reshape(len(values), -1, 2).max(axis=2)
    large = pairs > LARGE * np.sqrt(np.mean(values.astype(np.float64) ** 2, axis=1, keepdims=True))
    kept: npt.NDArray[np.float64] = halves + rest * np.repeat(large, 2, axis=1)[:, : values.shape[1]]
    return kept


def rounded(weight: F32) -> npt.NDArray[np.float64]:
    return weight.astype(ml_dtypes.bfloat16).astype(np.float64)


linear = jax.jit(cpu.linear, static_argnames="eps")


@pytest.mark.parametrize(("out", "width"), SHAPES)
def test_product(out: int, width: int) -> None:
    weight = normal(0, out, width)
    packed = cpu.pack(weight)
    for rows in (1, 3, 13, 200):
        x = normal(rows, rows, width)
        expected = as_multiplied(x) @ rounded(weight).T
        np.testing.assert_allclose(linear(x, packed), expected, rtol=1e-5, atol=1e-5 * width**0.5)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize(("out", "width"), [(100, 77), (192, 1536)])
def test_a_row_has_the_same_bits_in_any_company(kind: cpu.Kind, out: int, width: int) -> None:
    packed, gated = cpu.pack(normal(0, out, width), kind=kind), cpu.pack(normal(1, out, width), kind=kind, gated=True)
    x, norm, residual = normal(2, max(ROWS), width), normal(3, width), normal(4, max(ROWS), out // 2)
    plain = np.asarray(linear(x, packed))
    fused = np.asarray(linear(x, gated, norm=norm, eps=1e-5, residual=residual))
    for rows in ROWS:
        first = max(ROWS) - rows  # another place in the batch for each row
        np.testing.assert_array_equal(linear(x[first:], packed), plain[first:])
        np.testing.assert_array_equal(linear(x[first:], gated, norm=norm, eps=1e-5, residual=residual[first:]), fused[first:])


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    code = """
import hashlib, jax, numpy as np
from tpu_worker.matmul import cpu
random = np.random.default_rng(0)
weights = [cpu.pack(random.standard_normal((1536, 576), np.float32), gated=gated) for gated in (False, True)]
linear = jax.jit(cpu.linear, static_argnames="eps")
digest = hashlib.sha256()
for rows in (3, 64, 130, 400):
    x = random.standard_normal((rows, 576), np.float32)
    for weight in weights:
        digest.update(np.asarray(linear(x, weight, norm=np.ones(576, np.float32), eps=1e-5)).tobytes())
print(digest.hexdigest())
"""

    def digest(threads: int) -> str:
        environment = {**os.environ, "NPROC": str(threads)}  # of XLA's pool
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout

    assert digest(1) == digest(7) != ""


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_a_layer_of_stacked_weights(kind: cpu.Kind) -> None:
    weights, norms, x = normal(0, 3, 48, 40), normal(1, 3, 40), normal(2, 7, 40)
    alone = [cpu.pack(weight, kind=kind) for weight in weights]
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


def test_padding_is_never_read() -> None:
    packed = cpu.pack(normal(0, 48, 40))
    x = normal(1, 16, 40)
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
from tpu_worker.native.memory import keep_freed_memory
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


def test_a_row_that_is_not_finite_stays_alone() -> None:
    packed = cpu.pack(normal(0, 48, 40))
    x = normal(1, 8, 40)
    expected = np.asarray(linear(x, packed))
    x[3, 7] = np.nan
    out = np.asarray(linear(x, packed))
    assert np.isnan(out[3]).all()
    np.testing.assert_array_equal(np.delete(out, 3, 0), np.delete(expected, 3, 0))


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_norm_gate_and_residual(kind: cpu.Kind) -> None:
    out, width, eps = 56, 96, 1e-5
    weight = normal(0, 2 * out, width) * 0.2
    x, norm, residual = normal(1, 9, width), normal(2, width), normal(3, 9, out)
    packed = cpu.pack(weight, kind=kind, gated=True)
    kept = rounded(weight)
    if kind == "int8":
        steps = np.abs(weight).max(axis=1, keepdims=True) / 127
        kept = np.rint(weight / steps) * steps
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + eps) * norm
    gate, up = np.split(as_multiplied(normed, kind) @ kept.T, 2, axis=1)
    expected = gate / (1 + np.exp(-gate)) * up + residual
    # Where inputs are rounded, a norm that differs in its last bit may round the other way: half a step of bf16 in one input.
    tolerance = 2e-2 if kind == "bf16" and cpu.rounds_inputs() else 2e-5
    np.testing.assert_allclose(linear(x, packed, norm=norm, eps=eps, residual=residual), expected, rtol=tolerance, atol=tolerance)


def test_silu_far_out() -> None:
    packed = cpu.pack(np.array([[1.0], [1.0]], np.float32), gated=True)  # silu(x) * x
    x = np.array([[-1e4], [-100.0], [-20.0], [0.0], [20.0], [1e4]], np.float32)
    out = np.asarray(linear(x, packed))[:, 0]
    inputs = as_multiplied(x)[:, 0]
    np.testing.assert_allclose(out, inputs**2 / (1 + np.exp(np.minimum(-inputs, 700))), rtol=1e-5, atol=1e-30)


def test_int8_is_within_half_a_step() -> None:
    weight = normal(0, 32, 200)
    weight[5] = 0
    x = normal(1, 4, 200)
    packed = cpu.pack(weight, kind="int8")
    assert jnp.asarray(packed.panels).dtype == np.int8
    steps = np.abs(weight).max(axis=1) / 127
    error = np.abs(np.asarray(linear(x, packed)) - x @ weight.T)
    assert (error <= np.abs(x).sum(1, keepdims=True) * steps / 2 + 1e-4).all()
    assert not np.asarray(linear(x, packed))[:, 5].any()


def test_weights_round_to_the_nearest_even() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 48 * 40, np.uint32)
    bits[:64] = (bits[:64] & 0xFFFF0000) | 0x8000  # ties
    weight = bits.view(np.float32).reshape(48, 40)
    weight[~np.isfinite(weight) | (np.abs(weight) > 1e30) | (np.abs(weight) < 1e-30)] = 0.0
    expected = rounded(weight).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(linear(np.eye(40, dtype=np.float32), cpu.pack(weight))).T, expected)


def test_all_float_types_pack_alike() -> None:
    weight = normal(0, 20, 12).astype(ml_dtypes.bfloat16)
    panels = cpu.pack(weight).panels
    for same in (weight.astype(np.float32), weight.astype(np.float64), weight.astype(np.float32)[:, ::-1][:, ::-1]):
        np.testing.assert_array_equal(cpu.pack(same).panels, panels)


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
    panels = cpu.pack(normal(0, 32, 64)).panels
    after = shared.zeros((64,), np.uint8).ctypes.data
    assert isinstance(panels, jax.Array)
    assert after < before or before < panels.unsafe_buffer_pointer() < after  # unless a new chunk was begun


def test_a_weight_that_does_not_fit_is_refused() -> None:
    packed = cpu.pack(normal(0, 16, 32))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="not packed for"):
        linear(normal(1, 2, 31), packed).block_until_ready()
    with pytest.raises(ValueError, match="gate rows"):
        cpu.pack(normal(0, 3, 4), gated=True)
