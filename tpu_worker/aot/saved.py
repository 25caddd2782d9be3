"""Compiled programs in a directory: `engine-aot --save` and `engine-launch --save-compiled` write it, `--compiled` names it.

The directory holds `header.json`, which says what the programs depend on, and a file for each program: a line of JSON, and behind
it what JAX serialised. Each file is written whole or not at all, and is known to be whole by its length and a digest.

JAX unpickles what it loads, and what it loads is run: nobody but this user and root may be able to write to the directory.
"""

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import msgspec
from jax.experimental import serialize_executable

from protocol.cache_directory import existing_private_directory, private_directory
from protocol.clock import now
from protocol.config import EngineConfig
from protocol.errors import ConfigError, describe
from tpu_worker.aot.header import Header, difference, make_header
from tpu_worker.blueprint import Blueprint
from tpu_worker.program import Compiler, Shapes

_LOG = logging.getLogger(__name__)

FORMAT = 1
HEADER = "header.json"
_SUFFIX = ".program"
_DRAFT = ".draft-"
_MOST_BLOCKS = 1 << 31  # their numbers are int32


class _SavedHeader(msgspec.Struct, frozen=True):
    """What `header.json` holds."""

    format: int
    header: dict[str, Any]  # `Header`, of whichever version wrote it

    @property
    def num_blocks(self) -> int:
        """Of the KV cache. Raises _UnfitError."""
        value = self.header.get("num_blocks")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < _MOST_BLOCKS:
            raise _UnfitError(f"{HEADER} is damaged: num_blocks is {value!r}")
        return value


class _ProgramHeader(msgspec.Struct, frozen=True):
    """The first line of a program's file."""

    name: str
    belongs_to: str  # digest of the header.json that it belongs to
    arguments: int  # arrays that it takes
    results: int  # … and returns
    length: int  # bytes behind this line
    sha256: str


_SAVED_DECODER = msgspec.json.Decoder(_SavedHeader)
_HEADER_DECODER = msgspec.json.Decoder(_ProgramHeader)


class _UnfitError(Exception):
    """What was saved cannot be used: `str(error)` says why."""


def file_of(name: str) -> str:
    """Where a program of this name lies."""
    return name.replace(" ", "-") + _SUFFIX


def begin_saving(directory: Path, header: Header) -> None:
    """Makes the directory ready for the programs of this header, those of any other are removed. Raises OSError, also where others
    could write to it."""
    directory = private_directory(directory)
    said = _encode_header(header)
    if _read(directory / HEADER) == said:
        return  # others save beside this one, or what an engine did not get to is added
    for path in (directory / HEADER, *directory.glob(f"*{_SUFFIX}"), *directory.glob(f"{_DRAFT}*")):
        path.unlink(missing_ok=True)
    _write(directory / HEADER, said)


def save_program(directory: Path, header: Header, name: str, program: Any) -> None:
    """Writes one program that was compiled, and is not out of JAX's compilation cache (`warmup.leave_compilation_cache`), once
    `begin_saving` was called. Safe from several processes.

    Raises OSError, and whatever JAX does where a program cannot be serialised.
    """
    payload, takes, returns = serialize_executable.serialize(program)
    belongs_to = _digest(_encode_header(header))
    said = _ProgramHeader(name, belongs_to, takes.num_leaves, returns.num_leaves, len(payload), _digest(payload))
    _write(directory / file_of(name), msgspec.json.encode(said) + b"\n" + payload)


