"""Compiles steps of a model for GPUs that are not there: `… compile_steps CONFIG_JSON GPU CHIPS KERNELS TOKENSxROWS …`.

GPU: a name of `GPUS`. KERNELS: "Triton", or "swapped" for these with a cache that lies otherwise. JAX's CUDA plugin must
be there, no GPU and no driver. A process of its own, since the plugin must be told so before JAX starts. Writes what there is to
say of each program as JSON.
"""

import json
import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from protocol.config import EngineConfig
from tpu_worker.aot.absent import AbsentLayout, AbsentWeights
from tpu_worker.aot.program_text import count_collectives, entry_of
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import Bucket
from tpu_worker.mesh.layout import AXIS, RULES, Tree
from tpu_worker.models.registry import model_from_config
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.platform import Attention, Cache, Prepared
from tpu_worker.weights.load import WeightLoader

NUM_BLOCKS, MAX_MODEL_LEN, MAX_NUM_SEQS = 8192, 131072, 256
SMALL = 1 << 16  # values: what is smaller may be copied
KERNELS = ("attend_splits", "merge_splits", "attend_chunks")


@dataclass(frozen=True)
class Gpu:
    """What the compiler asks about a GPU. Bytes, and bytes per second."""

    name: str
    capability: tuple[int, int]
    processors: int
    clock_ghz: float
    shared_memory: int  # of a processor
    threads: int  # of a processor
    cache: int
    bandwidth: int
    memory: int

    def describe(self) -> str:
        """As a GpuTargetConfigProto in text."""
        major, minor = self.capability
        return f"""
gpu_device_info {{
  name: "{self.name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64 ecc_enabled: true
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {self.processors} clock_rate_ghz: {self.clock_ghz} fpus_per_core: 128
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {self.threads}
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {self.shared_memory - 1024}
  shared_memory_per_core: {self.shared_memory}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.cache} device_memory_size: {self.memory}
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.name}"
"""


# NVIDIA's data sheets and the table of compute capabilities in its CUDA programming guide.
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 228 << 10, 2048, 50 << 20, 3350 * 10**9, 80 << 30),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 164 << 10, 2048, 40 << 20, 2039 * 10**9, 80 << 30),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 2.04, 100 << 10, 1536, 48 << 20, 300 * 10**9, 24 << 30),
}


def open_gpus(name: str, number: int) -> Mesh:
    """The mesh of some GPUs."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=GPUS[name].describe(), topology=f"1x1x{number}"
    )
    return Mesh(np.array(topology.devices), (AXIS,))


def find_copies(text: str, shapes: set[tuple[int, ...]]) -> list[str]:
    """The instructions of a program that make another array of one of these shapes, in any order of its dimensions.

    A scatter and what it is fused with is how the cache is written. Whether that is in place, the size of temporaries tells.
    """
    wanted = {tuple(sorted(shape)) for shape in shapes} | {tuple(sorted((math.prod(s[:-1]), s[-1]))) for s in shapes}
    made = re.compile(r"\s*(?:ROOT )?%\S+ = \w+\[([\d,]+)\]\S* ([\w-]+)\(")
    found: list[str] = []
    for line in entry_of(text).splitlines():
        match = made.match(line)
        if match is None or match[2] in ("parameter", "bitcast", "get-tuple-element") or "calls=%fused_scatter" in line:
            continue
        if tuple(sorted(map(int, match[1].split(",")))) in wanted:
            found.append(line.strip()[:200])
    return found


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
    mesh = open_gpus(gpu, int(chips))
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
