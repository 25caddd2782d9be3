"""What each shard has of a parameter, and that the shards together have all of it."""

from typing import cast

import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh

from protocol.codec import Float32Array
from protocol.errors import ConfigError
from tpu_worker.mesh.layout import AXIS, RULES, Layout
from tpu_worker.models.llama import FAMILY
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, ModelSpec, ParameterSpec

LAYER = LayerSpec(
    num_heads=8,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=12,
    rope=Rope(4, 100.0),
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
)
SPEC = ModelSpec("x", 10, 16, 64, 1e-5, False, (LAYER,))
PARAMETERS = {**FAMILY.parameters(SPEC), **FAMILY.layer_parameters(SPEC, 0)}


def layout(num_shards: int) -> Layout:
    return Layout(cast(Mesh, AbstractMesh((num_shards,), (AXIS,))), RULES)


def values_of(parameter: ParameterSpec) -> list[Float32Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(part.shape, np.float32) for part in parameter.parts]


def shards_of(name: str, num_shards: int) -> list[Float32Array]:
    """What each shard has of a parameter, its parts put together."""
    parameter, cut = PARAMETERS[name], layout(num_shards)
    parts = list(zip(values_of(parameter), parameter.parts, strict=True))
    return [
        np.concatenate([cut.part_of_shard(values, part, LAYER, shard) for values, part in parts]) for shard in range(num_shards)
    ]


@pytest.mark.parametrize(
    ("name", "dimension"),
    [
        ("embedding", 0), ("head", 0), ("final_norm", None), ("attention_norm", None), ("qkv", 0), ("qkv_bias", 0), ("output", 1),
        ("output_bias", None), ("gate_up", 0), ("gate_up_bias", 0), ("down", 1), ("down_bias", None),
    ],
)  # fmt: skip
def test_where_parameters_are_cut(name: str, dimension: int | None) -> None:
    assert layout(2).cuts(PARAMETERS[name]) == dimension
    assert layout(1).cuts(PARAMETERS[name]) is None


def test_projections_of_a_shard_lie_side_by_side() -> None:
    q, k, v = values_of(PARAMETERS["qkv"])
    first, second = shards_of("qkv", 2)
    np.testing.assert_array_equal(first, np.concatenate([q[:16], k[:4], v[:4]]))
    np.testing.assert_array_equal(second, np.concatenate([q[16:], k[4:], v[4:]]))
    gate, up = values_of(PARAMETERS["gate_up"])
    np.testing.assert_array_equal(shards_of("gate_up", 4)[2], np.concatenate([gate[6:9], up[6:9]]))
    biases = values_of(PARAMETERS["gate_up_bias"])
    np.testing.assert_array_equal(shards_of("gate_up_bias", 2)[1], np.concatenate([bias[6:] for bias in biases]))


def test_heads_of_keys_that_are_fewer_than_shards_are_held_by_several() -> None:
    """Of 8 heads of queries and 2 of keys, each of 4 shards has two of the former and the one that these read."""
    q, k, v = values_of(PARAMETERS["qkv"])
    for shard, part in enumerate(shards_of("qkv", 4)):
        head = slice(4 * (shard // 2), 4 * (shard // 2 + 1))
        np.testing.assert_array_equal(part, np.concatenate([q[8 * shard : 8 * (shard + 1)], k[head], v[head]]))
    spec = layout(4).spec_of_shard(SPEC)
    assert [(one.num_heads, one.num_kv_heads, one.intermediate_size) for one in spec.layers] == [(2, 1, 3)]
    assert (spec.vocab_size, spec.hidden_size) == (10, 16)


@pytest.mark.parametrize("name", ["output", "down"])
@pytest.mark.parametrize("num_shards", [2, 4])
def test_parts_of_a_sum_add_up_to_it(name: str, num_shards: int) -> None:
    (weight,) = values_of(PARAMETERS[name])
    x = np.random.default_rng(1).standard_normal((3, weight.shape[1])).astype(np.float32)
    pieces = np.split(x, num_shards, axis=1)
    total = sum(piece @ part.T for piece, part in zip(pieces, shards_of(name, num_shards), strict=True))
    np.testing.assert_allclose(total, x @ weight.T, rtol=1e-5, atol=1e-5)


def test_a_vocabulary_that_does_not_divide_is_filled_up() -> None:
    (table,) = values_of(PARAMETERS["embedding"])
    shards = shards_of("embedding", 4)  # of three rows each, of which the last has one
    np.testing.assert_array_equal(np.concatenate(shards)[:10], table)
    assert not np.concatenate(shards)[10:].any()
    shards = shards_of("embedding", 8)  # of two, and more than one has none
    assert [shard.shape for shard in shards] == [(2, 16)] * 8
    np.testing.assert_array_equal(np.concatenate(shards)[:10], table)


def test_what_cannot_be_cut_is_refused() -> None:
    layout(2).check(SPEC, "/m")
    with pytest.raises(ConfigError, match=r"--tensor-parallel-size 3 does not divide 8 heads.*\(/m\): possible are 1, 2, 4$"):
        layout(3).check(SPEC, "/m")
