"""Measures what a step takes of the host, on one device and on several: `python -m scripts.bench_host_share`.

The worker's own part of a step is to pack it, to queue it and to take in its tokens. Several devices should take no longer than
one. They are forced out of this host, and the model is tiny and has random weights: what they compute is waited for, and not
counted. But JAX computes a small step of one device on the thread that queues it, and several devices share the cores with that
thread: so times on the clock say more about this than about the worker, and the thread's own time is the one to compare.

Times vary with what else runs: look at the lowest tenth beside the median.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.clock import now

_FORCED = "--xla_force_host_platform_device_count"
_ROWS, _PROMPT, _LENGTH = 64, 8, 1024
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": _LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def main() -> int:
    """Prints a line for each number of devices, and what the last number takes more than the first."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--layers", type=int, default=16, metavar="N", help="of the model: each has arrays that a step is given")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, _ROWS], metavar="N", help="of a step")
    parser.add_argument("--steps", type=int, default=500, metavar="N")
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FORCED}={max(options.shards)}".strip()
    print("µs: median, lowest tenth    queue             collect           the thread's, queue     … collect")
    for rows in options.rows:
        found = [measure(shards, rows, options.layers, options.steps) for shards in options.shards]
        for shards, times in zip(options.shards, found, strict=True):
            print(f"{shards} devices, {rows} rows".ljust(24) + _columns(times))
        print(f"{options.shards[-1]} instead of {options.shards[0]}".ljust(24) + _columns(found[-1] - found[0]), flush=True)
    return 0


def _columns(times: npt.NDArray[np.float64]) -> str:
    return "".join(f"{median:>10.1f}{low:>8.1f}" for median, low in times.T)


def measure(num_shards: int, num_rows: int, num_layers: int, num_steps: int) -> npt.NDArray[np.float64]:
    """Of steps that decode so many rows, in µs: median and lowest tenth [2] of the times to queue one and to collect it, on the
    clock and the thread's own [4]."""
    import jax

    from protocol.config import EngineConfig
    from protocol.params import EngineParams
    from tpu_worker.device import Admission, StepPlan
    from tpu_worker.platforms.cpu import make_xla_platform
    from tpu_worker.runner import JaxDevice

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps({**_MODEL, "num_hidden_layers": num_layers}), encoding="utf-8")
        config = EngineConfig(
            model_path=directory,
            model_format="huggingface",
            load_format="dummy",
            served_model_names=(),
            device="cpu",
            dtype="float32",
            tensor_parallel_size=num_shards,
            max_num_seqs=num_rows,
            max_num_batched_tokens=max(num_rows, _PROMPT),
            max_model_len=_LENGTH,
        )
        device = JaxDevice(config, make_xla_platform("float32") if num_shards == 1 else None)
        capacity = device.load(lambda *_: None)
    device.programs.wait()
    empty, blocks = np.empty(0, np.int32), -(-_LENGTH // capacity.block_size)
    params, slots = EngineParams(max_tokens=_LENGTH), np.arange(num_rows, dtype=np.int32)

    def plan(step: int, rows: Sequence[int], start: int, count: int, admissions: tuple[Admission, ...] = ()) -> StepPlan:
        shape = len(rows)
        starts, counts = np.full(shape, start, np.int32), np.full(shape, count, np.int32)
        decodes = shape if count == 1 else 0
        return StepPlan(step, admissions, empty, empty, empty, slots[list(rows)], starts, counts, np.ones(shape, bool), decodes)

    for row in range(num_rows):
        table = (np.arange(row * blocks, (row + 1) * blocks) % capacity.num_blocks).astype(np.int32)
        admission = Admission(row, np.arange(_PROMPT, dtype=np.int32), (table,), _PROMPT, params)
        device.collect(device.forward(plan(row, [row], 0, _PROMPT, (admission,))))
    times = np.empty((num_steps, 4))
    for step in range(num_steps):
        wanted = plan(num_rows + step, range(num_rows), _PROMPT + step % (_LENGTH - _PROMPT), 1)
        begun, used = now(), time.thread_time()
        handle = device.forward(wanted)
        queued, used_queueing = now(), time.thread_time()
        jax.block_until_ready(handle.token_ids)
        done, used_waiting = now(), time.thread_time()
        device.collect(handle)
        ended, used_at_last = now(), time.thread_time()
        times[step] = queued - begun, ended - done, used_queueing - used, used_at_last - used_waiting
    device.close()
    found: npt.NDArray[np.float64] = 1e6 * np.percentile(times[num_steps // 10 :], [50, 10], axis=0)
    return found


if __name__ == "__main__":
    sys.exit(main())
