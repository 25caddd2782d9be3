"""How weights are kept, in words for people."""

from collections import Counter
from collections.abc import Collection

import jax

from tpu_worker.models.family import Weights
from tpu_worker.weights.blocks import INT8, KINDS
from tpu_worker.weights.scaled_blocks import label
from tpu_worker.weights.scaled_rows import DTYPES

_WORTH_SAYING = 0.01  # of all bytes: less are norms and biases
# Of arrays that are not in blocks; what else there is holds bf16, alone or in pairs.
_TYPES = {"float32": "f32", "float16": "f16", "int8": "int8", "float8_e4m3fn": "fp8"}


def bytes_by_kind(weights: Weights) -> Counter[str]:
    """Bytes of the weights on all chips that are kept in each kind of blocks, or as floats."""
    sizes: Counter[str] = Counter()
    for leaf in jax.tree.leaves(weights, is_leaf=lambda node: hasattr(node, "panels")):
        kind = getattr(leaf, "kind", None)
        for array in jax.tree.leaves(leaf):
            sizes[label(kind) if kind else _TYPES.get(str(array.dtype), "bf16")] += array.nbytes
    return sizes


def describe_weights(weights: Weights, held: Collection[str]) -> str:
    """As in "Q4_K 112 MB, Q6_K 34 MB, bf16 50 MB", the most first. held: the kinds of blocks that the files have."""
    sizes = bytes_by_kind(weights)
    worth: list[tuple[str, int]] = [item for item in sizes.most_common() if item[1] >= _WORTH_SAYING * sizes.total()]
    names: dict[str, str] = {} if INT8 in held else {INT8: "int8"}
    kept = ", ".join(f"{names.get(kind, kind)} {_megabytes(size)}" for kind, size in worth)
    there = {size.upper() if size in DTYPES else size for size in sizes}
    dequantised = sorted({label(kind) for kind in held} - there, key=lambda kind: (KINDS.get(kind, len(KINDS)), kind))
    return kept + (f" ({', '.join(dequantised)} dequantised)" if dequantised else "")


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} KB"
