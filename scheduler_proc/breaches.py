"""What must never happen, and what is done when it has: tests fail, a serving engine counts it, says it once and goes on."""

import logging
from collections import Counter

_LOG = logging.getLogger(__name__)


class Breach(AssertionError):
    """Something that must always hold does not. `kind` names the rule."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def must(condition: object, kind: str, text: str) -> None:
    """Raises Breach unless `condition` is true."""
    if not condition:
        raise Breach(kind, text)


class Breaches:
    """The breaches of one scheduler, in its counters as `breach_<kind>`."""

    def __init__(self, counters: Counter[str], *, strict: bool) -> None:
        """`strict`: a breach is raised, for tests."""
        self._counters = counters
        self._strict = strict

    def report(self, breach: Breach) -> None:
        """Raises it, or counts it and logs the first of its kind."""
        if self._strict:
            raise breach
        self._counters[f"breach_{breach.kind}"] += 1
        if self._counters[f"breach_{breach.kind}"] == 1:
            _LOG.error("a rule of the scheduler's own was broken (%s), it serves on: %s", breach.kind, breach)
