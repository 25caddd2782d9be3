"""Models whose sizes come with the package: for each a config.json with what was published of it, and no weights."""

from pathlib import Path

_DIRECTORY = Path(__file__).resolve().parent / "shapes"


def shape_names() -> list[str]:
    """What `--model` may name."""
    return sorted(path.name for path in _DIRECTORY.iterdir() if path.is_dir())


def shape_directory(name: str) -> Path | None:
    """Where the config.json of a model lies, by its name in letters of either size; None: there is none of that name."""
    return _DIRECTORY / name.lower() if name.lower() in shape_names() else None


def is_shape(directory: Path) -> bool:
    """Whether it is one of these, which has no tokenizer."""
    return directory.parent == _DIRECTORY
