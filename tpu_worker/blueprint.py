"""What a worker is going to run, worked out before any of it is there: sizes, layout, buckets, and the shapes of its programs."""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass

import jax

from protocol.config import EngineConfig
from protocol.model_files import check_length
from tpu_worker.buckets import Bucket, make_buckets
from tpu_worker.inputs import make_slots
from tpu_worker.kv_cache import bytes_per_block, make_caches, working_memory
from tpu_worker.layer_groups import LayerGroups, choose_groups
from tpu_worker.mesh.layout import REPLICATED, Layout
from tpu_worker.models.family import Model
from tpu_worker.models.spec import ModelSpec
from tpu_worker.platforms.choose import choose_platform
from tpu_worker.platforms.platform import Platform
from tpu_worker.program import STATE, Compiler, DeviceState, Shapes
from tpu_worker.rules import make_rules
from tpu_worker.weights.load import kinds_held
from tpu_worker.weights.precision import choose_float_type
from tpu_worker.weights.source import WeightSource


@dataclass(frozen=True, slots=True)
class Blueprint:
    """One worker's choices. Nothing in here takes memory of a device, and the chips need not be there."""

    model: Model
    layout: Layout
    spec: ModelSpec  # of one shard
    platform: Platform
    kinds: Collection[str]  # of the blocks in which the files hold weights
    block_size: int  # of the KV cache, in tokens
    max_model_len: int  # tokens
    max_num_seqs: int
    groups: LayerGroups
    buckets: tuple[Bucket, ...]

    @property
    def bytes_per_block(self) -> int:
        """Of the KV cache, on each chip."""
        return bytes_per_block(self.spec, self.platform.attention, self.block_size, self.groups)

    @property
    def working_memory(self) -> int:
        """About how many bytes the largest step works in, on each chip."""
        return max(working_memory(self.spec, bucket) for bucket in self.buckets)

    def make_state(self, num_blocks: int) -> Callable[[], DeviceState]:
        """A function that makes the state that steps begin with, for `jax.jit`."""

        def make_empty() -> DeviceState:
            caches = make_caches(self.spec, self.platform.attention, num_blocks, self.block_size, self.groups)
            slots = make_slots(self.max_num_seqs, self.max_model_len, self.block_size, len(self.groups.windows))
            return DeviceState(caches, slots)

        return self.layout.program(make_empty, (), STATE)

    def make_rules(self) -> Callable[[], jax.Array]:
        """The same of the rules of all slots."""
        return self.layout.program(functools.partial(make_rules, self.max_num_seqs, self.spec.vocab_size), (), REPLICATED)

    def compiler(self, weights: Shapes, num_blocks: int) -> Compiler:
        """Of all programs. weights: `WeightLoader.shapes`."""
        caches, slots = jax.eval_shape(self.make_state(num_blocks))
        state = DeviceState(self.layout.shapes(caches, STATE.caches), self.layout.shapes(slots, STATE.slots))
        return Compiler(self.model, self.platform, self.layout, self.block_size, self.groups, weights, state)


def draw_blueprint(
    config: EngineConfig, source: WeightSource, layout: Layout, device: str, platform: Platform | None = None
) -> Blueprint:
    """For the model of `source` on chips that JAX calls `device`. platform: the fastest for them unless given.

    Raises ConfigError when the model cannot be cut so, or nothing there serves what is asked for.
    """
    model = source.model
    layout.check(model.spec, config.model_path)
    spec = layout.spec_of_shard(model.spec)
    kinds = kinds_held(source)
    if platform is None:
        platform = choose_platform(
            device,
            config.quantization,
            kinds,
            config.block_size,
            {layer.head_dim for layer in spec.layers},
            layout.num_shards,
            choose_float_type(config.dtype, config.quantization, source),
            min(layer.num_kv_heads for layer in spec.layers),
            config.kv_cache_dtype,
        )
    block_size = config.block_size or platform.block_size
    max_model_len = check_length(config.max_model_len, spec.context_length, f"context of {config.model_path}")
    return Blueprint(
        model=model,
        layout=layout,
        spec=spec,
        platform=platform,
        kinds=kinds,
        block_size=block_size,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        groups=choose_groups(spec, max_model_len, block_size, config.max_num_batched_tokens),
        buckets=make_buckets(config.max_num_seqs, config.max_num_batched_tokens, padding_costs=platform.padding_costs),
    )
