"""Whether a worker's free KV blocks hold a request, and which blocks it need not have of its own."""

from dataclasses import dataclass

from scheduler_proc.blocks import BlockPool
from scheduler_proc.prefix_cache import extend_hashes
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
    alone: bool


class Headroom:
    """Answers for one pool."""

    def __init__(self, pool: BlockPool, block_size: int, *, prefix_caching: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._prefix_caching = prefix_caching
        self._refusal: _Refusal | None = None

    def fits(self, request: Request, *, alone: bool) -> bool:
        """Whether blocks for every known token are free. `alone`: nobody else runs, so nothing is kept free for anybody.

        The head of the queue asks after every step, so the answer to one that was refused before costs next to nothing: it can
        only fit when enough blocks were freed since, or when the cache has more of its prefix.
        """
        if self._still_refused(request, alone):
            return False
        cached = self.cached_blocks(request)
        short = self._short(request, cached, alone)
        if short <= 0:
            return True
        names = request.block_hashes
        missing = names[len(cached)] if len(cached) < min(len(names), self._usable(request)) else None
        self._refusal = _Refusal(request, len(request.tokens), short, self._pool.num_freed, missing, alone)
        return False

    def short(self, request: Request, *, alone: bool) -> int:
        """How many blocks must become free before the request fits; none or fewer: it fits."""
        return self._short(request, self.cached_blocks(request), alone)

    def cached_blocks(self, request: Request) -> list[int]:
        """Blocks of the longest cached prefix, as far as the request may share them."""
        if not self._prefix_caching:
            return []
        usable = self._usable(request)
        extend_hashes(request.block_hashes, request.cache_salt, request.tokens, usable, self._block_size)
        blocks = []
        for name in request.block_hashes[:usable]:
            block = self._pool.cache.find(name)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _usable(self, request: Request) -> int:
        return request.shareable_blocks(self._block_size)

    def _short(self, request: Request, cached: list[int], alone: bool) -> int:
        needed = -(-len(request.tokens) // self._block_size) - len(cached) + self._pool.idle_among(cached)
        reserve = 0 if alone else int(_WATERMARK * self._pool.num_blocks)
        return needed + reserve - self._pool.num_free

    def _still_refused(self, request: Request, alone: bool) -> bool:
        last = self._refusal
        if last is None or last.request is not request or (last.length, last.alone) != (len(request.tokens), alone):
            return False
        if last.missing is not None and self._pool.cache.find(last.missing) is not None:
            return False
        # Blocks that it shares count the same free or held, and whatever else is taken only makes it worse.
        return self._pool.num_freed - last.freed < last.short
