"""Which layers share a block table, and that a forward pass over groups gives the bits of one over layers that are all together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec.structs import replace as changed

from protocol.cache_groups import CacheGroups
from tests.tpu_worker.tiny_engine import tiny_config
from tests.tpu_worker.tiny_models import FAMILIES, make_tensors, write_model
from tpu_worker.inputs import StepInputs
from tpu_worker.kv_cache import bytes_per_block, make_caches
from tpu_worker.layer_groups import LayerGroups, choose_groups, one_group
from tpu_worker.mesh.layout import make_layout
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms import xla
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.cpu import make_xla_platform
from tpu_worker.platforms.metadata import AttentionMetadata
from tpu_worker.platforms.platform import Platform
from tpu_worker.weights.load import WeightLoader, open_source

LAYER = LayerSpec(num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=80, rope=Rope(32, 500.0))
BLOCK_SIZE = 16
PLATFORMS = [make_xla_platform(), choose_platform("cpu", "none", (), 16, {16, 32})]


def model(*windows: int) -> ModelSpec:
    layers = tuple(replace(LAYER, sliding_window=window or None) for window in windows)
    return ModelSpec("x", 96, 64, 131072, 1e-5, False, layers)


def groups_of(spec: ModelSpec, max_model_len: int, chunk: int = 512) -> LayerGroups:
    groups = choose_groups(spec, max_model_len, BLOCK_SIZE, chunk)
    members: dict[tuple[int, int], int] = {}
    for layer, (group, place) in enumerate(groups.where):
        assert members.setdefault((group, place), layer) == layer, "two layers of a group at one place"
        window = spec.layers[layer].sliding_window or 0
        assert groups.windows[group] == 0 or 0 < window <= groups.windows[group], "a layer sees more than its group holds"
    return groups


def memory(spec: ModelSpec, groups: LayerGroups, length: int, chunk: int = 512) -> int:
    """Bytes of one sequence of so many tokens."""
    return CacheGroups(groups.windows, BLOCK_SIZE, chunk).demand(length) * bytes_per_block(spec, xla.ATTENTION, BLOCK_SIZE, groups)


GEMMA3_1B = (*(512,) * 5, 0) * 4 + (512,) * 2
GEMMA3_27B = (*(1024,) * 5, 0) * 10 + (1024,) * 2


@pytest.mark.parametrize(
    ("windows", "length", "expected"),
    [
        ((0,) * 4, 4096, (0,)),
        ((4096,) * 32, 32768, (4096,)),
        ((4096,) * 32, 4096, (0,)),  # nothing is ever behind it
        ((4096, 1024), 32768, (4096, 1024)),
        ((128, 0) * 12, 131072, (128, 0)),
        ((4096, 0) * 13, 8192, (4096, 0)),
        ((*(512,) * 5, 0) * 3, 32768, (512, 512, 0, 512, 512, 512)),
        (GEMMA3_1B, 32768, (512, 0, 512, 512, 512, 512, 512)),
        (GEMMA3_27B, 131072, (1024, 1024, 0, 1024, 1024, 1024, 1024)),
    ],
)
def test_groups_of_published_models(windows: tuple[int, ...], length: int, expected: tuple[int, ...]) -> None:
    groups = groups_of(model(*windows), length)
    assert sorted(groups.windows) == sorted(expected)


def test_memory_of_published_models() -> None:
    """The figures of docs/models.md."""
    for windows, length, share in (
        ((4096,) * 32, 32768, 0.142),
        ((*(512,) * 5, 0) * 3, 32768, 0.194),
        (GEMMA3_1B, 32768, 0.183),
        (GEMMA3_27B, 131072, 0.172),
        ((4096, 0) * 13, 8192, 0.783),
        ((128, 0) * 12, 131072, 0.503),
    ):
        spec = model(*windows)
        got = memory(spec, groups_of(spec, length), length) / memory(spec, one_group(spec), length)
        assert got == pytest.approx(share, abs=0.001), (windows[:6], got)


def test_no_choice_takes_more_than_layers_together_and_few_groups_suffice() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        spec = model(*random.choice([0, 0, 64, 512, 4096], int(random.integers(1, 40))).tolist())
        length = int(random.choice([48, 1000, 8192, 131072]))
        groups = groups_of(spec, length)
        assert len(groups.windows) <= 8
        assert memory(spec, groups, length) <= 1.05 * memory(spec, one_group(spec), length)


def test_layers_whose_heads_differ_stay_together() -> None:
    spec = model(64, 0, 64, 0)
    wide = replace(spec, layers=(replace(spec.layers[0], num_kv_heads=4), *spec.layers[1:]))
    assert groups_of(wide, 8192).windows == (0,)
    assert len(groups_of(spec, 8192).windows) == 2
    every = replace(wide, layers=tuple(replace(layer, sliding_window=64) for layer in wide.layers))
    assert groups_of(every, 8192).windows == (64,)


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)
def test_groups_change_no_bit(tmp_path: Path, platform: Platform) -> None:
    """Chunks of a prompt, blocks behind windows given to a row beside it and all else of the cache NaN, against layers together."""
    config = {**FAMILIES["qwen2 with windows"], "num_hidden_layers": 4}  # one layer without a window, then three with 21
    path = write_model(tmp_path, config, make_tensors(config))
    source = open_source(changed(tiny_config(path), max_model_len=160))
    loader = WeightLoader(source, platform.products, make_layout(jax.devices()[:1]), 160, lambda *_: None)
    weights, spec = loader.load_rest(loader.load_first()), source.model.spec
    token_ids = [np.random.default_rng(row).integers(0, 96, 160).astype(np.int32) for row in range(2)]
    chunk, together = 32, one_group(spec)
    apart = choose_groups(spec, 160, BLOCK_SIZE, chunk)
    assert sorted(apart.windows) == [0, 21, 21, 21]

    def run(groups: LayerGroups, held: int) -> list[Any]:
        """Logits of both rows' chunks; a row has `held` blocks of a group with a window, over and over."""
        wanted = [held if window else 10 for window in groups.windows for _ in range(2)]
        order = iter(np.random.default_rng(5).permutation(sum(wanted) + 1).tolist())
        poisoned = next(order)  # a block that nobody writes
        pools = [[next(order) for _ in range(count)] for count in wanted]
        caches = make_caches(spec, platform.attention, sum(wanted) + 1, BLOCK_SIZE, groups)
        caches = jax.tree.map(lambda array: jnp.full_like(array, 0x7FFF), caches)  # NaN

        def step(caches: Any, tables: jax.Array, starts: jax.Array, ids: jax.Array) -> tuple[jax.Array, Any]:
            counts, offsets = jnp.full(2, chunk), jnp.array([0, chunk, 2 * chunk])
            prepared = [
                platform.attention.prepare(AttentionMetadata(table, starts, counts, offsets), 2 * chunk, BLOCK_SIZE)
                for table in tables
            ]
            inputs = StepInputs(ids, groups.spread(prepared), jnp.int32(2 * chunk), jnp.arange(2 * chunk), jnp.int32(2 * chunk))
            x, caches = source.model.family.forward(spec, platform, weights, caches, inputs)
            return source.model.family.logits(spec, platform, weights, x, inputs.num_sampled), caches

        jitted, found = jax.jit(step, donate_argnums=0), []
        where = CacheGroups(groups.windows, BLOCK_SIZE, chunk)
        for start in range(0, 160, chunk):
            tables = np.full((len(groups.windows), 2, 10), poisoned, np.int32)
            for group in range(len(groups.windows)):
                begin, end = where.first_seen(group, start), (start + chunk) // BLOCK_SIZE
                for row in range(2):
                    pool = pools[2 * group + row]
                    assert end - begin <= len(pool)
                    tables[group, row, begin:end] = [pool[index % len(pool)] for index in range(begin, end)]
            ids = np.concatenate([tokens[start : start + chunk] for tokens in token_ids])
            logits, caches = jitted(caches, jnp.asarray(tables), jnp.full(2, start), jnp.asarray(ids))
            found.append(np.asarray(logits))
        return found

    expected = run(together, 10)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(run(apart, 4), expected)
