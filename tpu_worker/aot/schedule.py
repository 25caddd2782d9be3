"""How long a Pallas kernel computes, by libtpu's own schedule of it.

libtpu's estimates leave kernels out, but its compiler can write down the program that the chip would run: one line for each bundle
of instructions, which takes one cycle where nothing is waited for. What is moved meanwhile is not in there.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:(LH|LB|LE|PB|PF|CT)\s*)?:\s*(>*)\s*\{")


@dataclass(slots=True)
class Loop:
    """A loop of a kernel, or all of it: its own bundles, and the loops within it, in the order of the program.

    Bundles that a predicate may leave out count as if they always ran.
    """

    bundles: int = 0
    loops: list["Loop"] = field(default_factory=list)


def flags(directory: str) -> str:
    """What `LIBTPU_INIT_ARGS` must have before JAX starts, for schedules to be written there: two files for each instruction."""
    return f"--xla_jf_dump_to={directory} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=.*final_bundles.*"


def find_schedules(directory: Path, kernel: str) -> list[Path]:
    """The schedules of a kernel of this name, by the time of their making."""
    return sorted(path for path in directory.glob(f"*-{kernel}*-final_bundles.txt") if "schedule-analysis" not in path.name)


def read_schedule(text: str) -> Loop:
    """The kernel as a whole. Raises ValueError where there are no bundles in the text."""
    found = [(match[1], len(match[2])) for line in text.splitlines() if (match := _BUNDLE.match(line))]
    last = max((index for index, (_, depth) in enumerate(found) if depth), default=0)
    stack = [Loop()]
    for index, (mark, depth) in enumerate(found):
        if mark == "LB":
            del stack[depth:]
            stack.append(Loop())
            stack[-2].loops.append(stack[-1])
        elif depth or index > last:  # between loops' bundles, those without a depth are slots behind a branch
            del stack[depth + 1 :]
        stack[-1].bundles += 1
    if not stack[0].bundles:
        raise ValueError("no bundles: libtpu writes its schedules in another form")
    return stack[0]
