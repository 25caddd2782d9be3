"""The shapes that steps are compiled for: every step runs in the smallest one that holds it and is compiled."""

from dataclasses import dataclass

_FEWEST = 4  # rows; fewer would not be faster (the matrix products run on at least as many)


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Room for this many tokens, of this many rows. Where they are equal, each row has one token: a decode step."""

    tokens: int
    rows: int


def make_buckets(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[Bucket, ...]:
    """All buckets of an engine, those to compile first at the front: the last of them holds any step.

    Powers of two for decode steps, where time goes with the rows. Steps with prefill come in three sizes of tokens, each a
    quarter of the next: their padding costs little beside a compilation, and kernels that know the real number skip it.
    """
    rows = _powers(_FEWEST, max_num_seqs)
    tokens = max(max_num_batched_tokens, rows[-1])
    decode = [Bucket(size, size) for size in rows]
    sizes = sorted({max(_FEWEST, tokens // 16), max(_FEWEST, tokens // 4), tokens})
    few = rows[min(1, len(rows) - 1)]
    mixed = [Bucket(size, width) for size in sizes for width in sorted({few, min(few * 8, rows[-1]), rows[-1]}) if width < size]
    everything = Bucket(tokens, rows[-1])
    first = [decode[0], Bucket(tokens, few), everything]
    return tuple(dict.fromkeys(first + decode + mixed))


def smallest(buckets: list[Bucket], tokens: int, rows: int, head_cost: float) -> Bucket:
    """The cheapest of `buckets` that holds a step. A row costs `head_cost` tokens more, for its logits.

    Raises ValueError when none is large enough.
    """
    fitting = [bucket for bucket in buckets if bucket.tokens >= tokens and bucket.rows >= rows]
    if not fitting:
        raise ValueError(f"no bucket holds {tokens} tokens of {rows} rows")
    return min(fitting, key=lambda bucket: bucket.tokens + head_cost * bucket.rows)


def _powers(least: int, most: int) -> list[int]:
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(sizes[-1] * 2)
    return sizes
