"""The shapes that steps are compiled for: every step runs in the cheapest one that holds it and is compiled."""

from collections.abc import Iterable
from dataclasses import dataclass

_FEWEST = 4  # rows; fewer would not be faster (XLA's matrix products want at least as many)
_GROWTH = 4  # between sizes: kernels that know the real number of rows skip padding, and each shape costs a compilation
# Where padding costs: steps of few rows take as long as their weights, so sizes are far apart there, and close where rows count.
# Of Llama 3.2 1B on TPUs a step takes up to a fifth longer than one of its own size would (docs/tpu.md).
_PADDED_ROWS = (16, 64)  # then twice as many each time
_PADDED_TOKENS = 128  # of steps with prompts, the fewest; then twice as many each time

EXTENSION_WIDTH = 64  # known tokens that one call of `inputs.extend` writes
GROWTH_WIDTH = 64  # blocks that one call of `inputs.grow_tables` appends


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Room for this many tokens, of this many rows. Where they are equal, each row has one token: a decode step."""

    tokens: int
    rows: int


def make_buckets(max_num_seqs: int, max_num_batched_tokens: int, *, padding_costs: bool = False) -> tuple[Bucket, ...]:
    """All buckets of an engine. The first two are the smallest and the one that holds any step.

    padding_costs: as `Platform` has it.
    """
    if padding_costs:
        return _close_buckets(max_num_seqs, max_num_batched_tokens)
    rows = _sizes(max_num_seqs)
    tokens = max(max_num_batched_tokens, rows[-1])
    decode = [Bucket(size, size) for size in rows]
    mixed = [Bucket(size, width) for size in (tokens, tokens // 4) for width in rows[:-1] if width < size]
    return tuple(dict.fromkeys([decode[0], Bucket(tokens, rows[-1]), *decode, *mixed]))


def _close_buckets(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[Bucket, ...]:
    """Those of a platform on which padding costs. Steps with prompts have two sizes of rows, which cost their logits alone."""
    most = -(-max_num_seqs // _FEWEST) * _FEWEST
    rows = [size for size in _PADDED_ROWS if size < most]
    size = 2 * _PADDED_ROWS[-1]
    while size < most:
        rows.append(size)
        size *= 2
    rows.append(most)
    tokens = max(max_num_batched_tokens, most)
    few = min(_PADDED_ROWS[-1], most)
    sizes = [tokens]
    while sizes[-1] // 2 >= max(_PADDED_TOKENS, few + 1):
        sizes.append(sizes[-1] // 2)
    prompts = [Bucket(size, few) for size in sizes if size > few]
    return tuple(dict.fromkeys([Bucket(rows[0], rows[0]), Bucket(tokens, most), *(Bucket(size, size) for size in rows), *prompts]))


def name_of(kind: str, of: Bucket | int) -> str:
    """What a program is called that is compiled for a bucket, or for steps of so many rows."""
    return f"{kind} {of.tokens}x{of.rows}" if isinstance(of, Bucket) else f"{kind} {of}"


def by_cost(buckets: Iterable[Bucket], head_cost: float) -> tuple[Bucket, ...]:
    """The cheapest first. A row costs `head_cost` tokens more, for its logits."""
    return tuple(sorted(buckets, key=lambda bucket: bucket.tokens + head_cost * bucket.rows))


def first_to_hold(tokens: int, rows: int, buckets: Iterable[Bucket], *, decodes_apart: bool = False) -> Bucket:
    """The first of `buckets` that holds a step. Raises ValueError when none does.

    decodes_apart: one with as many tokens as rows is taken for other steps only where there is nothing else.
    """
    holding = [bucket for bucket in buckets if bucket.tokens >= tokens and bucket.rows >= rows]
    if not holding:
        raise ValueError(f"no bucket holds {tokens} tokens of {rows} rows")
    if decodes_apart and tokens > rows:
        return next((bucket for bucket in holding if bucket.tokens > bucket.rows), holding[0])
    return holding[0]


def _sizes(most: int) -> list[int]:
    sizes = [_FEWEST]
    while sizes[-1] < most:
        sizes.append(min(sizes[-1] * _GROWTH, -(-most // _FEWEST) * _FEWEST))
    return sizes