class ProgramFiles:
    """What one worker loads, or saves. Implements `program.ProgramStore`.

    What cannot be used is compiled, and the log says why, in one line: of the whole directory, or of each program.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError when others could write to a directory that is to be loaded."""
        self._config = config
        self._load = existing_private_directory("--compiled", config.compiled) if config.compiled else None
        self._save = Path(config.save_compiled) if config.save_compiled else None
        self._saved_blocks = 0
        self._header: Header  # of this worker, from `attach` on
        self._digest: str  # … and its digest
        self._devices: Sequence[jax.Device] = ()
        self._lock = threading.Lock()
        self.loaded: list[str] = []  # names of programs, in their order
        self.compiled: list[str] = []

    def choose_blocks(self, blueprint: Blueprint, weights: Shapes, available: int) -> int:
        """How many KV blocks the worker is to have: those that the programs were compiled for, where they can be used.

        available: how many there is room for. weights: as `Blueprint.compiler` has them.
        """
        if self._load is None:
            return available
        try:
            saved = _read_header(self._load)
            here = make_header(self._config, blueprint, blueprint.compiler(weights, saved.num_blocks), saved.num_blocks)
            if differs := difference(saved.header, here):
                raise _UnfitError(differs)
            if saved.num_blocks > available:
                raise _UnfitError(f"they are for {saved.num_blocks} KV blocks, and there is room for {available}")
        except (OSError, _UnfitError) as error:
            self._give_up(str(error))
            return available
        self._saved_blocks = saved.num_blocks
        return saved.num_blocks

    def attach(self, blueprint: Blueprint, compiler: Compiler, num_blocks: int) -> Compiler:
        """The compiler, with these programs. num_blocks: that it has. Raises ConfigError where programs cannot be saved."""
        if self._load is not None and num_blocks != self._saved_blocks:  # another host of this worker has no room, or no programs
            self._give_up(f"they are for {self._saved_blocks} KV blocks, and all hosts together have room for {num_blocks}")
        if self._load is None and self._save is None:
            return compiler
        self._header = make_header(self._config, blueprint, compiler, num_blocks)
        self._digest = _digest(_encode_header(self._header))
        self._devices = list(compiler.layout.mesh.devices.flat)
        if self._save is not None:
            try:
                begin_saving(self._save, self._header)
            except OSError as error:
                raise ConfigError(f"--save-compiled {self._save}: {error}") from error
        return replace(compiler, store=self)

    def find(self, name: str, arguments: Any, results: Any) -> Any | None:
        """As the protocol says."""
        if self._load is None:
            return None
        began = now()
        try:
            program = self._find(self._load / file_of(name), name, arguments, results)
        except Exception as error:  # noqa: BLE001 - whatever JAX raises: it can be compiled
            _LOG.warning("--compiled %s: program %s is compiled instead: %s", self._load, name, describe(error))
            return None
        with self._lock:
            self.loaded.append(name)
        _LOG.debug("program %s: loaded in %.3f s", name, now() - began)
        return program

    def keep(self, name: str, program: Any) -> None:
        """As the protocol says."""
        with self._lock:
            self.compiled.append(name)
        _LOG.debug("program %s: compiled", name)
        if self._save is None:
            return
        try:
            save_program(self._save, self._header, name, program)
        except Exception as error:  # noqa: BLE001 - a full disk, or whatever JAX raises: the program is there all the same
            _LOG.warning("--save-compiled %s: program %s is not saved: %s", self._save, name, describe(error))

    def _find(self, path: Path, name: str, arguments: Any, results: Any) -> Any:
        data = _read(path)
        if data is None:
            raise _UnfitError(f"{path.name} is missing")
        line, _, payload = data.partition(b"\n")
        try:
            header = _HEADER_DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _UnfitError(f"{path.name} is damaged: {error}") from error
        if header.length != len(payload):
            raise _UnfitError(f"{path.name} is cut short: {len(payload)} bytes of {header.length}")
        if header.sha256 != _digest(payload):
            raise _UnfitError(f"{path.name} is damaged: its digest differs")
        if header.belongs_to != self._digest or header.name != name:
            raise _UnfitError(f"{path.name} belongs to another directory")
        takes, returns = _structure((arguments, {})), _structure(results)
        if (header.arguments, header.results) != (takes.num_leaves, returns.num_leaves):
            raise _UnfitError(f"{path.name} takes or returns something else")
        return serialize_executable.deserialize_and_load(
            payload, takes, returns, self._devices[0].client, execution_devices=self._devices
        )

    def _give_up(self, why: str) -> None:
        _LOG.warning("--compiled %s: programs are compiled instead: %s", self._load, why)
        self._load = None


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _encode_header(header: Header) -> bytes:
    said = msgspec.json.encode(_SavedHeader(FORMAT, msgspec.to_builtins(header)))
    return msgspec.json.format(said) + b"\n"


def _read_header(directory: Path) -> _SavedHeader:
    """Raises _UnfitError, OSError."""
    said = _read(directory / HEADER)
    if said is None:
        raise _UnfitError(f"{HEADER} is missing")
    try:
        saved = _SAVED_DECODER.decode(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _UnfitError(f"{HEADER} is cut short or damaged: {error}") from error
    if saved.format != FORMAT:
        raise _UnfitError(f"{HEADER} is of format {saved.format}, and this engine reads {FORMAT}")
    return saved


def _read(path: Path) -> bytes | None:
    """All of a file; None: it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user alone."""
    fd, draft = tempfile.mkstemp(prefix=_DRAFT, dir=path.parent)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
