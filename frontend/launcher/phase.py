"""Where an engine stands between its start and its end, and how long each part of the end may take."""

from enum import Enum

LAST_WORDS = 2.0  # seconds after a drain for clients to read the end of their answers; one that does not must not hold up the end
DRAIN_MARGIN = 5.0  # seconds beyond drain timeout and last words for the frontend to leave
EXIT_GRACE = 5.0  # seconds for an idle scheduler or worker to leave when asked
STOP_WORDS = 0.5  # seconds for clients to read why their answers end, when all ends at once …
STOP_GRACE = 2.0  # … and for the frontend to be gone
TERM_GRACE = 3.0  # seconds between a last word and SIGKILL
KILL_GRACE = 10.0  # seconds for the kernel to end a killed process; a driver call may hold it

LONGEST_END = LAST_WORDS + DRAIN_MARGIN + 2 * EXIT_GRACE + STOP_GRACE + KILL_GRACE  # seconds beyond the time to drain


class Phase(Enum):
    """Where the engine stands. It only moves forward."""

    NEW = 0
    STARTING = 1
    SERVING = 2
    DRAINING_FRONTEND = 3  # requests finish
    DRAINING_SCHEDULER = 4  # all requests have ended
    DRAINING_WORKERS = 5
    STOPPING = 6  # the frontend says why, all others were killed
    KILLING = 7  # SIGKILL was sent to all
    ENDED = 8

    def __lt__(self, other: "Phase") -> bool:
        return bool(self.value < other.value)

    @property
    def in_service(self) -> bool:
        """Whether requests run: workers are watched and replaced."""
        return self in (Phase.SERVING, Phase.DRAINING_FRONTEND)

    @property
    def has_deadline(self) -> bool:
        """Whether it ends by itself."""
        return self in _ENDING


_ENDING = frozenset((Phase.DRAINING_FRONTEND, Phase.DRAINING_SCHEDULER, Phase.DRAINING_WORKERS, Phase.STOPPING, Phase.KILLING))
