"""Saves two programs of a tiny model for a TPU that is not there: `… save_for_absent_chip MODEL DIR`.

A process of its own, since libtpu must be told before JAX starts.
"""

import os
import sys
from pathlib import Path

from tpu_worker.aot.topology import ENVIRONMENT, open_topology

os.environ |= ENVIRONMENT

import jax

from protocol.chips import parse_topology
from tests.tpu_worker.tiny_engine import tiny_config
from tpu_worker.aot.absent import AbsentLayout
from tpu_worker.aot.header import make_header
from tpu_worker.aot.saved import begin_saving, save_program
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import name_of
from tpu_worker.mesh.layout import RULES
from tpu_worker.weights.load import WeightLoader, open_source

BLOCKS = 64


def main(model: str, directory: str) -> None:
    config = tiny_config(Path(model), dtype="bfloat16")  # in the kernels for TPUs
    source = open_source(config)
    mesh = open_topology(parse_topology("v6e:1x1"), 1)
    blueprint = draw_blueprint(config, source, AbsentLayout(mesh, RULES), "tpu")
    loader = WeightLoader(source, blueprint.platform.products, blueprint.layout, blueprint.max_model_len, lambda *_: None)
    compiler = blueprint.compiler(loader.shapes(loader.load_first()), BLOCKS)
    header = make_header(config, blueprint, compiler, BLOCKS)
    begin_saving(Path(directory), header)
    with jax.set_mesh(mesh):
        for name in ("admit", name_of("step", blueprint.buckets[0])):
            save_program(Path(directory), header, name, compiler.programs(blueprint.buckets)[name]())


if __name__ == "__main__":
    main(*sys.argv[1:])
