"""Compiles steps of a model for chips that are not there: `… compile_steps CONFIG_JSON TOPOLOGY CHIPS KERNELS TOKENSxROWS …`.

"samplerxROWS", "pickxROWS" and "maskxROWS" are what runs behind steps of so many rows.

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

from tpu_worker.aot.topology import ENVIRONMENT, open_topology

os.environ |= ENVIRONMENT

import jax
import jax.numpy as jnp

from protocol.chips import parse_topology
from protocol.config import EngineConfig, KvCacheDtype, Quantization
from tpu_worker.aot.absent import AbsentLayout, AbsentWeights
from tpu_worker.aot.program_text import count_collectives, count_kernels, count_readers, find_copies, without_fused
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import Bucket
from tpu_worker.mesh.layout import RULES, Tree
from tpu_worker.models.registry import model_from_config
from tpu_worker.platforms import xla
from tpu_worker.weights.load import WeightLoader

NUM_BLOCKS, MAX_MODEL_LEN, MAX_NUM_SEQS = 2048, 131072, 256  # a context as Llama 3.2's models have it
SMALL = 1 << 16  # values: what is smaller may be copied
KERNELS = ("attend_singles", "write_pages", "attend_chunks")


def describe(compiled: Any, weights: Tree, caches: Tree, logits: tuple[int, int]) -> dict[str, Any]:
    """What of a program its text and libtpu's figures tell. logits: their shape."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    of_shard = {array.sharding.shard_shape(array.shape) for array in jax.tree.leaves((weights, caches))}
    return {
        "copies": find_copies(text, {shape for shape in of_shard if math.prod(shape) >= SMALL}),
        "copies of slots": find_copied(text, shapes_of_slots(compiled)),
        "narrowed": find_narrowed(text),
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "collectives": {kind: count_collectives(text).get(kind, 0) for kind in ("all-reduce", "all-gather")},
        "kernels": count_kernels(text, KERNELS),
        "readers of logits": count_readers(text, logits),
    }


def find_copied(text: str, shapes: set[tuple[int, ...]]) -> list[str]:
    """The instructions of a program that do nothing but make another array of one of these very shapes.

    Copies into vector memory, which is `S(1)`, may be how it is read.
    """
    wanted = "|".join(re.escape(",".join(map(str, shape))) for shape in shapes)
    copied = rf"(?m)^.* = \w+\[(?:{wanted})\][^ ]* copy\(.*$"
    moved = rf"(?m)^.* = \(\w+\[(?:{wanted})\](?![^ ]*S\(1\))[^ ]*, .* copy-start\(.*$"
    text = without_fused(text)
    return [line.strip()[:200] for line in re.findall(copied, text) + re.findall(moved, text)]


def shapes_of_slots(compiled: Any) -> set[tuple[int, ...]]:
    """Of what a program is given of all slots: tokens, block tables, rules."""
    arguments = jax.tree.leaves(compiled.args_info)
    return {one.shape for one in arguments if one.dtype == jnp.int32 and math.prod(one.shape) >= SMALL} or {(0,)}


def find_narrowed(text: str) -> list[str]:
    """The searches of a program that keep what they compare in bfloat16: reductions of several results, sorts and the like."""
    lines = [line for line in text.splitlines() if 'custom_call_target="tpu_custom_call"' not in line]  # Pallas' kernels
    searches = re.compile(r"^.* = \([^=]*\bbf16\[[^=]*\) (?:reduce|reduce-window|sort|custom-call)\(")
    return [line.strip()[:200] for line in lines if searches.match(line)]


def main(config: str, topology: str, chips: str, kernels: str, *buckets: str) -> dict[str, Any]:
    kernels, quantization, kv_cache_dtype = (*kernels.split(":"), "auto", "auto")[:3]
    engine = EngineConfig(
        model_path=config,
        model_format="huggingface",
        served_model_names=(),
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        dtype="bfloat16",
        quantization=cast(Quantization, quantization),
        kv_cache_dtype=cast(KvCacheDtype, kv_cache_dtype),
    )
    source = AbsentWeights(model_from_config(Path(config)))
    mesh = open_topology(parse_topology(topology), int(chips))
    blueprint = draw_blueprint(engine, source, AbsentLayout(mesh, RULES), "tpu")
    if kernels == "XLA":
        blueprint = replace(blueprint, platform=replace(blueprint.platform, attention=xla.ATTENTION))
    loader = WeightLoader(source, blueprint.platform.products, blueprint.layout, MAX_MODEL_LEN, lambda *_: None)
    weights = loader.shapes(loader.load_first())
    compiler = blueprint.compiler(weights, NUM_BLOCKS)
    found: dict[str, Any] = {"block_size": blueprint.block_size}
    with jax.set_mesh(mesh):
        for name in buckets:
            kind, rows = name.split("x")
            after = {"sampler": compiler.sampler, "pick": compiler.pick, "mask": compiler.mask}.get(kind)
            program = after(int(rows)) if after else compiler.step(Bucket(int(kind), int(rows)))
            logits = int(rows), blueprint.spec.vocab_size
            found[name] = describe(program, weights, compiler.state.caches, logits)
    return found


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
