"""Compiles the programs: the few that any step can run in before the worker is ready, the others behind its back."""

import threading
from collections.abc import Sequence

import jax

from tpu_worker.buckets import Bucket, by_cost, first_to_hold
from tpu_worker.device import ReportProgress
from tpu_worker.program import Compiler, SampleProgram, StepProgram

_NUM_FIRST = 2  # buckets: the smallest, and the one that holds any step


class Programs:
    """The compiled steps and samplers. They become more while steps run; each step takes the best that are there."""

    def __init__(self, compiler: Compiler, buckets: Sequence[Bucket], head_cost: float) -> None:
        """`head_cost`: of the logits of a row, in tokens through the layers."""
        self._compiler = compiler
        self._buckets = buckets
        self._head_cost = head_cost
        self._steps: dict[Bucket, StepProgram] = {}
        self._samplers: dict[int, SampleProgram] = {}  # by number of rows
        self._ready: tuple[Bucket, ...] = ()  # those of which the step is compiled, the cheapest first …
        self._sampled: tuple[Bucket, ...] = ()  # … and those with a sampler for their rows; both are only ever replaced
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._compile_rest, name="compiler")

    def choose(self, tokens: int, rows: int, *, sampler: bool) -> Bucket:
        """The cheapest bucket that holds a step and has its programs; with `sampler`, one for its rows too."""
        return first_to_hold(tokens, rows, self._sampled if sampler else self._ready)

    def step(self, bucket: Bucket) -> StepProgram:
        """The step program of a bucket that `choose` returned."""
        return self._steps[bucket]

    def sampler(self, bucket: Bucket) -> SampleProgram:
        """Its sampler."""
        return self._samplers[bucket.rows]

    def compile_first(self, report: ReportProgress) -> None:
        """Compiles what any step can run in, one after the other: XLA uses every core for one, and two get in each other's way."""
        first = self._buckets[:_NUM_FIRST]
        for done, bucket in enumerate(first):
            report("compiling", done, len(first) + 1)
            self._compile_step(bucket)
        report("compiling", len(first), len(first) + 1)
        self._compile_sampler(first[-1].rows)
        report("compiling", len(first) + 1, len(first) + 1)

    def start_rest(self) -> None:
        """Starts the thread that compiles all others."""
        self._thread.start()

    def close(self) -> None:
        """Waits for the program that is being compiled: XLA must not be torn down beneath it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _compile_rest(self) -> None:
        for bucket in self._buckets:
            # A process that ends without `close` must not go on to compile all of them.
            if self._stop.is_set() or not threading.main_thread().is_alive():
                return
            if bucket not in self._steps:
                self._compile_step(bucket)
            if bucket.rows not in self._samplers:
                self._compile_sampler(bucket.rows)

    def _compile_step(self, bucket: Bucket) -> None:
        self._steps[bucket] = self._compiler.step(bucket)
        self._rank()

    def _compile_sampler(self, num_rows: int) -> None:
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
