"""What the grammar process is told: whose output it must follow, which tokens came, and which steps wait for masks.

It may end and be replaced at any time. Its successor says hello, and is told everything that still matters.
"""

from typing import TYPE_CHECKING

from protocol.codec import Int32Array, UInt64Array, pack_int32, pack_uint64
from protocol.config import PROTOCOL_VERSION
from protocol.grammar_messages import Advance, Constrain, Forget, GrammarReady, GrammarWelcome, SchedulerToGrammar, WantMasks
from protocol.messages import MasksMissing, StepMasks
from scheduler_proc.request import Request

if TYPE_CHECKING:  # its lanes tell this of their requests
    from scheduler_proc.fleet import Fleet


class Constraints:
    """The requests that are followed, and the messages that wait to be sent."""

    def __init__(self) -> None:
        self.followed: dict[int, Request] = {}  # by id: those that were admitted once and have not ended
        self._epoch = -1  # of the incarnation that listens; until one does, nothing is said
        self._messages: list[SchedulerToGrammar] = []

    def begin(self, ready: GrammarReady, fleet: "Fleet") -> bool:
        """A grammar process begins, perhaps in another's place: it hears of everything that matters. False: its hello is an old
        one, or of another version."""
        if ready.version != PROTOCOL_VERSION or ready.epoch <= self._epoch:
            return False
        self._epoch = ready.epoch
        self._messages = [GrammarWelcome(ready.epoch)]
        for request in self.followed.values():
            self._tell(request, fleet.known_tokens(request))
        for lane in fleet.lanes.values():
            self._messages.extend(step.wants for step in lane.in_flight if step.wants is not None)
        return True

    def follow(self, request: Request, tokens: Int32Array) -> None:
        """A request holds a slot. tokens [known]: prompt first."""
        if request.request_id not in self.followed:
            self.followed[request.request_id] = request
            self._tell(request, tokens)

    def advance(self, request_ids: UInt64Array, positions: Int32Array, token_ids: Int32Array) -> None:
        """Output tokens of followed requests became known; each array [tokens]."""
        if len(token_ids):
            self._say(Advance(pack_uint64(request_ids), pack_int32(positions), pack_int32(token_ids)))

    def want(self, wants: WantMasks) -> None:
        """A step that waits for masks was planned."""
        self._say(wants)

    def forget(self, request_id: int) -> None:
        """A request has ended, constrained or not."""
        if self.followed.pop(request_id, None) is not None:
            self._say(Forget(request_id))

    def take(self) -> list[SchedulerToGrammar]:
        """What is to be sent, in this order."""
        messages, self._messages = self._messages, []
        return messages

    def _tell(self, request: Request, tokens: Int32Array) -> None:
        """Says what is known of a request."""
        assert request.params.structured is not None
        output = pack_int32(tokens[request.num_prompt_tokens :])
        self._say(Constrain(request.request_id, request.params.structured, output))

    def _say(self, message: SchedulerToGrammar) -> None:
        if self._epoch >= 0:
            self._messages.append(message)


def everything_allowed(missing: MasksMissing, vocab_size: int) -> StepMasks:
    """Masks that allow every token, for the rows that have none."""
    size = len(missing.rows_i32) * -(-vocab_size // 32)
    return StepMasks(missing.epoch, missing.step_id, missing.rows_i32, b"\xff" * size)
