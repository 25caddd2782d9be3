"""What the times of a report come to: tokens and requests a second, beside what the chip could do. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from protocol.aot_report import AotReport, ProgramReport, StepTime, pairs_of_prompt
from protocol.chips import parse_topology
from protocol.model_sizes import ModelSizes

_ROWS = (1, 64, 256)  # that are told
# The load that this engine began with (200 requests): tokens in, tokens out, requests at a time.
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


@dataclass(frozen=True, slots=True)
class Prefill:
    """A step with nothing but the beginning of a prompt."""

    tokens: int
    microseconds: float
    share: float | None  # of the matrix units' rate; None: a model with experts, whose work the report does not say

    @property
    def tokens_per_second(self) -> float:
        """Of prompts."""
        return self.tokens / self.microseconds * 1e6


def decode_steps(report: AotReport) -> list[ProgramReport]:
    """Those that decode and of which a time is known, by rows."""
    steps = [program for program in report.programs if program.rows == program.tokens > 0 and program.time is not None]
    return sorted(steps, key=lambda program: program.rows)


def rates(report: AotReport) -> list[Rate]:
    """At 1, 64 and 256 rows, as far as there may be so many."""
    numbers = dict.fromkeys(min(rows, report.max_num_seqs) for rows in _ROWS)
    return [found for rows in numbers if (found := _rate(report, rows)) is not None]


def prefill(report: AotReport) -> Prefill | None:
    """Of the largest step, one prompt in it; None: no time of such a step is known."""
    if (program := _step_for(report, report.max_num_batched_tokens, 1)) is None:
        return None
    tokens = report.max_num_batched_tokens
    microseconds = _time(program).microseconds(0, 0, pairs_of_prompt(tokens))
    if not microseconds:
        return None
    sizes, chip = ModelSizes.parse(report.model_digest), parse_topology(report.topology).chip
    share = None
    if sizes is not None and not sizes.num_experts:
        operations = _operations(sizes, tokens) / report.tensor_parallel_size
        share = operations / chip.bfloat16_rate * 1e6 / microseconds
    return Prefill(tokens, microseconds, share)


def seed_load(report: AotReport) -> float | None:
    """Requests a second of the seed's load, where the device never waits; None: no time of some step is known.

    With three requests at a time, each a third of its way behind the next, an output of n tokens takes n steps. In these, three
    requests end, and three begin: so three steps also have a prompt in them.
    """
    if report.max_num_seqs < SEED_AT_A_TIME:
        return None
    others, context = SEED_AT_A_TIME - 1, SEED_PROMPT + SEED_OUTPUT // 2
    decoding = _decode_step(report, SEED_AT_A_TIME)
    if decoding is None:
        return None
    plain = _time(decoding).microseconds(SEED_AT_A_TIME, SEED_AT_A_TIME * context, 0)
    first = 0.0
    left = SEED_PROMPT
    while left > 0:  # in chunks, where a step has less room than the prompt
        chunk = min(left, report.max_num_batched_tokens - others)
        if chunk < 1 or (mixed := _step_for(report, chunk + others, SEED_AT_A_TIME)) is None:
            return None
        pairs = chunk * (SEED_PROMPT - left) + pairs_of_prompt(chunk)
        first += _time(mixed).microseconds(others, others * context, pairs)
        left -= chunk
    whole = SEED_AT_A_TIME * first + (SEED_OUTPUT - SEED_AT_A_TIME) * plain
    return SEED_AT_A_TIME / whole * 1e6 if whole else None


def _rate(report: AotReport, rows: int) -> Rate | None:
    """In the smallest bucket that holds the rows; None: its time is not known."""
    program = _decode_step(report, rows)
    if program is None:
        return None
    microseconds = _time(program).microseconds(rows, rows * report.context, 0)
    # The bucket's roofline is that of a full one. Decoding, memory is the bound: what is missing is the cache of the missing rows.
    missing = (program.rows - rows) * report.cache_of_row / parse_topology(report.topology).chip.bandwidth * 1e6
    return Rate(rows, microseconds, max(0.0, program.roofline - missing)) if microseconds else None


def _decode_step(report: AotReport, rows: int) -> ProgramReport | None:
    return next((program for program in decode_steps(report) if program.rows >= rows), None)


def _step_for(report: AotReport, tokens: int, rows: int) -> ProgramReport | None:
    """The smallest step for prompts that holds these, if its time is known."""
    found = [program for program in _prompt_steps(report) if program.tokens >= tokens and program.rows >= rows]
    return min(found, key=lambda program: (program.tokens, program.rows), default=None)


def _prompt_steps(report: AotReport) -> Iterator[ProgramReport]:
    for program in report.programs:
        if program.name.startswith("step ") and program.tokens > program.rows > 0 and program.time is not None:
            yield program


def _time(program: ProgramReport) -> StepTime:
    assert program.time is not None
    return program.time


def _operations(sizes: ModelSizes, tokens: int) -> float:
    """Of a prompt of so many tokens, and the logits of one row: a product and a sum for each weight, and for each query and key."""
    width = sizes.num_heads * sizes.head_dim
    attention = sizes.hidden_size * sizes.head_dim * 2 * (sizes.num_heads + sizes.num_kv_heads)
    layers = sizes.num_layers * (attention + 3 * sizes.hidden_size * sizes.intermediate_size)
    return 2.0 * (tokens * layers + sizes.hidden_size * sizes.vocab_size) + 4.0 * width * sizes.num_layers * pairs_of_prompt(tokens)
