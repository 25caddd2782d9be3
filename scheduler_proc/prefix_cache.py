"""Which full KV blocks hold which tokens, so that requests with a common prefix share them.

A block is named by SHA-256 over its parent's name and its tokens, as vLLM's prefix caching does it: equal names mean equal
prefixes, and no one can make two prompts collide.
"""

import hashlib
from collections.abc import Iterator

from protocol.codec import Int32Array
from scheduler_proc.breaches import must


def root_hash(cache_salt: str) -> bytes:
    """The parent of a request's first block. Requests with different salts share nothing."""
    return hashlib.sha256(cache_salt.encode("utf-8", "surrogatepass")).digest()


def block_hash(parent: bytes, token_ids: Int32Array) -> bytes:
    """Name of a full block, from its parent's name and its token ids, shape [block_size]."""
    return hashlib.sha256(parent + token_ids.tobytes()).digest()


def in_group(name: bytes, group: int) -> bytes:
    """What the block of this name is called that holds what a group of layers makes of its tokens."""
    return name + bytes((group,)) if group else name


def extend_hashes(hashes: list[bytes], cache_salt: str, tokens: Int32Array, num_blocks: int, block_size: int) -> None:
    """Extends the chain `hashes`, in place, to the first `num_blocks` blocks of `tokens`, shape [tokens, at least those]."""
    parent = hashes[-1] if hashes else root_hash(cache_salt)
    for index in range(len(hashes), num_blocks):
        parent = block_hash(parent, tokens[index * block_size : (index + 1) * block_size])
        hashes.append(parent)


class PrefixCache:
    """The two directions of the map between block names and blocks. Who may still use a block is the pool's business."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self.num_changes = 0  # how often a name came or went, ever

    def __len__(self) -> int:
        return len(self._name_of)

    def __iter__(self) -> Iterator[int]:
        """The named blocks."""
        return iter(self._name_of)

    def __contains__(self, block: int) -> bool:
        return block in self._name_of

    def find(self, name: bytes) -> int | None:
        """The block of this name, or None."""
        return self._block_of.get(name)

    def commit(self, name: bytes, block: int) -> None:
        """Names a block whose contents are on the device. The first block of a name keeps it."""
        if name not in self._block_of and block not in self._name_of:
            self._block_of[name] = block
            self._name_of[block] = name
            self.num_changes += 1

    def forget(self, block: int) -> None:
        """The block's contents are about to change, or are not to be trusted."""
        name = self._name_of.pop(block, None)
        if name is not None:
            del self._block_of[name]
            self.num_changes += 1

    def validate(self) -> None:
        """Raises Breach when the two directions disagree."""
        agree = list(map(self._block_of.get, self._name_of.values())) == list(self._name_of)
        must(agree and len(self._block_of) == len(self._name_of), "names", "the two directions of the prefix cache disagree")
