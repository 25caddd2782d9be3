"""What the grammar process is told: whose output it must follow, which tokens came, and which steps wait for masks.

It may end and be replaced at any time. Its successor says hello, and is told everything that still matters.
"""

import numpy as np

from protocol.codec import Int32Array, UInt64Array, pack_int32, pack_uint64
from protocol.grammar_messages import Advance, Constrain, Forget, GrammarReady, GrammarWelcome, SchedulerToGrammar, WantMasks
from scheduler_proc.request import Request

_EVERYTHING = 0xFF  # a byte of a mask that allows every token


class Constraints:
    """The requests that are followed, and the messages that wait to be sent."""

    def __init__(self) -> None:
        self.followed: dict[int, Request] = {}  # by id: those that were admitted once and have not ended
        self._epoch = -1  # of the incarnation that listens; until one does, nothing is said
        self._messages: list[SchedulerToGrammar] = []

    @property
    def connected(self) -> bool:
        """Whether a grammar process has said hello."""
        return self._epoch >= 0

    def welcomes(self, ready: GrammarReady) -> bool:
        """An incarnation says hello; False: an old one, late. The caller then tells it of every request that is followed, and of
        the steps in flight that wait for masks."""
        if ready.epoch <= self._epoch:
            return False
        self._epoch = ready.epoch
        self._messages = [GrammarWelcome(ready.epoch)]
        return True

    def follow(self, request: Request, tokens: Int32Array) -> None:
        """A request holds a slot. tokens [known]: prompt first."""
        if request.request_id not in self.followed:
            self.followed[request.request_id] = request
            self.tell(request, tokens)

    def tell(self, request: Request, tokens: Int32Array) -> None:
        """Says of a followed request what is known of it."""
        assert request.params.structured is not None
        output = pack_int32(tokens[request.num_prompt_tokens :])
        self._say(Constrain(request.request_id, request.params.structured, output))

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

    def _say(self, message: SchedulerToGrammar) -> None:
        if self.connected:
            self._messages.append(message)


def everything_allowed(num_rows: int, vocab_size: int) -> bytes:
    """Masks that allow every token, as `StepMasks.bits`."""
    return np.full(num_rows * -(-vocab_size // 32) * 4, _EVERYTHING, np.uint8).tobytes()
