"""What paged attention means, in NumPy, one token after the other. Tests hold every fast path against it."""

import numpy as np

from protocol.codec import Float32Array, Int32Array


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
) -> tuple[Float32Array, Float32Array]:
    """Returns (output [T, H, D], cache after the step); float32 throughout, the cache given is not changed.

    q is [T, H, D]; k and v are [T, KH, D], and query head h reads key head h // (H // KH). cache is
    [2 (keys, values), blocks, block_size, KH, D]. Rows lie one after the other, counts[r] tokens each at positions
    starts[r] + i; the rest of T is padding. The token at position p attends to positions 0 … p, with a sliding window w
    to the last w of them, and soft_cap c replaces a score s by c · tanh(s / c).
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
                weights = np.exp(scores - scores.max())
                out[token + i, head] = weights @ values[:, head // group] / weights.sum()
        token += count
    return out, cache
