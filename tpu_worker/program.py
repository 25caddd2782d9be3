"""The device programs of a loaded model: one per bucket, and one that admits a request."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from protocol.codec import Int32Array
from tpu_worker.buckets import Bucket
from tpu_worker.inputs import SlotState, admit, unpack_step
from tpu_worker.kernels import Cache, Kernels
from tpu_worker.models.llama import Weights, forward
from tpu_worker.models.spec import ModelSpec
from tpu_worker.sampler import ROW_WIDTH, Sampled, sample

Shapes: TypeAlias = Any  # a pytree of jax.ShapeDtypeStruct


class DeviceState(NamedTuple):
    """What a step reads and leaves changed. Every program takes it by donation: it is updated where it lies."""

    caches: list[Cache]
    slots: SlotState


StepProgram: TypeAlias = Callable[[Weights, DeviceState, Int32Array], tuple[DeviceState, Sampled]]
AdmitProgram: TypeAlias = Callable[[SlotState, Int32Array], SlotState]


@dataclass(frozen=True, slots=True)
class Compiler:
    """Makes the programs of one model on one device."""

    spec: ModelSpec
    kernels: Kernels
    weights: Shapes
    state: Shapes  # of a DeviceState

    def step(self, bucket: Bucket) -> StepProgram:
        """Compiles the step of one bucket. Safe on any thread; takes about a second, less from the persistent cache."""

        def step(weights: Weights, state: DeviceState, packed: jax.Array) -> tuple[DeviceState, Sampled]:
            slots, inputs = unpack_step(state.slots, packed, bucket)
            logits, caches = forward(
                self.spec, self.kernels, weights, state.caches, inputs.token_ids, inputs.positions, inputs.meta, inputs.last
            )
            params = slots.params.at[inputs.slots].get(mode="clip")
            history = slots.history.at[inputs.slots].get(mode="clip")
            sampled = sample(logits, params, history, inputs.ends, inputs.flags)
            written = jnp.where(inputs.samples, inputs.slots, slots.history.shape[0])  # outside: dropped
            tokens = jnp.maximum(sampled.token_ids, 0)
            slots = slots._replace(history=slots.history.at[written, inputs.ends].set(tokens, mode="drop"))
            return DeviceState(caches, slots), sampled

        packed = jax.ShapeDtypeStruct((1 + 7 * bucket.rows,), jnp.int32)
        return jax.jit(step, donate_argnums=1).lower(self.weights, self.state, packed).compile()  # type: ignore[no-any-return]

    def admit(self) -> AdmitProgram:
        """Compiles the admission of one request."""
        slots: SlotState = self.state.slots
        packed = jax.ShapeDtypeStruct((1 + ROW_WIDTH + slots.tables.shape[1] + slots.history.shape[1],), jnp.int32)
        return jax.jit(admit, donate_argnums=0).lower(slots, packed).compile()  # type: ignore[no-any-return]


def shapes_of(tree: Any) -> Shapes:
    """The shapes and types of a pytree of arrays."""
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree)
