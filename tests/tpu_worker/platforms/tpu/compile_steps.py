"""Compiles steps of a model for chips that are not there: `… compile_steps CONFIG_JSON TOPOLOGY CHIPS KERNELS TOKENSxROWS …`.

KERNELS: "Pallas", or "XLA" for attention without any; behind colons what weights and KV cache are kept as: "Pallas:int8:fp8_e4m3".

A process of its own, since libtpu must be told before JAX starts. Writes what there is to say of each program as JSON.
"""

import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

# Whatever is said here serves: only the topology counts.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v6e-4"}
os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}

import jax
import ml_dtypes
import numpy as np
import numpy.typing as npt
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protocol.config import KvCacheDtype, Quantization
from tpu_worker.buckets import Bucket
from tpu_worker.inputs import make_slots
from tpu_worker.kv_cache import make_caches
from tpu_worker.layer_groups import one_group
from tpu_worker.mesh.layout import AXIS, REPLICATED, RULES, SHARDED, Layout, Tree
from tpu_worker.models.registry import model_from_config
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import Part
from tpu_worker.platforms import xla
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.platform import Place
from tpu_worker.program import STATE, Compiler, DeviceState
from tpu_worker.weights.blocks import BlockMatrix
from tpu_worker.weights.load import WeightLoader
from tpu_worker.weights.scaled_rows import NarrowType, ScaledRows

NUM_BLOCKS, MAX_MODEL_LEN, MAX_NUM_SEQS = 2048, 131072, 256  # a context as Llama 3.2's models have it
SMALL = 1 << 16  # values: what is smaller may be copied
KERNELS = ("attend_singles", "write_pages", "attend_chunks")


class AbsentLayout(Layout):
    """On chips that are not there: what would be placed on them is shapes and types."""

    def place(self, shards: Any, sharded: bool, place: Place) -> Tree:
        spec, times = (SHARDED, self.num_shards) if sharded else (REPLICATED, 1)

        def shape(array: npt.NDArray[Any]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                (times * array.shape[0], *array.shape[1:]), array.dtype, sharding=NamedSharding(self.mesh, spec)
            )

        return jax.tree.map(shape, shards[0])

    def shapes(self, tree: Tree, spec: PartitionSpec = REPLICATED) -> Tree:
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree)


class Zeros:
    """Weights of a model that take no memory."""

    def __init__(self, config: Path) -> None:
        self.model = model_from_config(config)

    def read(self, part: Part) -> npt.NDArray[Any]:
        return np.broadcast_to(np.zeros((), ml_dtypes.bfloat16), part.shape)

    def stored_kind(self, part: Part) -> str | None:
        return None

    def read_blocks(self, part: Part) -> BlockMatrix:
        raise AssertionError(f"{part.name}: asked for in blocks, and stored_kind says that there are none")

    def narrow_type(self, part: Part) -> NarrowType | None:
        return None

    def read_narrow(self, part: Part) -> ScaledRows:
        raise AssertionError(f"{part.name}: asked for in eight bits, and narrow_type says that it has none")

    def inverse_frequencies(self, rope: Rope, num_positions: int = 0) -> npt.NDArray[np.float32]:
        return rope.inverse_frequencies(num_positions)


def open_topology(name: str, num_chips: int) -> Mesh:
    """The mesh of some chips of a topology such as `v6e:2x2`."""
    bounds = tuple(map(int, (name.partition(":")[2] + "x1x1").split("x")[:3]))
    options: dict[str, Any] = {"chips_per_host_bounds": bounds} if math.prod(bounds) < 4 else {}
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    return Mesh(np.array(devices[:num_chips]), (AXIS,))


