"""What a report comes to: tokens a second, what fits, what would help. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from protocol.aot_messages import Drawn, Need
from protocol.aot_report import AotReport, ProgramReport
from protocol.chips import Topology, parse_topology
from protocol.config import EngineConfig

_ROWS = (1, 64, 256)  # that are told
_SHARE = 0.85  # of what weights and steps leave, that the KV cache gets
# The load of the change that this engine began with: requests, tokens in, tokens out, how many at a time.
SEED_PROMPT, SEED_OUTPUT, SEED_AT_A_TIME = 230, 120, 3


@dataclass(frozen=True, slots=True)
class Rate:
    """Decoding with so many rows."""

    rows: int
    microseconds: float  # of a step
    roofline: float  # likewise

    @property
    def tokens_per_second(self) -> float:
        """Of all rows."""
        return self.rows / self.microseconds * 1e6

    @property
    def share(self) -> float:
        """Of what the chip could do."""
        return self.roofline / self.microseconds


def decode_steps(report: AotReport) -> list[ProgramReport]:
    """The buckets for decoding, by rows."""
    steps = [program for program in report.programs if program.rows == program.tokens > 0 and program.time is not None]
    return sorted(steps, key=lambda program: program.rows)


def rate(report: AotReport, rows: int) -> Rate | None:
    """In the smallest bucket that holds the rows; None: there is none."""
    program = next((program for program in decode_steps(report) if program.rows >= rows), None)
    if program is None or program.time is None:
        return None
    per_row = report.context * report.bytes_per_block / report.block_size
    # The bucket's roofline is of full rows, and their cache is all that goes with them while memory is the bound.
    bandwidth = parse_topology(report.topology).chip.bandwidth
    floor = max(0.0, program.roofline - (program.rows - rows) * per_row / bandwidth * 1e6)
    return Rate(rows, program.time.microseconds(rows, rows * report.context, 0), floor)


def rates(report: AotReport) -> list[Rate]:
    """Of the numbers of rows that are told."""
    return [found for rows in _ROWS if (found := rate(report, rows)) is not None]


def prefill(report: AotReport) -> tuple[int, float, float] | None:
    """Of the largest step: its tokens, microseconds as one prompt, and the share of the matrix units' rate."""
    steps = [program for program in report.programs if program.tokens > program.rows > 0 and program.time is not None]
    if not steps:
        return None
    program = max(steps, key=lambda program: (program.tokens, -program.rows))
    assert program.time is not None
    micros = program.time.microseconds(0, 0, program.tokens * (program.tokens + 1) // 2)
    return program.tokens, micros, program.roofline / micros


def seed_load(report: AotReport) -> float | None:
    """Requests a second of the seed's load, by the device's time alone: in the steps of one output three requests are done."""
    decoding = rate(report, SEED_AT_A_TIME)
    steps = [program for program in report.programs if program.tokens >= SEED_PROMPT + 2 and program.rows >= SEED_AT_A_TIME]
    mixed = [program for program in steps if program.tokens > program.rows and program.time is not None]
    if decoding is None or not mixed:
        return None
    time = min(mixed, key=lambda program: (program.tokens, program.rows)).time
    assert time is not None
    others = SEED_AT_A_TIME - 1
    middle = SEED_PROMPT + SEED_OUTPUT // 2
    first = time.microseconds(others, others * middle, SEED_PROMPT * (SEED_PROMPT + 1) // 2)
    whole = SEED_AT_A_TIME * first + (SEED_OUTPUT - SEED_AT_A_TIME) * decoding.microseconds
    return SEED_AT_A_TIME / whole * 1e6


def problems(report: AotReport, drawn: Drawn, topology: Topology) -> list[str]:
    """Why an engine would not run well there; none: it would."""
    found = []
    for program in report.programs:
        if program.error:
            found.append(f"{program.name} does not compile: {program.error}")
        if program.copies:
            found.append(
                f"{program.name} copies {len(program.copies)} arrays as large as a weight or the cache: {program.copies[0]}"
            )
    beside = max((program.temporaries + program.code for program in report.programs), default=0)
    taken = drawn.weights + drawn.state + drawn.num_blocks * drawn.bytes_per_block
    if drawn.num_blocks < drawn.blocks_per_sequence:
        found.append("does not fit: " + "; ".join(advise(drawn, topology)))
    elif taken + beside > drawn.hbm:
        found.append(
            f"does not fit: weights, cache and slots take {gib(taken)} and the largest program {gib(beside)} beside them, of "
            f"{gib(drawn.hbm)}: lower --kv-cache-memory or --max-num-batched-tokens"
        )
    return found


def advise(drawn: Drawn, topology: Topology) -> Iterator[str]:
    """By how much one sequence of the longest context does not fit, and what would help, with numbers."""
    left = drawn.hbm - drawn.weights - drawn.working_memory
    wanted = drawn.blocks_per_sequence * drawn.bytes_per_block
    yield (
        f"weights take {gib(drawn.weights)} and a step {gib(drawn.working_memory)} of {gib(drawn.hbm)}, one sequence of "
        f"{drawn.max_model_len} tokens {gib(wanted)}: {gib(wanted - max(0, int(left * _SHARE)))} too much"
    )
    per_token = wanted / drawn.max_model_len
    if (tokens := int(max(0, left) * _SHARE / per_token) // drawn.block_size * drawn.block_size) >= drawn.block_size:
        yield f"--max-model-len {tokens} fits"
    one, *more = [need for need in drawn.needs if need.tensor_parallel_size >= _shards(drawn)] or [None]
    for need in more:
        if need is not None and _fits(drawn, need.weights, need.per_token):
            shape = next((shape for shape in topology.chip.shapes if _devices(topology, shape) >= need.tensor_parallel_size), None)
            if shape is not None:
                yield f"--tensor-parallel-size {need.tensor_parallel_size} on {topology.chip.name}:{shape} fits"
                break
    if one is not None:
        narrow = "--quantization int8 makes the weights " + gib(one.weights_int8)
        yield narrow + (", which fits" if _fits(drawn, one.weights_int8, one.per_token) else "")
        half = f"--kv-cache-dtype fp8 makes that sequence {gib(one.per_token_fp8 * drawn.max_model_len)}"
        yield half + (", which fits" if _fits(drawn, drawn.weights, one.per_token_fp8) else "")


def gib(size: float) -> str:
    """For people."""
    return f"{size / 2**30:.2f} GiB"


def _shards(drawn: Drawn) -> int:
    """Among how many chips the model is cut: that of the need that is like it."""
    return min(drawn.needs, key=lambda need: abs(need.weights - drawn.weights), default=_NONE).tensor_parallel_size


_NONE = Need(tensor_parallel_size=1, weights=0, weights_int8=0, per_token=0, per_token_fp8=0)


def _fits(drawn: Drawn, weights: int, per_token: int) -> bool:
    return per_token * drawn.max_model_len <= (drawn.hbm - weights - drawn.working_memory) * _SHARE


def _devices(topology: Topology, shape: str) -> int:
    count = topology.chip.devices_per_chip
    for size in shape.split("x"):
        count *= int(size)
    return count


def make_report(
    model: str, config: EngineConfig, topology: Topology, context: int, drawn: Drawn, programs: Sequence[ProgramReport]
) -> AotReport:
    """From what the processes said."""
    return AotReport(
        versions=drawn.versions,
        model=model,
        model_digest=drawn.model_digest,
        topology=topology.name,
        chip=drawn.chip,
        max_model_len=drawn.max_model_len,
        block_size=drawn.block_size,
        dtype=drawn.dtype,
        quantization=drawn.quantization,
        hbm=drawn.hbm,
        weights=drawn.weights,
        bytes_per_block=drawn.bytes_per_block,
        num_blocks=drawn.num_blocks,
        context=context,
        programs=tuple(programs),
        decodes_apart=drawn.decodes_apart,
        tensor_parallel_size=config.tensor_parallel_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )
