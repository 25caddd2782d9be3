"""The parts of a model that `llama-gguf-split` cut into several files, as one header.

Each part is a GGUF file and says which one it is: `split.no` counts from 0, `split.count` parts hold `split.tensors.count` tensors
together; the first one has all other metadata. They are found by their names, NAME-00001-of-00003.gguf.
"""

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import ModelError

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_MOST_SHARDS = 1 << 10
_AGAIN = ": download the parts again, all from one place"


@dataclass(frozen=True, slots=True)
class Shard:
    """What one part says of itself."""

    number: int  # from 0
    count: int
    tensors: int | None  # in all parts, where it says so


def shard_name(stem: str, number: int, count: int) -> str:
    """Of the file that holds part `number`, from 0."""
    return f"{stem}-{number + 1:05}-of-{count:05}.gguf"


def whole_name(name: str) -> str:
    """Of a model, by the name of one of its parts or of its only file, without its ending."""
    match = _NAME.fullmatch(name)
    return match[1] if match else name.removesuffix(".gguf")


def shard_of(path: str | Path, metadata: Mapping[str, object]) -> Shard | None:
    """None for a whole model. Raises ModelError for a part that cannot be one of several."""
    count = metadata.get("split.count")
    if count is None or (_is_count(count) and count == 1):
        return None
    number, tensors = metadata.get("split.no"), metadata.get("split.tensors.count")
    if not isinstance(count, int) or not _is_count(count) or count > _MOST_SHARDS:
        raise ModelError(f"{path}: split.count is {reprlib.repr(count)}, a number from 1 to {_MOST_SHARDS} is wanted{_AGAIN}")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise ModelError(f"{path}: split.no is {reprlib.repr(number)}, a number from 0 to {count - 1} is wanted{_AGAIN}")
    return Shard(number, count, tensors if isinstance(tensors, int) and not isinstance(tensors, bool) else None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def shard_paths(path: str | Path, shard: Shard) -> list[Path]:
    """All parts' files, by that of one of them. Raises ModelError when names do not say which is which, or files are not there."""
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    own = f"part {shard.number + 1} of {shard.count} of a split model"
    if not match or int(match[3]) != shard.count or int(match[2]) != shard.number + 1:
        wanted = shard_name(match[1] if match else path.stem, shard.number, shard.count)
        raise ModelError(f"{path}: it is {own}, and its parts are found by their names: this one is to be called {wanted}")
    paths = [path.with_name(shard_name(match[1], number, shard.count)) for number in range(shard.count)]
    missing = [other.name for other in paths if not other.is_file()]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(f"{path}: it is {own}, and of the others these are not beside it: {shown}: download them, too")
    return paths


def check_shards(found: Mapping[Path, tuple[Shard | None, Mapping[str, object], Mapping[str, object]]]) -> None:
    """Raises ModelError unless parts are of one model; found: of each file what it says of itself, its metadata and its tensors."""
    (first, (own, metadata, _)), *_ = found.items()
    assert own is not None
    where: dict[str, Path] = {}
    for number, (path, (shard, of_part, tensors)) in enumerate(found.items()):
        if shard is None or (shard.number, shard.count) != (number, own.count):
            says = "a whole model" if shard is None else f"part {shard.number + 1} of {shard.count}"
            raise ModelError(f"{path}: by its name part {number + 1} of {own.count}, but it says that it is {says}{_AGAIN}")
        if shard.tensors != own.tensors:
            raise ModelError(
                f"{path}: split.tensors.count is {shard.tensors}, and in {first.name} {own.tensors}: parts of two models{_AGAIN}"
            )
        for key in ("general.architecture", "general.name"):
            if of_part.get(key, metadata.get(key)) != metadata.get(key):
                raise ModelError(
                    f"{path}: {key} is {reprlib.repr(of_part[key])}, and in {first.name} {reprlib.repr(metadata.get(key))}: "
                    f"parts of two models{_AGAIN}"
                )
        for tensor in tensors:
            if tensor in where:
                raise ModelError(f"{path}: tensor {tensor} is in {where[tensor].name}, too: parts of two models{_AGAIN}")
            where[tensor] = path
    if own.tensors is not None and len(where) != own.tensors:
        raise ModelError(
            f"{first}: split.tensors.count is {own.tensors}, but its {own.count} parts hold {len(where)} tensors: "
            f"parts of two models, or damaged{_AGAIN}"
        )
