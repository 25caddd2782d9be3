"""A compiling process that compiles nothing: it answers as `tpu_worker.aot` does, at once, or misbehaves as it is told.

Arguments: KIND=PROGRAM, such as crash=step 4x4, or KIND alone for what is done in place of the first answer.
"""

import os
import signal
import sys
from pathlib import Path

import msgspec

from protocol.aot_messages import Answer, Compile, Compiled, Drawn, Job, Need, Refused
from protocol.aot_report import ProgramReport, StepTime
from protocol.errors import ExitCode
from protocol.process import die_with_parent

GIB = 1 << 30
PER_TOKEN = 32 << 10  # bytes of KV cache, as Llama 3.2 1B has them
BLOCK_SIZE = 64
DIGEST = "16 layers of width 2048, 32 heads, 8 KV heads of 64, 0 experts, MLP 8192, vocabulary 128256"
# name, tokens, rows; those that take longest first
PROGRAMS = (
    ("step 512x16", 512, 16),
    ("step 512x4", 512, 4),
    ("step 16x16", 16, 16),
    ("step 4x4", 4, 4),
    ("sampler 16", 0, 0),
    ("grow", 0, 0),
)
NAMES = tuple(name for name, _, _ in PROGRAMS)
SECOND = "second"  # instead of a program: what any process but the first does in place of its first answer


def drawn(job: Job | None = None, **changes: object) -> Drawn:
    """Of a model like Llama 3.2 1B on a v6e, with a context of 8192."""
    length = 8192 if job is None else job.config.max_model_len or 8192
    found = Drawn(
        versions={"twodeep": "0.1.0"},
        model_digest=DIGEST,
        chip="TPU v6e",
        programs=NAMES,
        max_model_len=length,
        context_length=131072,
        block_size=BLOCK_SIZE,
        dtype="bfloat16",
        quantization="auto",
        hbm=32 * GIB,
        weights=2 * GIB,
        state=1 << 20,
        bytes_per_block=BLOCK_SIZE * PER_TOKEN,
        cache_of_row=500 * PER_TOKEN,
        blocks_per_sequence=-(-length // BLOCK_SIZE),
        working_memory=GIB,
        num_blocks=2048,
        needs=tuple(
            Need(
                tensor_parallel_size=shards,
                weights=2 * GIB // shards,
                weights_int8=GIB // shards,
                per_token=PER_TOKEN // shards,
                per_token_fp8=PER_TOKEN // shards // 2,
            )
            for shards in (1, 2, 4, 8)
        ),
    )
    return msgspec.structs.replace(found, **changes)


def program(name: str, **changes: object) -> ProgramReport:
    """Steps that take 1000 µs, 2 µs a row, 1 ns a token of context and 2 ns a pair: with 500 tokens in each of 16 rows 1040 µs."""
    _, tokens, rows = next(one for one in PROGRAMS if one[0] == name)
    is_decode = 0 < tokens == rows
    attention = rows * (2 + 0.5) if is_decode else 0.0
    found = ProgramReport(
        name=name,
        tokens=tokens,
        rows=rows,
        compile_seconds=1.5,
        arguments=3 * GIB,
        temporaries=1 << 20,
        code=1 << 20,
        time=StepTime(fixed=1000, per_row=2, per_context_token=0.001, per_pair=0.002) if tokens else StepTime(fixed=10),
        parts={"products": 800, "head": 200, "attention": attention} if tokens else {"sampler": 10},
        roofline=800.0 if tokens else 0.0,
    )
    return msgspec.structs.replace(found, **changes)


def main(kinds: list[str]) -> None:
    """Serves one job."""
    die_with_parent()
    told = {what or "": kind for kind, _, what in (argument.partition("=") for argument in kinds)}
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    assert not list(Path(job.scratch).iterdir()), "a scratch directory of its own"
    is_first = Path(job.scratch).name == "0"
    misbehave(told.get("", "") if is_first else told.get(SECOND, ""))
    answer(drawn(job, num_blocks=0) if "misfit" in told.values() else drawn(job))
    for line in sys.stdin.buffer:
        name = msgspec.json.decode(line, type=Compile).name
        misbehave(told.get(name, ""))
        if told.get(name) == "copy":
            answer(Compiled(program=program(name, copies=("copy.1 = bf16[2048,64]",))))
        elif told.get(name) == "uncompilable":
            answer(Compiled(program=ProgramReport(name=name, error="Mosaic does not know this")))
        elif told.get(name) == "another":
            answer(Compiled(program=program(next(one for one in NAMES if one != name))))
        else:
            answer(Compiled(program=program(name)))


def answer(message: Answer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def misbehave(kind: str) -> None:
    """Does not return, but for what `main` does."""
    if kind == "crash":
        print("INTERNAL: Mosaic failed: bad tile\n\n", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    elif kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "leave":
        sys.exit(3)
    elif kind == "refuse":
        answer(Refused(text="--tensor-parallel-size 3: no", exit_code=ExitCode.BAD_CONFIG))
        sys.exit(ExitCode.BAD_CONFIG)
    elif kind == "garbage":
        print("hello", flush=True)
        signal.pause()
    elif kind == "half":
        print('{"type": "Compiled", "prog', end="", flush=True)
        sys.exit(0)
    elif kind == "hang":
        print("hangs", file=sys.stderr, flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
