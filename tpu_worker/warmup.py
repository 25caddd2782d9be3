"""Compiles the programs: the few that any step can run in before the worker is ready, the others behind its back."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from tpu_worker.buckets import Bucket
from tpu_worker.device import ReportProgress
from tpu_worker.program import Compiler, StepProgram


class Programs:
    """The step programs by bucket. Grows while steps run; a step takes the best that is there."""

    def __init__(self, compiler: Compiler, buckets: Sequence[Bucket], num_first: int) -> None:
        """The first `num_first` buckets are compiled by `compile_first`; between them they must hold any step."""
        self._compiler = compiler
        self._first, self._later = buckets[:num_first], buckets[num_first:]
        self._compiled: dict[Bucket, StepProgram] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._compile_later, name="compiler")

    @property
    def buckets(self) -> list[Bucket]:
        """Those that steps may use now."""
        return list(self._compiled)

    def __getitem__(self, bucket: Bucket) -> StepProgram:
        return self._compiled[bucket]

    def compile_first(self, report: ReportProgress) -> None:
        """Compiles the first buckets side by side; XLA lets go of the interpreter lock."""
        report("compiling", 0, len(self._first))
        with ThreadPoolExecutor(len(self._first)) as pool:
            for done, program in enumerate(pool.map(self._compiler.step, self._first), 1):
                self._compiled[self._first[done - 1]] = program
                report("compiling", done, len(self._first))

    def compile_rest(self) -> None:
        """Starts the thread that compiles the other buckets, one after the other."""
        self._thread.start()

    def close(self) -> None:
        """Waits for the bucket that is being compiled: XLA must not be torn down beneath it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _compile_later(self) -> None:
        for bucket in self._later:
            # A process that ends without `close` must not go on to compile all of them.
            if self._stop.is_set() or not threading.main_thread().is_alive():
                return
            self._compiled[bucket] = self._compiler.step(bucket)


def use_compilation_cache(directory: str) -> None:
    """Keeps compiled programs in `directory`, so that the next start need not compile; empty: no cache."""
    if not directory:
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
