"""Messages between the ranks of a worker that spans several hosts: rank 0 leads, the others follow.

`epoch` is drawn by each incarnation of rank 0, and told in `HostsMet`: what belongs to another one is dropped. A follower draws a
number of its own, so that rank 0 tells a repeated hello from that of a successor.
"""

import msgspec

from protocol.codec import Decoder
from protocol.config import PROTOCOL_VERSION
from protocol.messages import Message
from protocol.params import EngineParams, Pooling

# follower -> rank 0


class HostHello(Message, frozen=True, tag="hello"):
    """Said again and again until rank 0 answers with HostsMet, or HostsEnd."""

    rank: int
    incarnation: int
    facts: dict[str, str]  # what ranks must agree on: flag, variable or field -> value
    version: int = PROTOCOL_VERSION


class HostJoined(Message, frozen=True, tag="joined"):
    """Answers HostsMet: from now on this rank lives and ends with the others."""

    epoch: int
    rank: int


class HostProgress(Message, frozen=True, tag="progress"):
    """How far the start of this rank has come."""

    epoch: int
    rank: int
    phase: str
    done: int
    total: int


class HostValue(Message, frozen=True, tag="value"):
    """What this rank could have of something of which all take the least."""

    epoch: int
    rank: int
    value: int


class HostLoaded(Message, frozen=True, tag="loaded"):
    """All programs of this rank are compiled."""

    epoch: int
    rank: int
    facts: dict[str, str]  # what it loaded, on which ranks must agree too


class HostScores(Message, frozen=True, tag="scores"):
    """Answers PlayPrepare."""

    epoch: int
    rank: int
    call: int
    error: str


class HostFailed(Message, frozen=True, tag="failed"):
    """The last word of a rank that cannot go on."""

    epoch: int
    rank: int
    exit_code: int
    message: str


FollowerToLeader = HostHello | HostJoined | HostProgress | HostValue | HostLoaded | HostScores | HostFailed
FROM_FOLLOWER: Decoder[FollowerToLeader] = Decoder(FollowerToLeader)


# rank 0 -> followers, each to all


class HostsMet(Message, frozen=True, tag="met"):
    """All ranks are here, and agree. Said again and again until each has joined."""

    epoch: int
    incarnations: tuple[int, ...]  # of ranks 1, 2, …


class HostsEnd(Message, frozen=True, tag="end"):
    """All ranks end. With exit code 0, the engine was told to."""

    epoch: int
    exit_code: int
    message: str


class LeastValue(Message, frozen=True, tag="least"):
    """Answers a HostValue of every rank."""

    epoch: int
    value: int


class PlannedAdmission(msgspec.Struct, frozen=True, array_like=True):
    """An admission of a StepPlan."""

    slot: int
    token_ids_i32: bytes
    tables_i32: tuple[bytes, ...]
    num_prompt_tokens: int
    params: EngineParams


class PlayForward(Message, frozen=True, tag="forward"):
    """`Device.forward` of this plan (`tpu_worker.device.StepPlan`), as call number `call` of the epoch."""

    epoch: int
    call: int
    step_id: int
    blocks_i32: bytes  # [3, K] slots, indices, ids
    groups_i32: bytes | None
    rows_i32: bytes  # [4, R] slots, starts, counts, samples
    num_decodes: int
    admissions: tuple[PlannedAdmission, ...] = ()
    needs: int = 0
    num_logprobs_i32: bytes | None = None
    masked_i32: bytes | None = None
    masked_needs: int = 0
    extensions: tuple[tuple[int, int, bytes], ...] = ()
    scored: tuple[tuple[int, int, int, int], ...] = ()
    pooled: tuple[tuple[int, Pooling], ...] = ()


class PlaySample(Message, frozen=True, tag="sample"):
    """`Device.sample` of the step before, with these masks."""

    epoch: int
    call: int
    num_rows: int
    bits: bytes  # [num_rows, words] little-endian uint32


class PlayPrepare(Message, frozen=True, tag="prepare"):
    """`Device.prepare_scores`."""

    epoch: int
    call: int


LeaderToFollower = HostsMet | HostsEnd | LeastValue | PlayForward | PlaySample | PlayPrepare
FROM_LEADER: Decoder[LeaderToFollower] = Decoder(LeaderToFollower)
