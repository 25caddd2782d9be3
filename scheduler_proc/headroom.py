"""Whether a worker's free KV blocks hold a request, and which blocks it need not have of its own."""

from dataclasses import dataclass

from protocol.cache_groups import CacheGroups
from scheduler_proc.blocks import BlockPool
from scheduler_proc.prefix_cache import extend_hashes
from scheduler_proc.prefix_hit import Hit, longest_hit
from scheduler_proc.request import Request

_WATERMARK = 0.01  # share of the blocks that an admission leaves free, so that it does not preempt its elders at once (as vLLM)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A request did not fit. It does not fit now either unless one of these facts has changed enough."""

    request: Request
    length: int
    short: int
    freed: int
    missing: bytes | None  # name of its first block that the cache did not have
    changes: int  # of the cache's names by then, where any may matter
    alone: bool


class Headroom:
    """Answers for one pool."""

    def __init__(self, pool: BlockPool, groups: CacheGroups, *, prefix_caching: bool) -> None:
        self._pool = pool
        self._groups = groups
        self._windowed = bool(groups.windowed)
        self._prefix_caching = prefix_caching
        self._refusal: _Refusal | None = None

    def fits(self, request: Request, *, alone: bool) -> bool:
        """Whether blocks are free for every known token, or as many as it holds at once. `alone`: nobody else runs, so nothing is
        kept free for anybody.

        The head of the queue asks after every step, so the answer to one that was refused before costs next to nothing: it can
        only fit when enough blocks were freed since, or when the cache has more of its prefix. With windows, what it shares may
        also grow where something was taken out of the middle, or shrink to blocks that others hold: any change of the cache counts.
        """
        if self._still_refused(request, alone):
            return False
        hit = self.hit(request)
        short = self._short(request, hit, alone)
        if short <= 0:
            return True
        names = request.block_hashes
        missing = names[hit.num_blocks] if hit.num_blocks < min(len(names), self._usable(request)) else None
        self._refusal = _Refusal(request, len(request.tokens), short, self._pool.num_freed, missing, self._changes(), alone)
        return False

    def short(self, request: Request, *, alone: bool) -> int:
        """How many blocks must become free before the request fits; none or fewer: it fits."""
        return self._short(request, self.hit(request), alone)

    def hit(self, request: Request, held: int = 0) -> Hit:
        """The longest cached prefix, as far as the request may share it; `held`: as in `longest_hit`."""
        usable = self._usable(request) if self._prefix_caching else 0
        extend_hashes(request.block_hashes, request.cache_salt, request.tokens, usable, self._groups.block_size)
        return longest_hit(self._pool.cache, request.block_hashes, usable, self._groups, held)

    def _usable(self, request: Request) -> int:
        return request.shareable_blocks(self._groups.block_size)

    def _changes(self) -> int:
        return self._pool.cache.num_changes if self._windowed else 0

    def _short(self, request: Request, hit: Hit, alone: bool) -> int:
        needed, start = 0, hit.num_blocks * self._groups.block_size
        for group, shared in enumerate(hit.blocks):
            begin, end = self._groups.span(group, start, len(request.tokens))
            needed += end - begin - len(shared) + self._pool.idle_among(shared)
        reserve = 0 if alone else int(_WATERMARK * self._pool.num_blocks)
        return needed + reserve - self._pool.num_free

    def _still_refused(self, request: Request, alone: bool) -> bool:
        last = self._refusal
        if last is None or last.request is not request or (last.length, last.alone) != (len(request.tokens), alone):
            return False
        if last.changes != self._changes():
            return False
        if last.missing is not None and self._pool.cache.find(last.missing) is not None:
            return False
        # Blocks that it shares count the same free or held, and whatever else is taken only makes it worse.
        return self._pool.num_freed - last.freed < last.short
