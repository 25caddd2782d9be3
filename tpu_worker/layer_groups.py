"""Which layers of a model share a block table, and which share memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.cache_groups import CacheGroups
from tpu_worker.models.spec import LayerSpec, ModelSpec
from tpu_worker.platforms.platform import Prepared
from tpu_worker.stacking import Layers

_MOST_GROUPS = 8  # each costs the scheduler its own table, and the device [slots, blocks of the longest sequence] int32
_WORTHWHILE = 1.05  # fewer groups are taken if they need no more than so many times the memory


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """A block holds keys and values of all layers of one group, at the positions of one table. Layers at the same place of
    different groups have the same heads, and share an array: some of its blocks belong to the one group, some to the other."""

    windows: tuple[int, ...]  # of each group, in tokens: no layer of it sees more; 0: everything
    where: tuple[tuple[int, int], ...]  # of each layer: its group, and its place in there

    def places(self, spec: ModelSpec) -> list[LayerSpec]:
        """A layer for each place."""
        return [
            layer for _, layer in sorted({place: layer for (_, place), layer in zip(self.where, spec.layers, strict=True)}.items())
        ]

    def spread(self, prepared: Sequence[Prepared]) -> Layers:
        """What attention needs, of each group -> of each layer."""
        return Layers(tuple([one] for one in prepared), tuple((group, 0) for group, _ in self.where))


def one_group(spec: ModelSpec, window: int = 0) -> LayerGroups:
    """All layers together."""
    return LayerGroups((window,), tuple((0, place) for place in range(len(spec.layers))))


def choose_groups(spec: ModelSpec, max_model_len: int, block_size: int, chunk: int) -> LayerGroups:
    """The groups with which one sequence of max_model_len tokens takes the least memory, or hardly more with fewer groups.

    Layers with the same window, as many as a group has places, form a group; where they do not come out even, places stay empty.
    So blocks of all groups are of one size, and come out of one pool. chunk: tokens of one sequence that a step computes at most.
    """
    windows = [layer.sliding_window or 0 for layer in spec.layers]
    windows = [window if window < max_model_len else 0 for window in windows]
    sizes = Counter(windows)
    candidates = [one_group(spec, max(windows) if all(windows) else 0)]
    if len(sizes) > 1 and len({(layer.num_kv_heads, layer.head_dim) for layer in spec.layers}) == 1:
        candidates += [_split(windows, size) for size in range(1, max(sizes.values()) + 1)]

    def memory(groups: LayerGroups) -> int:
        return len(groups.places(spec)) * CacheGroups(groups.windows, block_size, chunk).demand(max_model_len)

    candidates = [groups for groups in candidates if len(groups.windows) <= _MOST_GROUPS]
    least = min(map(memory, candidates))
    good = [groups for groups in candidates if memory(groups) <= _WORTHWHILE * least]
    return min(good, key=lambda groups: (len(groups.windows), memory(groups)))


def _split(windows: Sequence[int], size: int) -> LayerGroups:
    """Groups of up to `size` layers, each of one window, in the order of their first layers."""
    groups: list[int] = []  # windows
    where: list[tuple[int, int]] = []
    filling: dict[int, tuple[int, int]] = {}  # window -> group, and how many layers it has
    for window in windows:
        group, count = filling.get(window, (0, size))
        if count == size:
            group, count = len(groups), 0
            groups.append(window)
        where.append((group, count))
        filling[window] = group, count + 1
    return LayerGroups(tuple(groups), tuple(where))
