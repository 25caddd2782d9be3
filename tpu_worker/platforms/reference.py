"""What paged attention and mixtures of experts mean, in NumPy, one token after the other. Tests hold every fast path against it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.codec import Float32Array, Int32Array

Reals: TypeAlias = npt.NDArray[np.floating[Any]]


def attend(
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    cache: Float32Array,
    block_tables: Int32Array,
    starts: Int32Array,
    counts: Int32Array,
    *,
    scale: float,
    sliding_window: int | None = None,
    soft_cap: float | None = None,
    sinks: Float32Array | None = None,
) -> tuple[Float32Array, Float32Array]:
    """Returns (output [T, H, D], cache after the step); float32 throughout, the cache given is not changed.

    q is [T, H, D]; k and v are [T, KH, D], and query head h reads key head h // (H // KH). cache is
    [2 (keys, values), blocks, block_size, KH, D]. Rows lie one after the other, counts[r] tokens each at positions
    starts[r] + i; the rest of T is padding. The token at position p attends to positions 0 … p, with a sliding window w
    to the last w of them, and soft_cap c replaces a score s by c · tanh(s / c). sinks [H] are
    scores, one of each head, that take part in the softmax as if of a position whose value is zero.
    """
    cache, out = cache.copy(), np.zeros_like(q)
    block_size, group = cache.shape[2], q.shape[1] // k.shape[1]
    token = 0
    for table, start, count in zip(block_tables, starts, counts, strict=True):
        for i in range(count):
            block, offset = divmod(int(start) + i, block_size)
            cache[0, table[block], offset], cache[1, table[block], offset] = k[token + i], v[token + i]
        for i in range(count):
            position = int(start) + i
            first = 0 if sliding_window is None else max(0, position - sliding_window + 1)
            seen = np.arange(first, position + 1)
            keys, values = cache[:, table[seen // block_size], seen % block_size]  # [seen, KH, D]
            for head in range(q.shape[1]):
                scores = keys[:, head // group] @ q[token + i, head] * np.float32(scale)
                if soft_cap is not None:
                    scores = np.float32(soft_cap) * np.tanh(scores / np.float32(soft_cap))
                top = scores.max() if sinks is None else max(scores.max(), sinks[head])
                weights = np.exp(scores - top)
                rest = 0.0 if sinks is None else np.exp(sinks[head] - top)
                out[token + i, head] = weights @ values[:, head // group] / (weights.sum() + rest)
        token += count
    return out, cache


def experts(
    x: Reals,
    chosen: Int32Array,
    shares: Reals,
    gate_up: Reals,
    down: Reals,
    gated: Callable[[Reals, Reals], Reals],
    gate_up_bias: Reals | None = None,
    down_bias: Reals | None = None,
) -> Reals:
    """What a mixture of experts makes of x [T, in], one token and one choice after the other: [T, out].

    chosen [T, C]: expert numbers, others count nothing; shares [T, C]. gate_up [E, 2 mlp, in], gates first, down [E, out, mlp];
    gate_up_bias [2 E, mlp], those of all gates first, down_bias [E, out].
    """
    num_experts, mlp = len(down), down.shape[2]
    both = np.zeros((2 * num_experts, mlp)) if gate_up_bias is None else gate_up_bias
    last = np.zeros(down.shape[:2]) if down_bias is None else down_bias
    out = np.zeros((len(x), down.shape[1]))
    for token, row in enumerate(x):
        for expert, share in zip(chosen[token], shares[token], strict=True):
            if not 0 <= expert < num_experts:
                continue
            gate = gate_up[expert, :mlp] @ row + both[expert]
            up = gate_up[expert, mlp:] @ row + both[num_experts + expert]
            out[token] += share * (down[expert] @ gated(gate, up) + last[expert])
    return out
