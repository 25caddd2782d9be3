"""`engine-bench device`: a model with random weights on the device that is here, beside what the device's memory could do."""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import numpy as np

from frontend.bench.engines import running_engine
from frontend.bench.load import LoadSpec, plan_load
from frontend.bench.overlap import Run, measure
from frontend.bench.stand_in import write_stand_in
from frontend.client import SamplingParams
from frontend.client.steps import Steps
from frontend.output_files import check_output_file
from protocol.errors import ConfigError, EngineError, ExitCode
from protocol.model_files import read_model_facts
from protocol.model_shapes import shape_directory, shape_names
from protocol.model_sizes import ModelSizes

SUMMARY = "measure a model with random weights on the device that is here: requests/s by queue depth, tokens/s by rows"

_BYTES = 2  # of a weight, a key and a value: bfloat16
_TINY = ModelSizes(
    num_layers=2, hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=128, vocab_size=32000
)  # fmt: skip
_PASSES = 3  # of which the fastest counts: while the engine still compiles what it may need, steps take longer
_FEWEST_STEPS = 8  # with all rows in them, of which a rate is told
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
# Bytes a second, from NVIDIA's data sheets, by the name that its driver gives: the first that the name begins with.
_BANDWIDTHS = (
    ("NVIDIA B200", 8000e9),
    ("NVIDIA H200", 4800e9),
    ("NVIDIA H100 NVL", 3900e9),
    ("NVIDIA H100 PCIe", 2000e9),
    ("NVIDIA H100 80GB HBM3", 3350e9),
    ("NVIDIA A100-SXM4-80GB", 2039e9),
    ("NVIDIA A100 80GB PCIe", 1935e9),
    ("NVIDIA A100-SXM4-40GB", 1555e9),
    ("NVIDIA A100-PCIE-40GB", 1555e9),
    ("NVIDIA L40S", 864e9),
    ("NVIDIA L4", 300e9),
    ("NVIDIA GeForce RTX 4090", 1008e9),
)


class Decode(msgspec.Struct, frozen=True):
    """Decoding with so many rows at a time."""

    rows: int
    context: int  # tokens of each row, in the mean
    steps: int  # that were measured, one after the other
    step_us: float  # from one step's end to the next one's, mean
    tokens_per_second: float
    roofline_us: float | None  # what reading weights and cache takes at the memory's bandwidth; None: that is not known
    share: float | None  # of the roofline


