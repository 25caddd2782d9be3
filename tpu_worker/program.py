"""The device programs of a loaded model: a step and a sampler per bucket, and one that admits a request."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from protocol.codec import Int32Array, UInt32Array
from protocol.params import MAX_LOGPROBS
from tpu_worker.buckets import EXTENSION_WIDTH, GROWTH_WIDTH, Bucket, name_of
from tpu_worker.contexts import Contexts
from tpu_worker.inputs import (
    RowInputs,
    SlotState,
    StepInputs,
    admission_width,
    admit,
    extend,
    gather_tokens,
    grow_tables,
    record_masked,
    record_tokens,
    step_width,
    unpack_rows,
)
from tpu_worker.layer_groups import LayerGroups
from tpu_worker.mesh.layout import COLUMNS, REPLICATED, SHARDED, Layout, spec_of
from tpu_worker.mesh.shards import shard_platform
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.models.family import Model, Weights
from tpu_worker.platforms.metadata import AttentionMetadata
from tpu_worker.platforms.platform import Platform, Sampling
from tpu_worker.pooling import Embeddings, count_embeddings, make_sums, pool
from tpu_worker.rules import SlotRules, make_rules, set_rules
from tpu_worker.sampler import Sampled, sample, unpack_params
from tpu_worker.scoring import Scores, score
from tpu_worker.stacking import Layers

Shapes: TypeAlias = Any  # a pytree of jax.ShapeDtypeStruct


class DeviceState(NamedTuple):
    """What a step reads and leaves changed. Every program takes it by donation: it is updated where it lies."""

    caches: Layers
    slots: SlotState


class PromptState(NamedTuple):
    """The same of a step that reads prompts, which other steps leave alone."""

    device: DeviceState
    sums: jax.Array  # `pooling.make_sums`


StepProgram: TypeAlias = Callable[[Weights, DeviceState, Int32Array], tuple[DeviceState, jax.Array, jax.Array]]
PromptProgram: TypeAlias = Callable[
    [Weights, PromptState, Int32Array, Int32Array, Int32Array], tuple[PromptState, jax.Array, jax.Array, Scores, Embeddings]
]
SampleProgram: TypeAlias = Callable[[SlotState, jax.Array, jax.Array, jax.Array, Int32Array], tuple[SlotState, Sampled]]
RulesProgram: TypeAlias = Callable[[jax.Array, np.int32, Int32Array], jax.Array]
PickProgram: TypeAlias = Callable[[SlotState, jax.Array, jax.Array, Int32Array, UInt32Array], tuple[SlotState, jax.Array]]
MaskProgram: TypeAlias = Callable[[jax.Array, jax.Array, Int32Array, UInt32Array], tuple[jax.Array, jax.Array]]
AdmitProgram: TypeAlias = Callable[[SlotState, Int32Array], SlotState]
ExtendProgram: TypeAlias = Callable[[SlotState, Int32Array], SlotState]
GrowProgram: TypeAlias = Callable[[SlotState, Int32Array], SlotState]


STATE: Any = DeviceState(*cast(Any, (SHARDED, REPLICATED)))  # how it is laid out


class _Computed(NamedTuple):
    """A step within its program, before anything is predicted."""

    rows: RowInputs
    slots: SlotState
    meta: AttentionMetadata
    x: jax.Array  # [R, hidden], or [T, hidden]
    caches: Layers


class ProgramStore(Protocol):
    """Programs that need not be compiled again. Safe on any thread."""

    def find(self, name: str, arguments: Any, results: Any) -> Any | None:
        """The program of this name, as `jax.jit(…).lower(…).compile()` gives it; None: it is to be compiled.

        arguments and results: pytrees of the structures of what it takes, a tuple, and of what it returns.
        """
        ...

    def keep(self, name: str, program: Any) -> None:
        """Takes in a program that was compiled."""
        ...


@dataclass(frozen=True, slots=True)
class Compiler:
    """Makes the programs of one model on the chips of one worker. Safe on any thread."""

    model: Model
    platform: Platform
    layout: Layout
    block_size: int  # of the KV cache, in tokens
    groups: LayerGroups  # … that its layers form
    weights: Shapes
    state: Shapes  # of a DeviceState
    store: ProgramStore | None = None

    def programs(self, buckets: Sequence[Bucket]) -> dict[str, Callable[[], Any]]:
        """Everything that a worker with these buckets may run, by the names that the methods below give: what compiles each."""
        rows = sorted({bucket.rows for bucket in buckets})
        return {
            **{name_of("step", bucket): functools.partial(self.step, bucket) for bucket in buckets},
            **{name_of("sampler", count): functools.partial(self.sampler, count) for count in rows},
            **{name_of("pick", count): functools.partial(self.pick, count) for count in rows},
            **{name_of("mask", count): functools.partial(self.mask, count) for count in rows},
            "admit": self.admit,
            "rules": self.set_rules,
            "extend": self.extend,
            "grow": self.grow,
            name_of("scorer", buckets[1]): functools.partial(self.scorer, buckets[1]),
        }

    def step(self, bucket: Bucket) -> StepProgram:
        """One step with greedy sampling, which is all that most need: (weights, state, `pack_step`'s array) ->
        (state, logits [R, V] float32, token ids [R] int32, -1 where the logits were not finite).

        Of several shards each keeps the logits of its part of the vocabulary, which is filled up with -inf."""

        def step(weights: Weights, state: DeviceState, packed: jax.Array) -> tuple[DeviceState, jax.Array, jax.Array]:
            computed = self._forward(bucket, weights, state, packed, everything=False)
            return self._greedy(weights, computed, computed.x)

        shapes = (self.weights, self.state, self._packed_step(bucket.rows))
        results = (self.state, *_leaves(2))
        program: StepProgram = self._compile(name_of("step", bucket), step, 1, shapes, (STATE, COLUMNS, REPLICATED), results)
        return program

    def scorer(self, bucket: Bucket) -> PromptProgram:
        """A step that scores the tokens of prompts too, and pools them: (weights, state, `pack_step`'s, `pack_scored`'s and
        `pack_pooled`'s arrays) -> (state, what `step` yields behind it, the scores, the embeddings)."""

        def step(
            weights: Weights, state: PromptState, packed: jax.Array, scored: jax.Array, kinds: jax.Array
        ) -> tuple[PromptState, jax.Array, jax.Array, Scores, Embeddings]:
            computed = self._forward(bucket, weights, state.device, packed, everything=True)
            last = jnp.maximum(computed.meta.offsets[1:] - 1, 0)
            after, logits, sampled = self._greedy(weights, computed, computed.x[last])
            logits_of = functools.partial(self._logits, weights)
            scores = score(
                logits_of, computed.x, computed.rows, computed.meta, state.device.slots.history, scored, self._vocabulary
            )
            sums: jax.Array = state.sums
            embeddings: Embeddings = ()
            if self.model.family.states is not None:
                states_of = functools.partial(self.model.family.states, self.model.spec, weights)
                sums, embeddings = pool(states_of, computed.x, computed.rows, computed.meta, sums, kinds)
            return PromptState(after, sums), logits, sampled, scores, embeddings

        per_row = self.layout.shapes(jax.ShapeDtypeStruct((bucket.rows,), jnp.int32))
        state = PromptState(self.state, self.layout.shapes(jax.eval_shape(self._make_sums)))
        shapes = (self.weights, state, self._packed_step(bucket.rows), per_row, per_row)
        outputs = (PromptState(STATE, cast(Any, REPLICATED)), COLUMNS, REPLICATED, REPLICATED, REPLICATED)
        embeddings = _leaves(count_embeddings(bucket.rows) if self.model.family.states is not None else 0)
        results = (state, *_leaves(2), Scores(*_leaves(2)), embeddings)
        program: PromptProgram = self._compile(name_of("scorer", bucket), step, 1, shapes, outputs, results)
        return program

    def make_sums(self) -> jax.Array:
        """What `scorer`'s state begins with."""
        sums: jax.Array = jax.jit(self.layout.program(self._make_sums, (), REPLICATED))()
        return sums

    def _make_sums(self) -> jax.Array:
        return make_sums(self.state.slots.params.shape[0], self.model.spec.hidden_size)

    def _forward(self, bucket: Bucket, weights: Weights, state: DeviceState, packed: jax.Array, *, everything: bool) -> _Computed:
        """Within a program: the layers of a step. `everything`: all tokens go through the last one, not only each row's last."""
        rows = unpack_rows(state.slots, packed)
        slots = grow_tables(state.slots, packed[4 * bucket.rows :])
        token_ids, (meta, *others) = gather_tokens(slots, rows, bucket.tokens)
        wanted, num_wanted = jnp.maximum(meta.offsets[1:] - 1, 0), rows.num_rows
        if everything:
            wanted, num_wanted = jnp.arange(bucket.tokens, dtype=jnp.int32), meta.offsets[-1]
        prepare = self._platform_of_shard.attention.prepare
        prepared = [prepare(each, bucket.tokens, self.block_size) for each in (meta, *others)]
        inputs = StepInputs(token_ids, self.groups.spread(prepared), meta.offsets[-1], wanted, num_wanted)
        spec = self.layout.spec_of_shard(self.model.spec)
        x, caches = self.model.family.forward(spec, self._platform_of_shard, weights, state.caches, inputs)
        return _Computed(rows, slots, meta, x, caches)

    def _logits(self, weights: Weights, x: jax.Array, num_rows: jax.Array) -> jax.Array:
        """Within a program: those of x [R, hidden], over a shard's part of the vocabulary."""
        spec = self.layout.spec_of_shard(self.model.spec)
        logits = self.model.family.logits(spec, self._platform_of_shard, weights, x, num_rows)
        return self._vocabulary.fill(logits, -jnp.inf)

    def _greedy(self, weights: Weights, computed: _Computed, x: jax.Array) -> tuple[DeviceState, jax.Array, jax.Array]:
        """Within a program: the end of a step whose rows' last tokens are x [R, hidden] behind the last layer."""
        rows = computed.rows
        logits = self._logits(weights, x, rows.num_rows)
        sampled = self._platform_of_shard.products.greedy(logits, rows.num_rows)
        return DeviceState(computed.caches, record_tokens(computed.slots, rows, sampled)), logits, sampled

    @property
    def _platform_of_shard(self) -> Platform:
        return shard_platform(self.platform, self._vocabulary) if self.layout.num_shards > 1 else self.platform

    @property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.model.spec.vocab_size, self.layout.num_shards)

    def _logits_shape(self, num_rows: int) -> Shapes:
        width = self._vocabulary.num_shards * self._vocabulary.width
        return self.layout.shapes(jax.ShapeDtypeStruct((num_rows, width), jnp.float32), COLUMNS)

    def sampler(self, num_rows: int) -> SampleProgram:
        """`resample` for steps of this many rows. It is a program of its own, since it takes several times longer to compile than a
        step."""
        again = functools.partial(resample, vocabulary=self._vocabulary, sampling=self.platform.products.sampling)
        token_ids = self.layout.shapes(jax.ShapeDtypeStruct((num_rows,), jnp.int32))
        shapes = (self.state.slots, self._rules(), self._logits_shape(num_rows), token_ids, self._packed_step(num_rows))
        results = (self.state.slots, Sampled(*_leaves(3)))
        program: SampleProgram = self._compile(name_of("sampler", num_rows), again, 0, shapes, REPLICATED, results)
        return program

    def pick(self, num_rows: int) -> PickProgram:
        """Samples masked rows that want the most likely token and no more, of steps of this many rows: (slots, logits and token ids
        of the step, `pack_masked`'s array, masks [R, ceil(V / 32)] uint32) -> (slots, token ids with those of these rows)."""
        choose = self._platform_of_shard.products.pick

        def pick(
            slots: SlotState, logits: jax.Array, token_ids: jax.Array, packed: jax.Array, bits: jax.Array
        ) -> tuple[SlotState, jax.Array]:
            token_ids = _put_likeliest(token_ids, packed, choose(logits, packed[0], bits))
            return record_masked(slots, packed, token_ids.at[packed[0]].get(mode="clip")), token_ids

        shapes = (self.state.slots, *self._masked(num_rows))
        program: PickProgram = self._compile(
            name_of("pick", num_rows), pick, 0, shapes, REPLICATED, (self.state.slots, *_leaves(1))
        )
        return program

    def mask(self, num_rows: int) -> MaskProgram:
        """Prepares masked rows for the sampler: `pick`'s operands after the slots -> (logits, token ids), as if the model allowed
        nothing else."""
        products = self._platform_of_shard.products

        def mask(logits: jax.Array, token_ids: jax.Array, packed: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
            likeliest = products.pick(logits, packed[0], bits)
            return products.mask(logits, packed[0], bits), _put_likeliest(token_ids, packed, likeliest)

        outputs = (COLUMNS, REPLICATED)
        program: MaskProgram = self._compile(name_of("mask", num_rows), mask, 0, self._masked(num_rows), outputs, _leaves(2))
        return program

    def admit(self) -> AdmitProgram:
        """The admission of one request: (slots, `pack_admission`'s array) -> slots."""
        slots: SlotState = self.state.slots
        packed = jax.ShapeDtypeStruct((admission_width(slots),), jnp.int32)
        program: AdmitProgram = self._compile("admit", admit, 0, (slots, self.layout.shapes(packed)), REPLICATED, slots)
        return program

    def set_rules(self) -> RulesProgram:
        """The rules of one request: (rules of all slots, slot, `pack_rules`'s array) -> rules of all slots."""
        rules = self._rules()
        packed = self.layout.shapes(jax.ShapeDtypeStruct(rules.shape[1:], jnp.int32))
        slot = self.layout.shapes(jax.ShapeDtypeStruct((), jnp.int32))
        program: RulesProgram = self._compile("rules", set_rules, 0, (rules, slot, packed), REPLICATED, rules)
        return program

    def _rules(self) -> Shapes:
        num_slots = self.state.slots.params.shape[0]
        return self.layout.shapes(jax.eval_shape(lambda: make_rules(num_slots, self.model.spec.vocab_size)))

    def extend(self) -> ExtendProgram:
        """Known tokens for slots that decode: (slots, one of `pack_extensions`' arrays) -> slots."""
        packed = jax.ShapeDtypeStruct((3, EXTENSION_WIDTH), jnp.int32)
        slots: SlotState = self.state.slots
        program: ExtendProgram = self._compile("extend", extend, 0, (slots, self.layout.shapes(packed)), REPLICATED, slots)
        return program

    def grow(self) -> GrowProgram:
        """Blocks for prompts under way: (slots, one of `pack_growth`'s arrays) -> slots."""
        packed = jax.ShapeDtypeStruct((4, GROWTH_WIDTH), jnp.int32)
        slots: SlotState = self.state.slots
        program: GrowProgram = self._compile("grow", grow_tables, 0, (slots, self.layout.shapes(packed)), REPLICATED, slots)
        return program

    def _masked(self, num_rows: int) -> tuple[Shapes, ...]:
        token_ids, packed = jax.ShapeDtypeStruct((num_rows,), jnp.int32), jax.ShapeDtypeStruct((3, num_rows), jnp.int32)
        bits = jax.ShapeDtypeStruct((num_rows, -(-self.model.spec.vocab_size // 32)), jnp.uint32)
        return self._logits_shape(num_rows), *self.layout.shapes((token_ids, packed, bits))

    def _packed_step(self, num_rows: int) -> Shapes:
        return self.layout.shapes(jax.ShapeDtypeStruct((step_width(num_rows, len(self.groups.windows)),), jnp.int32))

    def _compile(
        self, name: str, function: Callable[..., Any], donated: int, shapes: tuple[Shapes, ...], outputs: Any, results: Any
    ) -> Any:
        """name: of the program, as `programs` lists it. outputs: how what it returns is laid out. results: of its structure."""
        if self.store is not None and (found := self.store.find(name, shapes, results)) is not None:
            return found
        program = self.layout.program(function, jax.tree.map(spec_of, shapes), outputs)
        compiled = jax.jit(program, donate_argnums=donated).lower(*shapes).compile()
        if self.store is not None:
            self.store.keep(name, compiled)
        return compiled


def _leaves(count: int) -> tuple[Any, ...]:
    """So many arrays, where only the structure counts."""
    return (0,) * count


def _put_likeliest(token_ids: jax.Array, packed: jax.Array, likeliest: jax.Array) -> jax.Array:
    """token_ids [R] of a step, with those of the rows that `pack_masked` packed; these stay -1 where the logits were not finite."""
    finite = token_ids.at[packed[0]].get(mode="clip") >= 0
    return token_ids.at[packed[0]].set(jnp.where(finite, likeliest, -1), mode="drop")


def resample(
    slots: SlotState,
    rules: jax.Array,
    logits: jax.Array,
    token_ids: jax.Array,
    packed: jax.Array,
    *,
    vocabulary: Vocabulary | None = None,
    sampling: Sampling | None = None,
) -> tuple[SlotState, Sampled]:
    """Samples the rows of a step again, as their requests want it: slots, `make_rules`'s array, logits [R, width] and token_ids [R]
    int32 of the step, and `pack_step`'s array -> (slots, what was sampled).

    vocabulary: of which logits are; None: all of them. sampling: how the platform does it; None: as the CPU does."""
    vocabulary, sampling = vocabulary or Vocabulary(logits.shape[1]), sampling or Sampling()
    rows = unpack_rows(slots, packed)
    params = slots.params.at[rows.slots].get(mode="clip")
    wanted = unpack_params(jnp.where((rows.samples != 0)[:, None], params, 0))
    at_once = min(sampling.rows_at_once(vocabulary.width), len(token_ids))

    def sample_some(index: jax.Array, sampled: Sampled) -> Sampled:
        def some(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(array, index * at_once, at_once)

        slot = some(rows.slots)
        contexts, where = Contexts(slots.history, slot, some(rows.ends)), SlotRules(rules, slot)
        part = sample(some(logits), some(token_ids), jax.tree.map(some, wanted), contexts, where, vocabulary, sampling)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=index * at_once, axis=0)
        return Sampled(*(put(whole, some_rows) for whole, some_rows in zip(sampled, part, strict=True)))

    width = (len(token_ids), 1 + MAX_LOGPROBS)
    empty = Sampled(jnp.zeros_like(token_ids), jnp.zeros(width, jnp.float32), jnp.zeros(width, jnp.int32))
    chunks = (rows.num_rows + at_once - 1) // at_once
    sampled = jax.lax.fori_loop(0, chunks, sample_some, empty)
    return record_tokens(slots, rows, sampled.token_ids), sampled
