"""Fields of requests that nobody knows: counted, and named once in the log, so that an operator learns what clients miss."""

import logging
import re
from collections import Counter
from collections.abc import Iterable

_LOG = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_.$-]{1,64}")  # what may stand in a log and in a metric's label; clients choose it
_MOST_NAMES = 64
_OTHERS = "(others)"


class IgnoredFields:
    """Those that this frontend met."""

    def __init__(self, counts: Counter[str]) -> None:
        """`counts`: by name, kept up to date."""
        self._counts = counts

    def note(self, path: str, names: Iterable[str]) -> None:
        """A request for `path` has these."""
        new = []
        for name in names:
            shown = name if _NAME.fullmatch(name) and (name in self._counts or len(self._counts) < _MOST_NAMES) else _OTHERS
            if shown not in self._counts:
                new.append(shown)
            self._counts[shown] += 1
        if new:
            _LOG.warning("%s: unknown fields are ignored: %s (said once of each)", path, ", ".join(new))
