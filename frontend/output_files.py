"""Files that somebody names with a flag to be written once a command has run: a name that cannot be is said before it runs."""

import os
from pathlib import Path

from protocol.errors import ConfigError


def check_output_file(flag: str, path: str) -> None:
    """Raises ConfigError, naming the flag, when nothing can be written to this path; nothing is written here."""
    file = Path(path).absolute()
    try:
        if not file.parent.is_dir():
            raise ConfigError(f"{flag} {path}: there is no directory {file.parent}")
        if file.is_dir():
            raise ConfigError(f"{flag} {path}: is a directory, a file is wanted")
        written = file if file.exists() else file.parent
    except OSError as error:  # too long, or in a directory that may not be looked into
        raise ConfigError(f"{flag} {path}: {error.strerror}") from error
    if not os.access(written, os.W_OK):
        raise ConfigError(f"{flag} {path}: nothing may be written into {written}")
