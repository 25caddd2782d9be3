"""Messages to and from the grammar process, which says what token may come next in constrained requests. Masks themselves are
`protocol.messages.StepMasks`: they go straight to the worker.

Positions count output tokens: a token's position is the number of output tokens before it. `*_i32` and `*_u64` as in
`protocol.messages`.
"""

from protocol.codec import Decoder
from protocol.messages import Message
from protocol.params import Grammar

# scheduler -> grammar process


class GrammarWelcome(Message, frozen=True, tag="welcome"):
    """Answers GrammarReady. What was sent before it was meant for a predecessor and must be dropped: everything is told again."""

    epoch: int  # of the incarnation that is welcome


class Constrain(Message, frozen=True, tag="constrain"):
    """Follow this request from here on."""

    request_id: int
    grammar: Grammar
    token_ids_i32: bytes  # output so far


class Forget(Message, frozen=True, tag="forget"):
    """This request has ended. Masks of it that are still wanted allow everything, since nobody believes their tokens."""

    request_id: int


class Advance(Message, frozen=True, tag="advance"):
    """Output tokens that became known. Those of one request come in their order, without a gap, each once."""

    request_ids_u64: bytes
    positions_i32: bytes
    token_ids_i32: bytes


class WantMasks(Message, frozen=True, tag="want"):
    """A step was planned whose rows sample the tokens at these positions: send `StepMasks` to the worker as soon as the tokens
    before each position are known. A request that is unknown has ended: its rows get masks that allow everything."""

    worker: int
    epoch: int
    step_id: int
    rows_i32: bytes  # indices among the rows of the step that sample
    request_ids_u64: bytes
    positions_i32: bytes


SchedulerToGrammar = GrammarWelcome | Constrain | Forget | Advance | WantMasks
SCHEDULER_TO_GRAMMAR: Decoder[SchedulerToGrammar] = Decoder(SchedulerToGrammar)


# grammar process -> scheduler


class GrammarReady(Message, frozen=True, tag="ready"):
    """The hello of an incarnation of the grammar process."""

    version: int
    epoch: int


class Forced(Message, frozen=True, tag="forced"):
    """The grammar leaves no choice for the tokens from `position` on. Masks of these positions allow that token alone, so that it
    is all the same whether a token is sampled or taken from here. Ends of sequence are never among them."""

    request_id: int
    position: int  # of the first; every token before it was told by Constrain or Advance
    token_ids_i32: bytes


class ConstraintFailed(Message, frozen=True, tag="failed"):
    """This request cannot be followed: it must end. `message` is for its client."""

    request_id: int
    message: str


GrammarToScheduler = GrammarReady | Forced | ConstraintFailed
GRAMMAR_TO_SCHEDULER: Decoder[GrammarToScheduler] = Decoder(GrammarToScheduler)


# frontend <-> grammar process


class CheckGrammar(Message, frozen=True, tag="check"):
    """Asks whether a grammar can be followed, before its request is accepted."""

    query_id: int
    grammar: Grammar


class GrammarChecked(Message, frozen=True, tag="checked"):
    """Answers CheckGrammar."""

    query_id: int
    error: str = ""  # for the client; empty: it can
    busy: bool = False  # there was no time to find out: it may go better later


FrontendToGrammar = CheckGrammar
FRONTEND_TO_GRAMMAR: Decoder[FrontendToGrammar] = Decoder(FrontendToGrammar)
GrammarToFrontend = GrammarChecked
GRAMMAR_TO_FRONTEND: Decoder[GrammarToFrontend] = Decoder(GrammarToFrontend)
