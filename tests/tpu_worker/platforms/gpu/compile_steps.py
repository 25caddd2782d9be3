"""Compiles steps of a model for GPUs that are not there: `… compile_steps CONFIG_JSON GPU CHIPS KERNELS TOKENSxROWS …`.

GPU: as a topology begins. KERNELS: "Triton", or "swapped" for these with a cache that lies otherwise. JAX's CUDA plugin must
be there, no GPU and no driver. A process of its own, since the plugin must be told so before JAX starts. Writes what there is to
say of each program as JSON.
"""

import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpu_worker.aot.topology import ENVIRONMENT, open_topology

os.environ |= ENVIRONMENT

import jax

from protocol.chips import parse_topology
from protocol.config import EngineConfig
from tpu_worker.aot.absent import AbsentLayout, AbsentWeights
from tpu_worker.aot.program_text import count_collectives, entry_of, find_copies
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import Bucket
from tpu_worker.mesh.layout import RULES, Tree
from tpu_worker.models.registry import model_from_config
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.platform import Attention, Cache, Prepared
from tpu_worker.weights.load import WeightLoader

NUM_BLOCKS, MAX_MODEL_LEN, MAX_NUM_SEQS = 8192, 131072, 256
SMALL = 1 << 16  # values: what is smaller may be copied
KERNELS = ("attend_splits", "merge_splits", "attend_chunks")


def describe(compiled: Any, weights: Tree, caches: Tree) -> dict[str, Any]:
    """What of a program its text and the compiler's figures tell."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    of_shard = {array.sharding.shard_shape(array.shape) for array in jax.tree.leaves((weights, caches))}
    return {
        "copies": find_copies(text, {shape for shape in of_shard if math.prod(shape) >= SMALL}),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "collectives": {kind: count_collectives(text).get(kind, 0) for kind in ("all-reduce", "all-gather")},
        "kernels": {name: len(re.findall(rf"custom-call\(.*/{name}/", entry_of(text))) for name in KERNELS},
    }


def swap_caches(attention: Attention) -> Attention:
    """With caches [blocks, page, 2, KV heads, D], which must be copied there and back."""

    def make_caches(num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int) -> Any:
        caches = attention.make_caches(num_layers, num_blocks, block_size, num_kv_heads, head_dim)
        return [cache.swapaxes(1, 3) for cache in caches]

    def attend(
        qkv: jax.Array,
        cache: Cache,
        prepared: Prepared,
        rope: jax.Array | None,
        spec: AttentionSpec,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        out, cache = attention.attend(qkv, cache.swapaxes(1, 3), prepared, rope, spec, sinks)
        return out, cache.swapaxes(1, 3)

    return replace(attention, make_caches=make_caches, attend=attend)


def main(config: str, gpu: str, chips: str, kernels: str, *buckets: str) -> dict[str, Any]:
    engine = EngineConfig(
        model_path=config,
        model_format="huggingface",
        served_model_names=(),
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        dtype="bfloat16",
    )
    source = AbsentWeights(model_from_config(Path(config)))
    mesh = open_topology(parse_topology(f"{gpu}:{chips}"), int(chips))
    blueprint = draw_blueprint(engine, source, AbsentLayout(mesh, RULES), "gpu")
    if kernels == "swapped":
        blueprint = replace(blueprint, platform=replace(blueprint.platform, attention=swap_caches(blueprint.platform.attention)))
    loader = WeightLoader(source, blueprint.platform.products, blueprint.layout, MAX_MODEL_LEN, lambda *_: None)
    weights = loader.shapes(loader.load_first())
    compiler = blueprint.compiler(weights, NUM_BLOCKS)
    found: dict[str, Any] = {"block_size": blueprint.block_size}
    with jax.set_mesh(mesh):
        for name in buckets:
            found[name] = describe(compiler.step(Bucket(*map(int, name.split("x")))), weights, compiler.state.caches)
    return found


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
