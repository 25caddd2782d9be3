"""Draws a few steps of real runs at depth 1 and 2, one lane per process and one for the device: docs/overlap.png.

usage: uv run --group docs scripts/plot_overlap.py [OUTPUT.png]
"""

import sys

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from frontend.bench.engines import running_engine
from frontend.bench.trace.stages import idle_share
from frontend.client import SamplingParams
from frontend.client.steps import Steps

_SHOWN = 7  # steps
_FLAGS = ("--device", "sim", "--sim-decode-us", "2000", "--sim-prefill-us-per-token", "0", "--max-model-len", "1024")
_LANES = ("scheduler_proc", "tpu_worker", "device")
_PARTS = (  # lane, first and last column, colour, meaning
    (0, "scheduled_ns", "sent_ns", "#4477aa", "schedule, send"),
    (1, "received_ns", "dispatched_ns", "#228833", "prepare, dispatch"),
    (2, "started_ns", "finished_ns", "#ee6677", "run"),
    (1, "finished_ns", "collected_ns", "#ccbb44", "collect"),
    (0, "collected_ns", "answered_ns", "#66ccee", "answer"),
)


def record(depth: int) -> Steps:
    """Steady decode steps of 32 requests, the first ones left out."""
    with running_engine(*_FLAGS, "--queue-depth", str(depth)) as engine, engine.client() as client:
        params = SamplingParams(max_tokens=400, ignore_eos=True, detokenize=False)
        client.generate([[i + 1] * 8 for i in range(32)], params, progress=False)
        steps = client.trace()
    return steps.where((steps["num_decodes"] == 32) & (np.arange(len(steps)) > 200))


def draw(axes: Axes, steps: Steps, depth: int) -> None:
    """Some of the steps, beginning with one that starts as late after its predecessor as is usual."""
    gaps = steps["started_ns"][1:] - steps["finished_ns"][:-1]
    windows = [gaps[i : i + _SHOWN].sum() for i in range(len(gaps) - _SHOWN)]
    first = int(np.argsort(windows)[len(windows) // 2])
    origin = int(steps["started_ns"][first])
    for row in range(max(first - 1, 0), min(first + _SHOWN + 1, len(steps))):
        for lane, begin, end, colour, _ in _PARTS:
            left, right = ((int(steps[name][row]) - origin) / 1e6 for name in (begin, end))
            axes.barh(-lane, max(right - left, 0.004), left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.3)
            if lane == 2:
                axes.text((left + right) / 2, -lane, str(steps["step_id"][row]), ha="center", va="center", fontsize=7, clip_on=True)
    axes.set_yticks([-lane for lane in range(len(_LANES))], _LANES)
    axes.set_title(f"--queue-depth {depth}: device idle {100 * idle_share(steps):.1f} %", loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)


def main() -> None:
    """Runs both depths and writes the picture."""
    figure, panels = plt.subplots(2, 1, figsize=(10, 4.2), sharex=True, layout="constrained")
    for axes, depth in zip(panels, (1, 2), strict=True):
        draw(axes, record(depth), depth)
    panels[-1].set_xlim(-0.5, 14)
    panels[-1].set_xlabel("milliseconds")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, _, _, colour, _ in _PARTS]
    figure.legend(
        handles, [meaning for *_, meaning in _PARTS], loc="outside lower center", ncols=len(_PARTS), fontsize=8, frameon=False
    )
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "docs/overlap.png", dpi=130)


if __name__ == "__main__":
    main()
