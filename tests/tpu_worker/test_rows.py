"""A request's logits have the same bits in every bucket and chunking, and whoever shares its steps."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protocol.codec import Float32Array, Int32Array
from protocol.config import FloatType
from tpu_worker.inputs import StepInputs
from tpu_worker.kv_cache import make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.models.family import Model
from tpu_worker.models.llama import FAMILY
from tpu_worker.models.rope import Rope, rotary_table
from tpu_worker.models.spec import LayerSpec, ModelSpec, ParameterSpec
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.metadata import AttentionMetadata
from tpu_worker.platforms.platform import Platform
from tpu_worker.stacking import Layers, group_alike

# The sizes of SmolLM2's layers: with smaller ones, every order of adding comes to the same.
ROPE = Rope(64, 10000.0)
SPEC = ModelSpec("x", 640, 576, 512, 1e-5, False, (LayerSpec(9, 3, 64, 1536, ROPE),) * 2)
BLOCK_SIZE, TABLE, LENGTH = 16, 8, 90
DTYPES: tuple[FloatType, ...] = ("bfloat16", "float32")
SLOW = ("XLA", "float32")
PLATFORMS = [
    pytest.param(platform, id=f"{platform.name}-{dtype}", marks=[pytest.mark.slow] if (platform.name, dtype) == SLOW else [])
    for dtype in DTYPES
    for platform in (make_xla_platform(dtype), choose_platform("cpu", "none", (), BLOCK_SIZE, {64}, dtype=dtype))
]
# Of two in eight sequences, sums in another order change bits here.
SEQUENCES = [np.random.default_rng(seed).integers(0, SPEC.vocab_size, LENGTH).astype(np.int32) for seed in (2, 6)]


def make_weights(platform: Platform) -> dict[str, Any]:
    random, products = np.random.default_rng(0), platform.products

    def make(parameter: ParameterSpec) -> Any:
        values = random.standard_normal(parameter.shape, np.float32)
        if parameter.kind == "vector":
            return jnp.asarray(1 + 0.3 * values)
        if parameter.kind == "table":
            return jnp.asarray(values.astype(products.dtype))
        values *= np.float32(1.5 / np.sqrt(parameter.shape[1]))
        packed = products.pack(values, products.allocate, gated=parameter.kind == "gated")
        return jax.tree.map(products.place, packed)

    model = Model(FAMILY, SPEC)
    outside, *layers = ({name: make(one) for name, one in group.items()} for group in model.parameters())
    group = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers) if products.stacks_layers else layers
    return {
        **outside,
        "ropes": [jnp.asarray(rotary_table(512, ROPE.inverse_frequencies()))],
        "layers": Layers((group,), group_alike([0] * len(layers))),
    }


class Runner:
    """Runs a sequence in one row of steps of any shape, beside random others."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._weights = make_weights(platform)
        self._step = jax.jit(self._forward, static_argnums=(0, 1), donate_argnums=3)

    def _forward(self, tokens: int, rows: int, weights: Any, caches: Any, ids: Any, starts: Any, counts: Any, tables: Any) -> Any:
        offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
        prepared = self._platform.attention.prepare(AttentionMetadata(tables, starts, counts, offsets), tokens, BLOCK_SIZE)
        inputs = StepInputs(ids, one_group(SPEC).spread([prepared]), offsets[-1], jnp.maximum(offsets[1:] - 1, 0), jnp.int32(rows))
        x, caches = FAMILY.forward(SPEC, self._platform, weights, caches, inputs)
        return FAMILY.logits(SPEC, self._platform, weights, x, inputs.num_sampled), caches

    def last_logits(
        self, sequence: Int32Array, chunks: Sequence[int], tokens: int, rows: int, row: int, *, crowded: bool
    ) -> Float32Array:
        random = np.random.default_rng(row)
        tables = random.permutation(rows * TABLE).reshape(rows, TABLE).astype(np.int32)
        caches = make_caches(SPEC, self._platform.attention, rows * TABLE, BLOCK_SIZE, one_group(SPEC))
        starts, logits = np.zeros(rows, np.int32), None
        for chunk in chunks:
            counts: Int32Array = np.zeros(rows, np.int32)
            counts[row], room = chunk, tokens - chunk
            for other in set(range(rows)) - {row} if crowded else ():
                counts[other] = random.integers(0, min(room, 128 - starts[other], 40) + 1)
                room -= counts[other]
            ids = random.integers(0, SPEC.vocab_size, tokens).astype(np.int32)
            at = counts[:row].sum()
            ids[at : at + chunk] = sequence[starts[row] : starts[row] + chunk]
            logits, caches = self._step(tokens, rows, self._weights, caches, ids, starts, counts, tables)
            starts = starts + counts
        assert starts[row] == LENGTH
        found: Float32Array = np.asarray(logits)[row]
        return found


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_request_has_the_same_bits_in_every_bucket(platform: Platform) -> None:
    if not platform.products.rows_are_stable([(960, 576), (576, 576), (3072, 576), (576, 1536), (640, 576)], (4, 16, 128)):
        pytest.skip("what XLA multiplies with on this machine does not keep a row's bits, and the engine waits for all buckets")
    run = Runner(platform).last_logits
    for sequence in SEQUENCES:
        whole = run(sequence, [LENGTH], 128, 4, 0, crowded=False)
        assert np.isfinite(whole).all()
        for chunks, tokens, rows, row, crowded in (
            ([60, 30], 128, 4, 2, True),
            ([4] * 22 + [2], 4, 4, 0, False),
            ([16] * 5 + [7, 3], 16, 4, 1, False),
            ([80] + [1] * 10, 128, 16, 3, True),
        ):
            np.testing.assert_array_equal(run(sequence, chunks, tokens, rows, row, crowded=crowded), whole)
