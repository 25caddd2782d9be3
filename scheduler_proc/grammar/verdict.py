"""What is asked about a grammar, and what came of it."""

import msgspec

from protocol.codec import Decoder
from protocol.params import Grammar


class Job(msgspec.Struct, frozen=True, array_like=True):
    """A grammar to be tried."""

    number: int
    grammar: Grammar
    wall_seconds: float  # from the time at which it is begun
    cpu_seconds: float


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """Whether a grammar can be followed: either `source`, as the library compiles it, or `error`."""

    source: str = ""
    error: str = ""  # for the grammar's author
    busy: bool = False  # there was no time to find out: it may go better later


class Result(msgspec.Struct, frozen=True, array_like=True):
    """The end of a job."""

    number: int
    verdict: Verdict


JOBS: Decoder[Job] = Decoder(Job)
VERDICTS: Decoder[Verdict] = Decoder(Verdict)
RESULTS: Decoder[Result] = Decoder(Result)