def describe(compiled: Any, weights: Tree, caches: Tree, logits: tuple[int, int]) -> dict[str, Any]:
    """What of a program its text and libtpu's figures tell. logits: their shape."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    of_shard = {array.sharding.shard_shape(array.shape) for array in jax.tree.leaves((weights, caches))}
    return {
        "copies": find_copies(text, {shape for shape in of_shard if math.prod(shape) >= SMALL}),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "collectives": {kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in ("all-reduce", "all-gather")},
        "kernels": {name: len(re.findall(rf"%{name}[.\w]* = .* custom-call\(", text)) for name in KERNELS},
        "readers of logits": count_readers(text, logits),
    }


def find_copies(text: str, shapes: set[tuple[int, ...]]) -> list[str]:
    """The instructions of a program that make another array of one of these shapes, of any type, or of a matrix turned round.

    Copies into vector memory, which is `S(1)`, are how weights are read, where nothing but their place changes. What a fusion does
    within itself makes no array.
    """
    text = without_fused(text)
    turned = {shape[::-1] for shape in shapes if len(shape) == 2}
    wanted = "|".join(re.escape(",".join(map(str, shape))) for shape in shapes | turned)
    made = rf"(?m)^.* = \w+\[(?:{wanted})\][^ ]* (?:fusion|transpose|convert|scatter|dynamic-update-slice|call-done)\(.*$"
    copied = rf"(?m)^.* = \w+\[(?:{wanted})\][^ ]* copy\(.*$"
    moved = rf"(?m)^.* = \(\w+\[(?:{wanted})\](?![^ ]*S\(1\))[^ ]*, .* copy-start\(.*$"
    found = re.findall(made, entry_of(text)) + re.findall(copied, text) + re.findall(moved, text)
    return [line.strip()[:200] for line in found]


def count_readers(text: str, shape: tuple[int, int]) -> int:
    """How many instructions of a program compute something of all of a float32 array of this shape."""
    entry, (rows, columns) = entry_of(text), shape
    arrays = {*re.findall(rf"(%[\w.-]+) = f32\[{rows},{columns}\]", entry)}
    # A custom fusion is a gather, of a few values.
    readers = re.findall(r"(?m)^.* = .* (?:fusion|reduce)\(([^)]*)\), (?!kind=kCustom).*$", entry)
    return sum(1 for operands in readers if arrays & set(operands.split(", ")))


def without_fused(text: str) -> str:
    """A program without the computations that fusions are made of."""
    fused = {*re.findall(r" fusion\(.*\bcalls=(%[\w.-]+)", text)}
    computations = text.split("\n}\n")
    return "\n}\n".join(one for one in computations if one.strip().partition(" ")[0] not in fused)


def entry_of(text: str) -> str:
    """The main computation, without those that it calls."""
    return text[text.index("\nENTRY ") :]


def main(config: str, topology: str, chips: str, kernels: str, *buckets: str) -> dict[str, Any]:
    source = Zeros(Path(config))
    mesh = open_topology(topology, int(chips))
    layout = AbsentLayout(mesh, RULES)
    spec = layout.spec_of_shard(source.model.spec)
    head_dims, kv_heads = {layer.head_dim for layer in spec.layers}, min(layer.num_kv_heads for layer in spec.layers)
    kernels, quantization, kv_cache_dtype = (*kernels.split(":"), "auto", "auto")[:3]
    platform = choose_platform(
        "tpu",
        cast(Quantization, quantization),
        (),
        None,
        head_dims,
        layout.num_shards,
        num_kv_heads=kv_heads,
        kv_cache_dtype=cast(KvCacheDtype, kv_cache_dtype),
    )
    if kernels == "XLA":
        platform = replace(platform, attention=xla.ATTENTION)
    groups = one_group(spec)
    loader = WeightLoader(source, platform.products, layout, MAX_MODEL_LEN, lambda *_: None)
    weights = loader.shapes(loader.load_first())

    def make_empty() -> DeviceState:
        caches = make_caches(spec, platform.attention, NUM_BLOCKS, platform.block_size, groups)
        return DeviceState(caches, make_slots(MAX_NUM_SEQS, MAX_MODEL_LEN, platform.block_size, len(groups.windows)))

    caches, slots = jax.eval_shape(layout.program(make_empty, (), STATE))
    state = DeviceState(layout.shapes(caches, STATE.caches), layout.shapes(slots, STATE.slots))
    compiler = Compiler(source.model, platform, layout, platform.block_size, groups, weights, state)
    found: dict[str, Any] = {"block_size": platform.block_size}
    with jax.set_mesh(mesh):
        for name in buckets:
            bucket = Bucket(*map(int, name.split("x")))
            found[name] = describe(compiler.step(bucket), weights, state.caches, (bucket.rows, spec.vocab_size))
    return found


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
