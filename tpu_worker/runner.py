"""The real device: a model on a JAX platform."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import jax
import numpy as np

from protocol.clock import now_ns
from protocol.codec import Int32Array, UInt32Array, pack_float32, pack_int32
from protocol.config import EngineConfig
from protocol.messages import TopLogprobs
from tpu_worker.allocation import out_of_memory
from tpu_worker.aot.saved import ProgramFiles
from tpu_worker.blueprint import draw_blueprint
from tpu_worker.buckets import Bucket
from tpu_worker.device import Capacity, ReportProgress, StepPlan, StepResult
from tpu_worker.inputs import pack_admission, pack_extensions, pack_growth, pack_masked, pack_step
from tpu_worker.kv_cache import count_blocks
from tpu_worker.mesh.devices import describe, of_this_host, open_devices
from tpu_worker.mesh.layout import make_layout
from tpu_worker.platforms.platform import Platform
from tpu_worker.pooling import Embeddings, due_embeddings, pack_pooled, unpack_pooled
from tpu_worker.program import (
    AdmitProgram,
    DeviceState,
    ExtendProgram,
    GrowProgram,
    PromptState,
    RulesProgram,
    Shapes,
)
from tpu_worker.rules import pack_rules
from tpu_worker.sampler import Sampled
from tpu_worker.scoring import Scores, pack_scored, unpack_scores
from tpu_worker.warmup import Programs, leave_compilation_cache, use_compilation_cache
from tpu_worker.weights.kept import describe_weights
from tpu_worker.weights.load import WeightLoader, open_source

_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class StepHandle:
    """A step that was queued on the device, or the sampling of its masked rows."""

    plan: StepPlan
    bucket: Bucket
    token_ids: jax.Array  # [R] int32; -1 where the logits were not finite
    sampled: Sampled | None  # None: greedy, without log-probabilities
    logits: jax.Array | None  # [R, V]; of a step whose masked rows are to be sampled
    masked: bool  # which rows it samples
    dispatched_ns: int
    scores: Scores | None = None  # of a step that scores prompts or pools them, as the next
    embeddings: Embeddings = ()


class JaxDevice:
    """Implements `tpu_worker.device.Device`."""

    def __init__(
        self, config: EngineConfig, platform: Platform | None = None, least: Callable[[int], int] = lambda value: value
    ) -> None:
        """`platform`: the fastest for the device unless given. `least`: of what each host of this worker says, the same on all."""
        self._config = config
        self._least = least
        self._given = platform
        self._finished_ns = 0  # when the last step was collected
        self._open_ns = 0  # that the device worked on a step whose masked rows are not sampled: the time between does not count
        self._told = 0  # of the programs that could not be compiled
        self._platform: Platform
        self._state: DeviceState
        self.programs: Programs
        self.program_files = ProgramFiles(config)
        self._vocab_size: int
        self._rules: jax.Array  # of all slots; of those without any, whatever was there
        self._admit: AdmitProgram
        self._set_rules: RulesProgram
        self._extend: ExtendProgram
        self._make_sums: Callable[[], jax.Array]
        self._sums: jax.Array | None = None  # of the embeddings under way, from the first that is wanted
        self._grow: GrowProgram
        self._num_groups: int  # of the KV cache

    def load(self, report: ReportProgress) -> Capacity:
        """As the protocol says."""
        with out_of_memory("loading the model"):
            return self._load(report)

    def _load(self, report: ReportProgress) -> Capacity:
        config = self._config
        if config.save_compiled:
            leave_compilation_cache()
        else:
            use_compilation_cache(config.compilation_cache)
        devices = open_devices(config)
        source = open_source(config)
        blueprint = draw_blueprint(config, source, make_layout(devices), devices[0].platform, self._given)
        model, layout, spec, platform = blueprint.model, blueprint.layout, blueprint.spec, blueprint.platform
        self._platform, self._vocab_size, self._num_groups = platform, spec.vocab_size, len(blueprint.groups.windows)
        platform.memory.before_loading()

        def report_weights(done: int, total: int) -> None:
            report("loading weights", done, total)

        loader = WeightLoader(source, platform.products, layout, blueprint.max_model_len, report_weights)
        weights = loader.load_first()
        shapes = loader.shapes(weights)
        # What the cache is to leave: the weights that are not there yet, and the largest step's working memory.
        pending = loader.pending_bytes(weights) + blueprint.working_memory
        attention, memory = platform.attention, platform.memory
        here = of_this_host(devices)
        num_blocks = self._least(
            count_blocks(
                config, spec, blueprint.block_size, blueprint.groups, blueprint.max_model_len, attention, memory, here, pending
            )
        )
        files = self.program_files
        num_blocks = files.choose_blocks(blueprint, shapes, num_blocks)
        compiler = files.attach(blueprint, blueprint.compiler(shapes, num_blocks), num_blocks)
        with ThreadPoolExecutor(1, thread_name_prefix="loading") as pool:
            loaded = pool.submit(loader.load_rest, weights)
            num_rows = {size for bucket in blueprint.buckets for size in (bucket.tokens, bucket.rows)}
            # Hosts run the same programs in the same order, so none may depend on how far the compiler of one of them has come.
            stable = not config.hosts and platform.products.rows_are_stable(loader.matrix_sizes(), num_rows)
            head_cost = _size(shapes.get("head", shapes["embedding"])) / _size(shapes["layers"])
            self.programs = Programs(
                compiler, blueprint.buckets, head_cost, wait_for_all=not stable, decodes_apart=attention.decodes_apart
            )
            self.programs.compile_first(report)
            self._admit, self._extend, self._grow = compiler.admit(), compiler.extend(), compiler.grow()
            self._set_rules, self._make_sums = compiler.set_rules(), compiler.make_sums
            self._weights = loaded.result()
        with out_of_memory(f"making a KV cache of {num_blocks * blueprint.bytes_per_block} bytes"):
            # As one program, so that the caches are made without a copy.
            self._state = jax.block_until_ready(jax.jit(blueprint.make_state(num_blocks))())
            self._rules = jax.jit(blueprint.make_rules())()
        self.programs.start_rest()
        platform.memory.after_loading()
        description = describe(devices, platform.name)
        kept = describe_weights(self._weights, blueprint.kinds)
        if config.load_format == "dummy":
            kept += ", random (--load-format dummy)"
        return Capacity(
            num_blocks,
            blueprint.block_size,
            blueprint.max_model_len,
            spec.vocab_size,
            description,
            platform.saturating_tokens,
            weights=kept,
            embedding_size=spec.hidden_size if model.family.states is not None else 0,
            windows=blueprint.groups.windows,
            kv_cache_dtype=attention.kept,
        )

    def forward(self, plan: StepPlan) -> StepHandle:
        """As the protocol says. Uploads one array for the step, one for each admission, those of known tokens, and those of blocks
        of which some row gets several."""
        caches, slots = self._state
        for admission in plan.admissions:
            slots = self._admit(slots, pack_admission(admission, slots))
            if admission.params.has_rules:
                rules = pack_rules(admission.params, self._vocab_size)
                self._rules = self._set_rules(self._rules, np.int32(admission.slot), rules)
        if plan.extensions:
            for known in pack_extensions(plan, self._config.max_num_seqs):
                slots = self._extend(slots, known)
        if len(plan.block_slots) > self._num_groups * len(plan.slots):
            for blocks in pack_growth(plan, self._config.max_num_seqs):
                slots = self._grow(slots, blocks)
            plan = replace(plan, block_slots=_NONE, block_indices=_NONE, block_ids=_NONE, block_groups=None)
        bucket, logits, token_ids, scores, embeddings = self._step(plan, DeviceState(caches, slots))
        sampled = None
        if plan.needs:
            packed = self._pack(plan, bucket)
            slots, sampled = self.programs.sampler(bucket)(self._state.slots, self._rules, logits, token_ids, packed)
            self._state, token_ids = self._state._replace(slots=slots), sampled.token_ids
        self._fetch(plan, token_ids, sampled)
        masked = plan.masked_rows is not None
        return StepHandle(plan, bucket, token_ids, sampled, logits if masked else None, False, now_ns(), scores, embeddings)

    def _step(self, plan: StepPlan, state: DeviceState) -> tuple[Bucket, jax.Array, jax.Array, Scores | None, Embeddings]:
        """Queues the step itself."""
        if not plan.scored and not plan.pooled:
            sampler = plan.needs != 0 or plan.masked_rows is not None
            bucket = self.programs.choose(plan.num_tokens, len(plan.slots), sampler=sampler)
            packed = self._pack(plan, bucket)
            self._state, logits, token_ids = self.programs.step(bucket)(self._weights, state, packed)
            return bucket, logits, token_ids, None, ()
        bucket, scorer = self.programs.scorer
        packed = self._pack(plan, bucket)
        sums = self._make_sums() if self._sums is None else self._sums
        per_row = pack_scored(plan, bucket.rows), pack_pooled(plan, bucket.rows)
        after, logits, token_ids, scores, embeddings = scorer(self._weights, PromptState(state, sums), packed, *per_row)
        self._state, self._sums = after
        embeddings = due_embeddings(plan, embeddings)
        for array in (*(scores if plan.scored else ()), *embeddings):
            self._platform.fetch(array)
        return bucket, logits, token_ids, scores if plan.scored else None, embeddings

    def _pack(self, plan: StepPlan, bucket: Bucket, *, masked: bool = False) -> Int32Array:
        return pack_step(plan, bucket.rows, self._config.max_num_seqs, self._num_groups, masked=masked)

    def sample(self, handle: object, bits: UInt32Array) -> StepHandle:
        """As the protocol says."""
        assert isinstance(handle, StepHandle) and handle.logits is not None
        plan, bucket = handle.plan, handle.bucket
        packed = pack_masked(plan, bucket.rows, self._config.max_num_seqs)
        masks = np.zeros((bucket.rows, bits.shape[1]), np.uint32)
        masks[: len(bits)] = bits
        sampled = None
        if plan.masked_needs:
            logits, token_ids = self.programs.mask(bucket)(handle.logits, handle.token_ids, packed, masks)
            rows = self._pack(plan, bucket, masked=True)
            slots, sampled = self.programs.sampler(bucket)(self._state.slots, self._rules, logits, token_ids, rows)
            token_ids = sampled.token_ids
        else:
            pick = self.programs.pick(bucket)
            slots, token_ids = pick(self._state.slots, handle.logits, handle.token_ids, packed, masks)
        self._state = self._state._replace(slots=slots)
        self._fetch(plan, token_ids, sampled)
        return StepHandle(plan, bucket, token_ids, sampled, None, masked=True, dispatched_ns=now_ns())

    def collect(self, handle: object) -> StepResult:
        """As the protocol says."""
        assert isinstance(handle, StepHandle)
        plan, rows = handle.plan, handle.plan.rows_to_sample(masked=handle.masked)
        token_ids = np.asarray(self._here(handle.token_ids))[rows]  # waits, also where every row waits for a mask
        logprobs: dict[int, TopLogprobs] = {}
        if handle.sampled is not None and plan.num_logprobs is not None:
            counts = plan.num_logprobs if plan.masked_rows is None else plan.num_logprobs[plan.answers(masked=handle.masked)]
            values, ranks = (np.asarray(self._here(array))[rows] for array in (handle.sampled.logprobs, handle.sampled.ranks))
            for row in np.flatnonzero(counts >= 0).tolist():
                best = slice(1, 1 + int(counts[row]))
                logprobs[row] = TopLogprobs(
                    float(values[row, 0]), int(ranks[row, 0]), pack_int32(ranks[row, best]), pack_float32(values[row, best])
                )
        started = max(handle.dispatched_ns, self._finished_ns) - self._open_ns
        self._finished_ns = now_ns()
        failed_rows = tuple(np.flatnonzero(token_ids < 0).tolist())
        failed_programs = 0
        if plan.masked_rows is None or handle.masked:
            self._open_ns = 0
            failed_programs = len(self.programs.failed) - self._told
            self._told += failed_programs
        else:
            self._open_ns = self._finished_ns - started
        scores = {} if handle.scores is None else unpack_scores(plan, handle.scores)
        if handle.embeddings:
            scores |= unpack_pooled(plan, handle.embeddings)
        return StepResult(np.maximum(token_ids, 0), failed_rows, logprobs, started, self._finished_ns, failed_programs, scores)

    def prepare_scores(self, ready: Callable[[str], None]) -> None:
        """As the protocol says."""
        self.programs.prepare_scorer(ready)

    def _fetch(self, plan: StepPlan, token_ids: jax.Array, sampled: Sampled | None) -> None:
        if not self._platform.is_remote:
            return
        if sampled is not None and plan.num_logprobs is not None:
            self._platform.fetch(self._here(sampled.logprobs))
            self._platform.fetch(self._here(sampled.ranks))
        self._platform.fetch(self._here(token_ids))

    def _here(self, array: jax.Array) -> jax.Array:
        """Of an array that all chips have, what the first one here has, which is always the same object. JAX would find it too, but
        that takes it twice as long."""
        return array if self._config.tensor_parallel_size == 1 else array.addressable_data(0)

    def close(self) -> None:
        """Ends the background compilation, without waiting for it."""
        self.programs.close()


def _size(shapes: Shapes) -> int:
    return sum(array.size for array in jax.tree.leaves(shapes))
