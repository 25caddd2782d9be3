"""An engine to be fuzzed, and whether it is still what it was."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from tests.fuzz.target import HANG
from tests.integration.launching import Engine, launch


class Watched:
    """An engine, and those of its processes that have to stay."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        url = urlsplit(engine.address)
        self.host, self.port = url.hostname or "", url.port or 0
        self.socket = str(engine.socket)
        self._processes = self._now()

    @property
    def run_dir(self) -> Path:
        """Where its pipes lie."""
        (found,) = (path for path in self.engine.directory.glob("twodeep-*") if path.is_dir())
        return found

    def document(self) -> dict[str, Any]:
        """Its OpenAPI document."""
        document: dict[str, Any] = json.loads(httpx.get(self.engine.address + "/openapi.json", timeout=HANG).text)
        return document

    def fault(self) -> str:
        """What is wrong with it; empty: nothing."""
        if (code := self.engine.process.poll()) is not None:
            return f"the engine ended with code {code}: {self.engine.said()[-1000:]}"
        if gone := self._processes - self._now():
            return f"{len(gone)} of the engine's processes ended: {self.engine.said()[-1000:]}"
        try:
            answer = httpx.post(self.engine.address + "/v1/completions", json={"prompt": [5, 6], "max_tokens": 4}, timeout=HANG)
        except httpx.HTTPError as error:
            return f"a healthy client was not answered: {type(error).__name__}"
        return "" if answer.status_code == 200 else f"a healthy client was answered with {answer.status_code}: {answer.text[:300]}"

    def _now(self) -> set[int]:
        """The launcher's own children; theirs come and go."""
        return {child.pid for child in psutil.Process(self.engine.process.pid).children()}


@contextlib.contextmanager
def watched_engine() -> Iterator[Watched]:
    """The demo model's tokenizer in front of a simulated device that takes no time."""
    flags = ("--device", "sim", "--sim-decode-us", "0", "--sim-prefill-us-per-token", "0", "--max-num-seqs", "64")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory, launch(Path(directory) / "engine", *flags) as engine:
        yield Watched(engine)
