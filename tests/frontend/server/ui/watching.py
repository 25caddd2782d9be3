"""A page's side of the stream of events, without a browser."""

import json
from collections.abc import Iterator
from typing import Any

import httpx


class Watching:
    """One open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        name, self.about = self.event()
        assert name == "engine"

    def event(self) -> tuple[str, dict[str, Any]]:
        """The next one."""
        name = next(self._lines).removeprefix("event: ")
        data: dict[str, Any] = json.loads(next(self._lines).removeprefix("data: "))
        assert next(self._lines) == ""
        return name, data

    def ticks(self) -> Iterator[dict[str, Any]]:
        """Until the stream ends."""
        while True:
            try:
                name, data = self.event()
            except StopIteration:
                return
            assert name == "tick"
            yield data

    def steps(self, count: int) -> list[dict[str, int]]:
        """So many at least, by the names of their columns; times in microseconds on the one clock."""
        found: list[dict[str, int]] = []
        for tick in self.ticks():
            for row in tick.get("steps", ()):
                step = dict(zip(self.about["columns"], row, strict=True))
                step["scheduled"] += tick["now"]
                found.append(step)
            assert not tick.get("missed")
            if len(found) >= count:
                return found
        raise AssertionError(f"the stream ended after {len(found)} steps")