class Figures(msgspec.Struct, frozen=True):
    """All that one run of the benchmark found."""

    model: str
    sizes: str
    device: str  # as the driver names it, or as --device does
    engine: str  # what the engine said when it was ready, kernels included
    bandwidth: float | None  # bytes a second
    load: list[Run]
    decode: list[Decode]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """By default what this project began with, on a GPU."""
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda", "tpu"))
    parser.add_argument("--model", default="llama-3.2-1b", choices=shape_names(), metavar="MODEL", help="(llama-3.2-1b)")
    parser.add_argument("--tiny", action="store_true", help="two small layers and little load, to try the benchmark itself")
    parser.add_argument("--rows", type=int, nargs="+", metavar="N", help="rows that decode at a time (1 64 256; tiny: 1 4 8)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="of each row, in the mean (500; tiny: 128)")
    parser.add_argument("--num-prompts", type=int, metavar="N", help="of 230 tokens, 120 out, 3 at a time (200; tiny: 8, 12 out)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2], metavar="D")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of the device's memory (a known GPU's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is standard output, in place of the tables")


def run(options: argparse.Namespace) -> int:
    """Prints two tables. Returns 0 when every request was answered. Raises ConfigError on absurd flags, EngineError on failures."""
    rows = options.rows or ([1, 4, 8] if options.tiny else [1, 64, 256])
    context = options.context or (128 if options.tiny else 500)
    prompts = options.num_prompts or (8 if options.tiny else 200)
    if min(rows) < 1 or context < 2 or prompts < 1 or min(options.depths) < 1:
        raise ConfigError("--rows, --num-prompts and --depths of at least 1, and --context of at least 2 are wanted")
    if options.bandwidth is not None and not options.bandwidth > 0:
        raise ConfigError(f"--bandwidth {options.bandwidth:g}: GB/s above 0 are wanted")
    if options.json not in (None, "-"):
        check_output_file("--json", options.json)
    name = _gpu() if options.device == "cuda" else None
    bandwidth = options.bandwidth * 1e9 if options.bandwidth is not None else known_bandwidth(name or "")
    output = 128 if options.tiny else 192
    longest = max(context + output, 512 if options.tiny else 1024)
    with _directory(tiny=options.tiny) as directory:
        sizes, model = _model(options, directory, longest)
        # bfloat16 also where a model is small: it is the one type of the kernels for accelerators.
        flags = ["--device", options.device, "--model", model, "--load-format", "dummy", "--dtype", "bfloat16"]
        flags += ["--max-num-seqs", str(max(*rows, 3)), "--max-model-len", str(longest)]
        # First, so that the programs are in the compilation cache before depths are compared.
        decode, ready = _measure_decoding(flags, sizes, rows, context, output, bandwidth)
        load = [measure(flags, LoadSpec(prompts, 230, 12 if options.tiny else 120), 3, depth) for depth in options.depths]
    shown = "tiny" if options.tiny else options.model
    figures = Figures(shown, sizes.digest, name or options.device, ready, bandwidth, load, decode)
    if options.json != "-":
        _print_tables(figures)
    if options.json:
        text = msgspec.json.encode(figures).decode()
        if options.json == "-":
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    return ExitCode.OK


def known_bandwidth(name: str) -> float | None:
    """Bytes a second of a GPU's memory, by the name that its driver gives it; None: it is not known."""
    return next((bandwidth for known, bandwidth in _BANDWIDTHS if name == known or name.startswith(f"{known} ")), None)


def bytes_of_step(sizes: ModelSizes, rows: int, context: float) -> float:
    """What a decoding step must read: each weight once, the head too, and keys and values of all rows. Without experts."""
    attention = sizes.hidden_size * sizes.head_dim * 2 * (sizes.num_heads + sizes.num_kv_heads)
    layer = attention + 3 * sizes.hidden_size * sizes.intermediate_size
    cache = 2 * sizes.num_kv_heads * sizes.head_dim * rows * context
    return float(_BYTES * (sizes.num_layers * (layer + cache) + sizes.hidden_size * sizes.vocab_size))


def decode_rate(passes: Sequence[Steps], sizes: ModelSizes, rows: int, context: int, bandwidth: float | None) -> Decode:
    """Of the longest run of steps in which so many rows decode and no prompt begins, in the fastest pass.

    Raises EngineError when it is too short in all of them.
    """
    runs = [_longest_run(steps, rows) for steps in passes]
    if (longest := max(map(len, runs))) <= _FEWEST_STEPS:
        raise EngineError(
            f"{rows} rows decoded together in {longest} steps, and more than {_FEWEST_STEPS} are wanted: is there room for their "
            "KV cache? Give fewer --rows"
        )
    means = [(float(run[-1] - run[0]) / (len(run) - 1) / 1e3, len(run) - 1) for run in runs if len(run) > _FEWEST_STEPS]
    period, number = min(means, key=lambda mean: mean[0])
    least = None if bandwidth is None else bytes_of_step(sizes, rows, context) / bandwidth * 1e6
    share = None if least is None else least / period
    return Decode(rows, context, number, period, rows / period * 1e6, least, share)


def _longest_run(steps: Steps, rows: int) -> Sequence[int]:
    """When these steps ended, in nanoseconds."""
    order = np.argsort(steps["step_id"])
    wanted = (steps["num_decodes"] == rows) & (steps["num_prefill_tokens"] == 0)
    best: list[int] = []
    run: list[int] = []
    for is_wanted, finished in zip(wanted[order].tolist(), steps["finished_ns"][order].tolist(), strict=True):
        run = [*run, finished] if is_wanted else []
        best = max(best, run, key=len)
    return best


def _measure_decoding(
    flags: list[str], sizes: ModelSizes, rows: list[int], context: int, output: int, bandwidth: float | None
) -> tuple[list[Decode], str]:
    """And what the engine said when it was ready. All rows begin about evenly around the same step, and end as they began: while
    all of them decode, each has half of its output in the mean."""
    found = []
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    with running_engine("--queue-depth", "2", "--no-enable-prefix-caching", *flags) as engine, engine.client() as client:
        for number in rows:
            spec = LoadSpec(number, max(1, context - output // 2), output, seed=number)
            prompts = [planned.token_ids for planned in plan_load(spec)]
            passes = []
            for _ in range(_PASSES):
                before = client.trace()
                last = int(before["step_id"].max()) if len(before) else -1
                outputs = client.generate(prompts, params, progress=False)
                if short := [len(one.token_ids) for one in outputs if len(one.token_ids) != output]:
                    raise EngineError(f"{len(short)} of {number} rows ended early, the first behind {short[0]} of {output} tokens")
                steps = client.trace()
                passes.append(steps.where(steps["step_id"] > last))
            found.append(decode_rate(passes, sizes, number, context, bandwidth))
        return found, engine.ready_line


def _directory(*, tiny: bool) -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="engine-bench-") if tiny else nullcontext("")


def _model(options: argparse.Namespace, directory: str, longest: int) -> tuple[ModelSizes, str]:
    """Its sizes, and what `--model` is to say."""
    if options.tiny:
        return _TINY, str(write_stand_in(Path(directory), _TINY, longest))
    shape = shape_directory(options.model)
    assert shape is not None  # one of the choices
    return read_model_facts(shape, "huggingface", "dummy").sizes, options.model


def _gpu() -> str | None:
    """The first one's name; None: the driver's tool is not here, and the engine will say what is wrong, if anything."""
    if shutil.which(_NVIDIA_SMI[0]) is None:
        return None
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def _print_tables(figures: Figures) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"{figures.model} on {figures.device}, random weights"
    table = Table(
        "depth", "req/s", "device idle", "step µs", "device µs", "worker µs", title=f"{title}: prompts of 230, 3 at a time"
    )
    for run in figures.load:
        numbers = (f"{value:.0f}" for value in (run.step_us, run.device_us, run.worker_us))
        table.add_row(str(run.depth), f"{run.requests_per_second:.2f}", f"{100 * run.idle_share:.1f} %", *numbers)
    console.print(table)
    told = "bandwidth not known" if figures.bandwidth is None else f"{figures.bandwidth / 1e9:.0f} GB/s"
    table = Table("rows", "context", "tokens/s", "step µs", "roofline µs", "share", title=f"decoding at depth 2, {told}")
    for one in figures.decode:
        least = "–" if one.roofline_us is None else f"{one.roofline_us:.0f}"
        share = "–" if one.share is None else f"{100 * one.share:.1f} %"
        table.add_row(str(one.rows), str(one.context), f"{one.tokens_per_second:.0f}", f"{one.step_us:.0f}", least, share)
    console.print(table)
    console.print(figures.engine)
