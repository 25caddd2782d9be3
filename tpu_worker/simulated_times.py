"""How long the simulated device takes for a step: by three numbers, or as `engine-aot` reports it of a chip. Without JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.aot_report import AotReport, StepTime, check_model, read_report
from protocol.config import EngineConfig, SimulatedTimes
from protocol.errors import ConfigError
from protocol.model_sizes import ModelSizes
from tpu_worker.buckets import EXTENSION_WIDTH, GROWTH_WIDTH, Bucket, by_cost, first_to_hold, make_buckets, name_of
from tpu_worker.device import StepPlan

_BLOCK_SIZE = 16  # tokens
_BYTES_PER_TOKEN = 8  # that the simulation itself keeps
_FEW = 3  # programs that an error names
_NOTHING = StepTime(fixed=0.0)


class DeviceTimes(Protocol):
    """Pure functions of a plan, in microseconds."""

    def step_us(self, plan: StepPlan) -> float:
        """What `forward` queues."""
        ...

    def masked_us(self, plan: StepPlan) -> float:
        """What `sample` queues, of a step with masked rows."""
        ...


class NumberedTimes:
    """`DeviceTimes` by three numbers."""

    def __init__(self, times: SimulatedTimes) -> None:
        """Raises ConfigError naming the flag of one that cannot be."""
        for name in ("prefill_us_per_token", "decode_us", "decode_us_per_seq"):
            value = getattr(times, name)
            if not 0 <= value < 1e9:
                raise ConfigError(f"--sim-{name.replace('_', '-')} {value} must be between 0 and 1e9 microseconds")
        self._times = times

    def step_us(self, plan: StepPlan) -> float:
        """As the protocol says."""
        prefill_tokens = int(plan.counts[plan.num_decodes :].sum())
        decode_us = self._times.decode_us + self._times.decode_us_per_seq * plan.num_decodes if plan.num_decodes else 0.0
        return prefill_tokens * self._times.prefill_us_per_token + decode_us

    def masked_us(self, plan: StepPlan) -> float:
        """Sampling takes no time of its own."""
        return 0.0


def required_programs(buckets: Sequence[Bucket]) -> list[str]:
    """The names of all programs that a worker with these buckets may run, as `program.Compiler.programs` has them."""
    rows = sorted({bucket.rows for bucket in buckets})
    sampling = [name_of(kind, count) for kind in ("sampler", "pick", "mask") for count in rows]
    return [
        *(name_of("step", bucket) for bucket in buckets),
        *sampling,
        "admit",
        "rules",
        "extend",
        "grow",
        name_of("scorer", buckets[1]),
    ]


class ReportedTimes:
    """`DeviceTimes` of a chip for which all programs were compiled: those that the worker there would run, one after the other."""

    def __init__(self, report: AotReport, path: str, sizes: ModelSizes, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        """path: of the report. sizes: of the model. The last two are the engine's.

        Raises ConfigError, naming --sim-report and what is possible, when the report is not of such an engine.
        """
        check_model(report, path, sizes)
        buckets = make_buckets(max_num_seqs, max_num_batched_tokens, padding_costs=report.padding_costs)
        programs = {program.name: program for program in report.programs}
        required = required_programs(buckets)
        if missing := [name for name in required if name not in programs]:
            raise ConfigError(
                f"--sim-report {path}: nothing is said of {_some(missing)}: it is for --max-num-seqs {report.max_num_seqs} and "
                f"--max-num-batched-tokens {report.max_num_batched_tokens}, this engine has {max_num_seqs} and "
                f"{max_num_batched_tokens}: leave the flags out, or make another report with engine-aot --json"
            )
        if broken := [name for name in required if programs[name].error]:
            raise ConfigError(
                f"--sim-report {path}: {_some(broken)} did not compile for {report.chip}, so that no engine runs like that there: "
                f"{programs[broken[0]].error}"
            )
        if timeless := [name for name in required if programs[name].time is None and name.startswith(("step", "sampler"))]:
            way_out = programs[timeless[0]].unknown or "make it again with engine-aot --json"
            raise ConfigError(f"--sim-report {path}: no time is known of {_some(timeless)}: {way_out}")
        self._buckets = by_cost(buckets, sizes.head_cost)
        self._scorer = buckets[1]
        self._decodes_apart = report.decodes_apart
        self._times = {name: programs[name].time or _NOTHING for name in required}

    def step_us(self, plan: StepPlan) -> float:
        """As the protocol says."""
        decodes, rows = plan.num_decodes, len(plan.slots)
        # A token sees all before it, and itself: c of them behind s others see c·s + (1 + … + c).
        context = int(plan.starts[:decodes].sum()) + decodes
        starts, counts = plan.starts[decodes:].astype(int), plan.counts[decodes:].astype(int)
        pairs = int((counts * starts + counts * (counts + 1) // 2).sum())
        bucket, kind = self._choose(plan), "scorer" if plan.scored or plan.pooled else "step"
        micros = self._admissions_us(plan) + self._us(name_of(kind, bucket), decodes, context, pairs)
        return micros + (self._us(name_of("sampler", bucket.rows), rows) if plan.needs else 0.0)

    def masked_us(self, plan: StepPlan) -> float:
        """As the protocol says."""
        assert plan.masked_rows is not None
        rows, masked = self._choose(plan).rows, len(plan.masked_rows)
        if not plan.masked_needs:
            return self._us(name_of("pick", rows), masked)
        return self._us(name_of("mask", rows), masked) + self._us(name_of("sampler", rows), len(plan.slots))

    def _choose(self, plan: StepPlan) -> Bucket:
        """As `warmup.Programs` chooses once everything is compiled, and `runner` for steps that score."""
        if plan.scored or plan.pooled:
            return self._scorer
        return first_to_hold(plan.num_tokens, len(plan.slots), self._buckets, decodes_apart=self._decodes_apart)

    def _admissions_us(self, plan: StepPlan) -> float:
        """Of the programs that `runner` has run before the step."""
        micros = len(plan.admissions) * self._us("admit")
        micros += sum(admission.params.has_rules for admission in plan.admissions) * self._us("rules")
        micros += -(-sum(len(known.token_ids) for known in plan.extensions) // EXTENSION_WIDTH) * self._us("extend")
        groups = 1 if plan.block_groups is None else 1 + int(plan.block_groups.max(initial=0))
        if len(plan.block_slots) > groups * len(plan.slots):
            micros += -(-len(plan.block_slots) // GROWTH_WIDTH) * self._us("grow")
        return micros

    def _us(self, name: str, rows: int = 0, context: int = 0, pairs: int = 0) -> float:
        return self._times[name].microseconds(rows, context, pairs)


@dataclass(frozen=True, slots=True)
class SimulatedChip:
    """What a simulated device has besides its tokens."""

    times: DeviceTimes
    block_size: int  # of the KV cache, in tokens
    bytes_per_block: int
    num_blocks: int | None  # that it has room for; None: as many as are wanted
    description: str  # for people


def simulated_chip(config: EngineConfig, sizes: ModelSizes | None = None) -> SimulatedChip:
    """As `config.simulated` has it. sizes: of the model, which a report must be of. Raises ConfigError."""
    if not config.simulated.report:
        block_size = config.block_size or _BLOCK_SIZE
        return SimulatedChip(NumberedTimes(config.simulated), block_size, block_size * _BYTES_PER_TOKEN, None, "sim")
    path = config.simulated.report
    report = read_report(path, "--sim-report")
    times = ReportedTimes(report, path, sizes or ModelSizes(), config.max_num_seqs, config.max_num_batched_tokens)
    block_size = config.block_size or report.block_size
    return SimulatedChip(
        times,
        block_size,
        max(1, report.bytes_per_block * block_size // report.block_size),
        report.num_blocks * report.block_size // block_size,
        f"sim of {report.topology}",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
