"""Lets a process of its own download a model, shows how far it is, and heeds signals meanwhile."""

import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from frontend.launcher.fetch import Order, Report
from frontend.launcher.notify import EXTENSION, MANAGER_VARIABLES, Notifier
from frontend.launcher.output import say
from frontend.launcher.repositories import Wanted
from frontend.launcher.signals import Signals
from protocol.clock import now
from protocol.config import EngineConfig
from protocol.errors import ModelError

_STEPS = 20  # lines that tell of one download
_STALLED = next(field.default for field in msgspec.structs.fields(EngineConfig) if field.name == "boot_timeout")  # seconds


class StopAsked(Exception):
    """A signal asks to stop before anything is served."""


class Download(Protocol):
    """How a model comes that is not here."""

    def __call__(self, wanted: Wanted, cache: Path) -> Path:
        """Its directory or GGUF file. Raises ModelError."""
        ...


class Downloader:
    """Implements `Download`."""

    def __init__(self, signals: Signals, environ: Mapping[str, str]) -> None:
        self._signals = signals
        self._notifier = Notifier(environ)
        self._environ = {name: value for name, value in environ.items() if name not in MANAGER_VARIABLES}

    def __call__(self, wanted: Wanted, cache: Path) -> Path:
        """As the protocol says. Raises StopAsked when a signal comes; what has come until then is kept."""
        order = msgspec.json.encode(Order(wanted, str(cache))).decode()
        program = [sys.executable, "-P", "-m", "frontend.launcher.fetch", order]
        # A group of its own: the terminal's Ctrl-C reaches the launcher alone.
        with (
            subprocess.Popen(
                program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self._environ, process_group=0
            ) as process,
            selectors.DefaultSelector() as selector,
        ):
            assert process.stdout is not None
            try:
                selector.register(process.stdout, selectors.EVENT_READ)
                selector.register(self._signals, selectors.EVENT_READ)
                return self._follow(wanted, selector, process.stdout.fileno())
            finally:
                process.kill()

    def _follow(self, wanted: Wanted, selector: selectors.BaseSelector, lines: int) -> Path:
        shown, moved, done, pending = -1, now(), -1, b""
        while True:
            self._notifier.starting()
            ready = [key.fd for key, _ in selector.select(EXTENSION / 4)]
            if self._signals.fileno() in ready and "stop" in self._signals.take():
                raise StopAsked
            if now() - moved > _STALLED:
                raise ModelError(f"{wanted.repository}: no byte came for {_STALLED:g} s: start again, what has come is kept")
            if lines not in ready:
                continue
            if not (data := os.read(lines, 1 << 16)):
                raise ModelError(f"{wanted.repository}: the download ended without a word: start again, what has come is kept")
            *whole, pending = (pending + data).split(b"\n")
            for line in whole:
                report = msgspec.json.decode(line, type=Report)
                if report.error:
                    raise ModelError(f"--model {report.error}")
                if report.path:
                    return Path(report.path)
                if report.done != done:
                    moved, done = now(), report.done
                step = _STEPS * report.done // max(report.total, 1)
                if step > shown:
                    shown = step
                    text = f"downloading {wanted.repository}: {report.done / 1e6:,.0f} of {report.total / 1e6:,.0f} MB"
                    say(text)
                    self._notifier.status(text)
