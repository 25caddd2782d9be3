"""Counts the instructions that each process takes for a step, a token, a request: `python -m scripts.count_instructions`.

Times on a shared machine vary by tens of percent, counts by a few in a thousand. So this is what finds out whether a change costs
plain requests anything: run it on two checkouts, and compare. The process that is counted runs under valgrind's callgrind (the
system's package `valgrind`), some fifty times slower, so the simulated device takes its time too, and no token waits for another.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MODULES = {"frontend": "frontend.server", "scheduler": "scheduler_proc", "worker": "tpu_worker"}

# Starts the launcher of a checkout so that its children are started by SHIM in place of the interpreter.
_LAUNCH = "import sys; sys.executable = {shim!r}; from frontend.launcher.__main__ import main; sys.exit(main())"
_SHIM = """#!/bin/sh
case " $* " in
*" -m {module} "*) PYTHONPATH={custom} exec valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file={out} {python} "$@" ;;
*) exec {python} "$@" ;;
esac
"""

# A system call that valgrind does not know before 3.21. Nothing that it would tell of happens while this counts.
_CUSTOM = "import os; os.pidfd_open = lambda pid, flags=0: os.pipe()[0]"


def main() -> int:
    """Prints a line for each process and number of streams."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", default=".", metavar="DIR", help="of the engine, with its environment in .venv")
    parser.add_argument("--process", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--streams", type=int, nargs="+", default=[64], metavar="N", help="requests at a time")
    parser.add_argument("--tokens", type=int, nargs=2, default=[20, 120], metavar="N", help="of each answer, in two loads")
    parser.add_argument("--input", type=int, default=64, metavar="TOKENS", help="of each prompt")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not installed")
        return 2
    print("process     streams   per step   per token   per request   (instructions)")
    for process in options.process:
        with _engine(Path(options.checkout).resolve(), MODULES[process]) as (url, pid, out):
            _load(url, 8, 20, options.input)  # what is done once is done
            for streams in options.streams:
                short, long = (_count(url, pid, out, streams, tokens, options.input) for tokens in options.tokens)
                steps = options.tokens[1] - options.tokens[0]
                per_step = (long - short) / steps
                rest = (short - per_step * options.tokens[0]) / streams
                print(f"{process:<10} {streams:>8} {per_step:>10,.0f} {per_step / streams:>11,.0f} {rest:>13,.0f}", flush=True)
    return 0


@contextlib.contextmanager
def _engine(checkout: Path, module: str) -> Iterator[tuple[str, int, Path]]:
    """The address of an engine, and the process id and the file of counts of its process that is counted."""
    with tempfile.TemporaryDirectory(prefix="count-") as directory:
        shim, out, log = Path(directory) / "python", Path(directory) / "counts", Path(directory) / "log"
        python = checkout / ".venv" / "bin" / "python"
        shim.write_text(_SHIM.format(module=module, custom=directory, out=out, python=python))
        shim.chmod(0o755)
        flags = ["--device", "sim", "--sim-decode-us", "60000", "--sim-prefill-us-per-token", "0", "--port", "0"]
        flags += ["--ipc", f"{directory}/api.sock", "--pulse-timeout", "600", "--step-timeout", "600", "--boot-timeout", "600"]
        (Path(directory) / "sitecustomize.py").write_text(_CUSTOM)
        environ = os.environ | {"PYTHONHASHSEED": "0"}
        command = [str(python), "-P", "-c", _LAUNCH.format(shim=str(shim)), *flags]
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=checkout, env=environ) as engine,
        ):
            assert engine.stdout is not None
            try:
                for line in engine.stdout:
                    if found := re.search(r"ready: (http://\S+)", line):
                        break
                else:
                    raise SystemExit(f"the engine did not get ready: {log.read_text()[-2000:]}")
                yield found[1], _find(engine.pid, module), out
            finally:
                engine.send_signal(signal.SIGTERM)
                engine.wait()


def _find(launcher: int, module: str) -> int:
    for task in Path(f"/proc/{launcher}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            if f"\0-m\0{module}\0".encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    raise SystemExit(f"the engine has no process {module}")


def _count(url: str, pid: int, out: Path, streams: int, tokens: int, prompt: int) -> int:
    """Instructions that the process takes for that many streams at once of that many tokens."""
    for old in out.parent.glob("counts.*"):
        old.unlink()
    _control(pid, "-i", "on")
    _load(url, streams, tokens, prompt)
    _control(pid, "-d")
    _control(pid, "-i", "off")
    texts = [file.read_text() for file in out.parent.glob("counts.*")]
    counted = sum(int(found[1]) for text in texts for found in re.finditer(r"^totals: (\d+)", text, re.MULTILINE))
    if not counted:
        raise SystemExit("callgrind counted nothing")
    return counted


def _control(pid: int, *arguments: str) -> None:
    subprocess.run(["callgrind_control", *arguments, str(pid)], check=True, stdout=subprocess.DEVNULL)


def _load(url: str, streams: int, tokens: int, prompt: int) -> None:
    numbers = {"--num-prompts": streams, "--random-input-len": prompt, "--random-output-len": tokens, "--num-warmups": 0}
    flags = [text for name, number in numbers.items() for text in (name, str(number))]
    command = [sys.executable, "-P", "-m", "frontend.bench", "serve", "--base-url", url, "--ignore-eos", "--json", "-", *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
