"""The products of experts on every platform, against the reference, and a row's bits against its company."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from tests.margins import ROUNDOFF, TYPICAL, Margins
from tests.tpu_worker.compiler import needs_compiler
from tpu_worker.models.layers import Activation, gated
from tpu_worker.platforms import reference, tpu, xla
from tpu_worker.platforms.cpu import make_products, make_xla_products
from tpu_worker.platforms.platform import Products
from tpu_worker.stacking import take
from tpu_worker.weights.scaled_rows import quantise_rows

F32 = npt.NDArray[np.float32]
EXPERTS, EACH, HIDDEN, MLP = 5, 2, 96, 52  # sizes that fill no panel

KINDS: dict[str, Callable[[], Products]] = {
    "C++": lambda: make_products("none"),
    "C++, float32": lambda: make_products("none", dtype="float32"),
    "C++, int8": lambda: make_products("int8"),
    "XLA's on the CPU": make_xla_products,
    "XLA's on the CPU, float32": lambda: make_xla_products("float32"),
    "XLA's on accelerators, float32": lambda: xla.make_products("float32"),
    "XLA's on accelerators": lambda: xla.PRODUCTS,
    "XLA's on accelerators, eight bits": lambda: xla.make_products(narrows_to="int8"),
    "in tiles on accelerators": lambda: tpu.PRODUCTS,
    "in tiles on accelerators, eight bits": lambda: tpu.make_products(narrows_to="fp8"),
}
every_kind = pytest.mark.parametrize("kind", [pytest.param(kind, marks=needs_compiler if "C++" in kind else ()) for kind in KINDS])


def round_bf16(x: npt.NDArray[Any]) -> F32:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


class Mixture:
    """Random weights of some experts, and what a platform and the reference make of rows with them."""

    def __init__(self, products: Products, *, biases: bool = False, activation: Activation = "silu", mlp: int = MLP) -> None:
        random = np.random.default_rng(0)
        self.products, self.activation = products, activation
        self.gate_up = round_bf16(random.standard_normal((EXPERTS, 2 * mlp, HIDDEN)) / HIDDEN**0.5 * 2)
        self.down = round_bf16(random.standard_normal((EXPERTS, HIDDEN, mlp)) / mlp**0.5)
        narrow = products.narrows_to
        gate_ups, downs = [*self.gate_up], [*self.down]
        if narrow is not None:
            gate_ups, downs = ([quantise_rows(weight, narrow) for weight in some] for some in (gate_ups, downs))
            self.gate_up, self.down = (np.stack([rows.values() for rows in some]) for some in (gate_ups, downs))
        self.biases: dict[str, Any] = {}
        if biases:
            self.biases["gate_up_bias"] = random.standard_normal((2 * EXPERTS, mlp)).astype(np.float32)
            self.biases["down_bias"] = random.standard_normal((EXPERTS, HIDDEN)).astype(np.float32)
        packed = {
            "gate_up": products.pack_experts(gate_ups.__getitem__, EXPERTS, np.zeros, gated=True),
            "down": products.pack_experts(downs.__getitem__, EXPERTS, np.zeros),
            **self.biases,
        }
        if products.stacks_layers:  # the second of two layers, the first of which must not be read
            packed = jax.tree.map(lambda array: jnp.stack([jnp.full_like(array, -1), jnp.asarray(array)]), packed)
            packed = take(packed, 1)
        self.packed = jax.tree.map(jnp.asarray, packed)
        self._run = jax.jit(functools.partial(products.experts, activation=activation), static_argnames="eps")

    def __call__(self, x: F32, chosen: npt.NDArray[Any], shares: F32, rows: int | None = None, **options: Any) -> F32:
        """Of the first `rows`; the others are poisoned."""
        rows = len(x) if rows is None else rows
        x, chosen = x.copy(), chosen.copy()
        x[rows:], chosen[rows:] = np.nan, 1 << 30
        return np.asarray(self._run(x, chosen, shares, num_rows=jnp.int32(rows), **self.packed, **options))[:rows]

    def expected(self, x: F32, chosen: npt.NDArray[Any], shares: F32) -> npt.NDArray[np.floating[Any]]:
        wide = [array.astype(np.float64) for array in (x, shares, self.gate_up, self.down)]

        def gates(gate: Any, up: Any) -> Any:
            return np.asarray(gated(self.activation, jnp.asarray(gate), jnp.asarray(up)), np.float64)

        return reference.experts(wide[0], chosen, wide[1], wide[2], wide[3], gates, **self.biases)


def draw(tokens: int, seed: int = 1) -> tuple[F32, npt.NDArray[np.int32], F32]:
    """Rows that bf16 holds, the experts that each chose, among them none of these, and shares."""
    random = np.random.default_rng(seed)
    x = round_bf16(random.standard_normal((tokens, HIDDEN)))
    chosen = np.array([random.permutation(EXPERTS + 1)[:EACH] for _ in range(tokens)], np.int32)
    return x, chosen, random.uniform(0.1, 1, (tokens, EACH)).astype(np.float32)


@pytest.mark.every_processor
@every_kind
@pytest.mark.parametrize("tokens", [1, 9, 150])
@pytest.mark.parametrize(("activation", "biases"), [("silu", False), ("clamped_swiglu", True)])
def test_agree_with_the_reference(margins: Margins, kind: str, tokens: int, activation: Activation, biases: bool) -> None:
    mixture = Mixture(KINDS[kind](), biases=biases, activation=activation)
    x, chosen, shares = draw(tokens)
    if activation == "clamped_swiglu":
        x *= 8  # some are clamped
    residual = np.random.default_rng(2).standard_normal((tokens, HIDDEN)).astype(np.float32)
    expected = mixture.expected(x, chosen, shares)
    found = mixture(x, chosen, shares, residual=residual) - residual
    # What is between the two products is rounded to bf16. Of weights in eight bits the step is a 127th of the largest of a block,
    # which is about two and a half times as large as the others. With float32 there are the roundings of sums of two products.
    size = float(np.sqrt(np.mean(expected**2)))
    step = 2.5 / 127 if "int8" in kind else 2**-8
    if "float32" in kind:
        step = 2 * ROUNDOFF * (1 + np.sqrt(HIDDEN / 2))
    margins.check_rounding(f"experts, {kind}", found, expected, TYPICAL * step * size)


@pytest.mark.every_processor
@every_kind
def test_a_row_has_the_same_bits_in_any_company(kind: str) -> None:
    products = KINDS[kind]()
    if "accelerators" in kind:
        pytest.skip("on accelerators they may depend on the bucket")
    mixture = Mixture(products, biases=True)
    norm = take(jnp.ones((2, HIDDEN)), 1) if products.stacks_layers else jnp.ones(HIDDEN)
    x, chosen, shares = draw(300)
    whole = mixture(x, chosen, shares, norm=norm, eps=1e-5)
    for rows in ([7], [250, 7], [7, 8, 9, 200], list(range(100))):
        np.testing.assert_array_equal(mixture(x[rows], chosen[rows], shares[rows], norm=norm, eps=1e-5), whole[rows])
    np.testing.assert_array_equal(mixture(x, chosen, shares, rows=31, norm=norm, eps=1e-5), whole[:31])


@every_kind
def test_an_expert_that_is_not_here_counts_nothing(kind: str) -> None:
    mixture = Mixture(KINDS[kind](), biases=True)
    x, chosen, shares = draw(12)
    nowhere = np.where(np.arange(24).reshape(12, 2) % 3 == 0, -1, chosen)
    nowhere[5] = EXPERTS
    residual = np.ones((12, HIDDEN), np.float32)
    found = mixture(x, nowhere, shares, residual=residual)
    np.testing.assert_array_equal(found[5], residual[5])
    assert np.abs(found - residual - mixture.expected(x, nowhere, shares)).max() < 0.2


@pytest.mark.every_processor
@every_kind
def test_scores_are_not_rounded(kind: str) -> None:
    """Two experts whose scores differ by less than bf16 can tell are told apart, in any company."""
    products, random = KINDS[kind](), np.random.default_rng(0)
    x, weight = (
        random.standard_normal((70, HIDDEN)).astype(np.float32),
        random.standard_normal((EXPERTS, HIDDEN)).astype(np.float32),
    )
    weight[1] = weight[0] * np.float32(1 + 2**-14)
    norm = random.uniform(0.5, 2, HIDDEN).astype(np.float32)
    operands: Any = [jnp.asarray(array) for array in (weight, norm)]
    if products.stacks_layers:
        operands = take([array[None] for array in operands], 0)
    run = jax.jit(lambda x, rows: products.scores(x, operands[0], num_rows=rows, norm=operands[1], eps=1e-5))
    found = np.asarray(run(x, jnp.int32(70)))
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5) * norm
    expected = normed @ weight.T.astype(np.float64)
    assert np.abs(found - expected).max() < 1e-4
    assert (np.sign(found[:, 1] - found[:, 0]) == np.sign(expected[:, 1] - expected[:, 0])).mean() > 0.98
    if "accelerators" not in kind:
        np.testing.assert_array_equal(np.asarray(run(x[40:42], jnp.int32(2))), found[40:42])
        np.testing.assert_array_equal(np.asarray(run(x, jnp.int32(3)))[:3], found[:3])


@needs_compiler
def test_what_does_not_fit_is_refused() -> None:
    mixture = Mixture(make_products("none"))
    x, chosen, shares = draw(4)
    with pytest.raises(ValueError, match="not packed for inputs of width 95"):
        mixture(x[:, :95], chosen, shares)
    packed = {**mixture.packed, "down": mixture.packed["gate_up"]}
    operands = [jnp.asarray(array) for array in (x, chosen, shares)]
    with pytest.raises(ValueError, match="activation None of weights that are gated"):
        mixture.products.experts(*operands, **packed, activation="silu", num_rows=jnp.int32(4))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="biases are not those"):
        mixture(x, chosen, shares, down_bias=jnp.zeros((EXPERTS, 3)))
