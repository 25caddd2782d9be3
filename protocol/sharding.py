"""Among how many chips a model can be cut. Known here, since the launcher refuses what the worker could not do."""

from collections.abc import Collection
from dataclasses import dataclass

from protocol.errors import ConfigError

MOST = 256  # chips of a worker


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """What of a layer is cut: each chip gets whole heads, and as much of the MLP as every other."""

    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    num_experts: int = 0  # each of such an MLP: dealt out among the chips, or cut where they are no multiple of these

    def can_be_cut(self, shards: int) -> bool:
        """Key and value heads that are fewer than chips are held by several; the vocabulary is filled up."""
        heads = self.num_heads % shards == 0
        kv_heads = self.num_kv_heads % shards == 0 or shards % self.num_kv_heads == 0
        experts = self.num_experts > 0 and self.num_experts % shards == 0
        return heads and kv_heads and (experts or self.intermediate_size % shards == 0)


def check_shards(shards: int, layers: Collection[LayerSizes], source: str) -> None:
    """Raises ConfigError, naming the sizes and what is possible, when layers of these sizes cannot be cut into so many shards.

    source: where the sizes are said, for people.
    """
    for layer in layers:
        if not layer.can_be_cut(shards):
            possible = [str(size) for size in range(1, MOST + 1) if all(one.can_be_cut(size) for one in layers)]
            raise ConfigError(
                f"--tensor-parallel-size {shards} does not divide {layer.num_heads} heads, {layer.num_kv_heads} heads of keys and "
                f"values and {f'{layer.num_experts} experts' if layer.num_experts else 'an MLP'} of {layer.intermediate_size} "
                f"({source}): possible are {', '.join(possible)}"
            )
