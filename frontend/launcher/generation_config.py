"""The sampling parameters that a model's files suggest for requests that say nothing, and what the operator puts in their place."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from frontend.launcher.models import ModelFiles
from frontend.server.text.tokenizer_files import read_settings
from protocol.errors import ConfigError, ModelError
from protocol.params import ParameterError, SamplingDefaults, check

_FILE = "generation_config.json"
_NOBODYS = ("none", "vllm")  # the second is vLLM's word for it
_NAMES = {  # in these files -> ours
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def sampling_defaults(choice: str, override: str, files: ModelFiles) -> tuple[SamplingDefaults, str]:
    """`choice`, `override`: of the flags. Returns also a sentence on where the defaults come from; empty: there are none.

    Raises ModelError or ConfigError naming file or flag, and the field.
    """
    found, origin = SamplingDefaults(), ""
    if choice == "auto":
        directory = Path(files.path) if files.format == "huggingface" else None
    elif choice in _NOBODYS:
        directory = None
    else:
        directory = Path(os.path.expanduser(choice))
        if directory.name == _FILE:
            directory = directory.parent
        if not (directory / _FILE).is_file():
            raise ConfigError(f"--generation-config {choice}: auto, none, or a directory that holds {_FILE} is wanted")
    if directory is not None:
        path = directory / _FILE
        try:
            found = _checked(read_settings(path), only_known=False)
        except ValueError as error:
            raise ModelError(f"{path}: {error}; --generation-config none leaves the file out") from error
        origin = f"as {path} has it" if found.given() else ""
    if override:
        try:
            changes = json.loads(override)
            if not isinstance(changes, dict):
                raise ValueError("no JSON object")
            found = msgspec.structs.replace(found, **_checked(changes, only_known=True).given())
        except ValueError as error:
            raise ConfigError(f"--override-generation-config: {error}") from error
        origin = f"{origin}, and --override-generation-config" if origin else "as --override-generation-config has it"
    values = ", ".join(f"{name} {value:g}" for name, value in found.given().items())
    return found, f"requests without sampling parameters of their own get {values}, {origin}" if values else ""


def _checked(fields: Mapping[str, object], *, only_known: bool) -> SamplingDefaults:
    """Raises ValueError naming the field. What these files hold besides concerns other programs."""
    if only_known and (unknown := sorted(fields.keys() - _NAMES.keys())):
        raise ValueError(f"{unknown[0]} is none of {', '.join(_NAMES)}")
    given = {ours: fields[theirs] for theirs, ours in _NAMES.items() if fields.get(theirs) is not None}
    try:
        defaults = msgspec.convert(given, SamplingDefaults)
        check(defaults.params(), 1)
    except (msgspec.ValidationError, ParameterError) as error:
        raise ValueError(str(error)) from error
    return defaults
