"""Models whose sizes come with the package, each a config.json with what was published of it: enough to compile, not to serve."""

from pathlib import Path

_DIRECTORY = Path(__file__).resolve().parent / "shapes"


def shape_names() -> list[str]:
    """What `--model` may name."""
    return sorted(path.name for path in _DIRECTORY.iterdir() if path.is_dir())


def shape_directory(name: str) -> Path | None:
    """Where the config.json of a model lies; None: there is none of that name."""
    path = _DIRECTORY / name.lower()
    return path if name and path.parent == _DIRECTORY and path.is_dir() else None
