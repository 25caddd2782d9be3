"""Compiles the programs: the few that any step can run in before the worker is ready, the others while it serves."""

import logging
import threading
from collections.abc import Callable, Sequence

import jax
from jax.experimental.compilation_cache import compilation_cache

from protocol.errors import describe
from tpu_worker.buckets import Bucket, by_cost, first_to_hold
from tpu_worker.device import ReportProgress
from tpu_worker.program import Compiler, MaskProgram, PickProgram, PromptProgram, SampleProgram, StepProgram

_LOG = logging.getLogger(__name__)

_NUM_FIRST = 2  # buckets: the smallest, and the one that holds any step


class Programs:
    """The compiled steps and samplers. They become more while steps run; each step takes the best that are there."""

    def __init__(
        self, compiler: Compiler, buckets: Sequence[Bucket], head_cost: float, *, wait_for_all: bool, decodes_apart: bool
    ) -> None:
        """`head_cost`: of the logits of a row, in tokens through the layers.

        `wait_for_all`: compile everything first. Then steps of one size always run in one bucket, as they must where the bits of a
        row depend on the bucket: else they would depend on how far the compiler has come. `decodes_apart`: as `Attention` has it.
        """
        self._compiler = compiler
        self._buckets = buckets
        self._head_cost = head_cost
        self._decodes_apart = decodes_apart
        self._num_first = len(buckets) if wait_for_all else _NUM_FIRST
        self._steps: dict[Bucket, StepProgram] = {}
        self._samplers: dict[int, SampleProgram] = {}  # by number of rows, as the next two
        self._picks: dict[int, PickProgram] = {}
        self._masks: dict[int, MaskProgram] = {}
        self._scorer: tuple[Bucket, PromptProgram] | None = None
        self._ready: tuple[Bucket, ...] = ()  # those of which the step is compiled, the cheapest first …
        self._sampled: tuple[Bucket, ...] = ()  # … and those with a sampler for their rows; both are only ever replaced
        self._stop = threading.Event()
        # Never joined: a process that ends need not wait for a program that nobody will run (`protocol.supervision.leave`).
        self._thread = threading.Thread(target=self._compile_rest, name="compiler")
        self.failed: list[str] = []  # what could not be compiled while steps ran, and why

    def choose(self, tokens: int, rows: int, *, sampler: bool) -> Bucket:
        """The cheapest bucket that holds a step and has its programs; with `sampler`, those that sample its rows too."""
        return first_to_hold(tokens, rows, self._sampled if sampler else self._ready, decodes_apart=self._decodes_apart)

    def step(self, bucket: Bucket) -> StepProgram:
        """The step program of a bucket that `choose` returned."""
        return self._steps[bucket]

    def sampler(self, bucket: Bucket) -> SampleProgram:
        """Its sampler."""
        return self._samplers[bucket.rows]

    def pick(self, bucket: Bucket) -> PickProgram:
        """Samples its masked rows where they need no more than the most likely token …"""
        return self._picks[bucket.rows]

    def mask(self, bucket: Bucket) -> MaskProgram:
        """… and prepares them for the sampler where they do."""
        return self._masks[bucket.rows]

    @property
    def scorer(self) -> tuple[Bucket, PromptProgram]:
        """The one for all steps that score prompts or pool them, once `prepare_scorer` has said that it is ready."""
        assert self._scorer is not None
        return self._scorer

    def prepare_scorer(self, ready: Callable[[str], None]) -> None:
        """Compiles it on a thread of its own, while steps run, and calls `ready` there: with an empty text, or why it cannot be.

        One program serves all such steps, that of the bucket that holds any: few engines are asked for it, and those that are score
        many prompts at once.
        """

        def compile_scorer() -> None:
            try:
                if self._scorer is None:
                    bucket = self._buckets[:_NUM_FIRST][-1]
                    self._scorer = bucket, self._compiler.scorer(bucket)
                ready("")
            except Exception as error:  # noqa: BLE001 - whatever the compiler raises concerns those alone who asked
                _LOG.error("the program that scores and pools prompts cannot be compiled: %s", describe(error))
                ready(describe(error))

        # Not waited for, as the other one.
        threading.Thread(target=compile_scorer, name="scorer compiler", daemon=True).start()

    def compile_first(self, report: ReportProgress) -> None:
        """Compiles what must be there before steps run, one after the other: XLA uses every core for one, and two get in each
        other's way."""
        steps = self._buckets[: self._num_first]
        samplers = sorted({bucket.rows for bucket in steps}) if self._num_first > _NUM_FIRST else [steps[-1].rows]
        total = len(steps) + len(samplers)
        for done, bucket in enumerate(steps):
            report("compiling", done, total)
            self._compile_step(bucket)
        for done, num_rows in enumerate(samplers, len(steps)):
            report("compiling", done, total)
            self._compile_sampler(num_rows)
        report("compiling", total, total)

    def start_rest(self) -> None:
        """Starts the thread that compiles all others."""
        self._thread.start()

    def close(self) -> None:
        """Lets the thread finish the program that it compiles, and no other. Does not wait for it."""
        self._stop.set()

    def wait(self) -> None:
        """Until everything is compiled or failed."""
        self._thread.join()

    def _compile_rest(self) -> None:
        for bucket in self._buckets:
            # A process that ends without `close` must not go on to compile all of them.
            if self._stop.is_set() or not threading.main_thread().is_alive():
                return
            try:
                if bucket not in self._steps:
                    self._compile_step(bucket)
                if bucket.rows not in self._samplers:
                    self._compile_sampler(bucket.rows)
            except Exception as error:  # noqa: BLE001 - whatever the compiler raises: steps of this size run in a larger bucket
                self.failed.append(f"{bucket}: {describe(error)}")
                _LOG.error(
                    "the programs for steps of up to %d tokens in %d rows cannot be compiled, larger ones stand in: %s",
                    bucket.tokens,
                    bucket.rows,
                    describe(error),
                )

    def _compile_step(self, bucket: Bucket) -> None:
        self._steps[bucket] = self._compiler.step(bucket)
        self._rank()

    def _compile_sampler(self, num_rows: int) -> None:
        self._picks[num_rows] = self._compiler.pick(num_rows)
        self._masks[num_rows] = self._compiler.mask(num_rows)
        self._samplers[num_rows] = self._compiler.sampler(num_rows)
        self._rank()

    def _rank(self) -> None:
        self._ready = by_cost(self._steps, self._head_cost)
        self._sampled = tuple(bucket for bucket in self._ready if bucket.rows in self._samplers)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that the next start need not compile; empty: no cache."""
    if not directory:
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def leave_compilation_cache() -> None:
    """Compiles everything anew: on the CPU, what comes out of a cache is not whole when it is serialised again (JAX 0.10)."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks once whether there is one
    jax.clear_caches()  # of what this process compiled before, some came out of it
