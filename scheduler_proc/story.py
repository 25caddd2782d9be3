"""Why a request stands where it stands: the latest changes of any request's state, as many as there is room for."""

from collections import OrderedDict, deque
from itertools import islice

from protocol.messages import Move
from scheduler_proc.breaches import Breach, Breaches
from scheduler_proc.names import Names
from scheduler_proc.request import TRANSITIONS, Request, RequestState

CAPACITY = 16_384  # moves: a request makes four, or three more with each preemption, so the last few thousand requests


class StoryRing:
    """Moves requests from state to state and remembers from where, to where, why and when."""

    def __init__(self, breaches: Breaches, capacity: int = CAPACITY) -> None:
        self.now_ns = 0  # of the events that are being handled, on the one clock
        self.names = Names()
        self._breaches = breaches
        self._capacity = capacity
        self._num_moves = 0
        self._moves: OrderedDict[int, deque[Move]] = OrderedDict()  # by request id, in the order of their latest moves

    def move(self, request: Request, state: RequestState, cause: str) -> None:
        """The only way to change a request's state. `cause`: for people, in a few words."""
        before = request.state
        if state not in TRANSITIONS[before]:
            text = f"request {request.request_id} went from {before.value} to {state.value}: {cause}"
            self._breaches.report(Breach("transition", text))
        request.state = state
        if before is RequestState.NEW:
            request.arrived_ns = self.now_ns
            self.names.add(request.request_id, request.name)
        elif state is RequestState.PREFILLING and not request.admitted_ns:
            request.admitted_ns = self.now_ns
        self._remember(request.request_id, Move(before.value, state.value, cause, self.now_ns))

    def latest(self, most: int) -> tuple[int, ...]:
        """The requests that moved last, in the order of their latest moves."""
        return tuple(islice(reversed(self._moves), most))[::-1]

    def of(self, request_id: int) -> tuple[Move, ...]:
        """The moves of one request that are remembered, oldest first."""
        return tuple(self._moves.get(request_id, ()))

    def _remember(self, request_id: int, move: Move) -> None:
        """The oldest move of the request that has stood still for longest is forgotten for it."""
        self._moves.setdefault(request_id, deque()).append(move)
        self._moves.move_to_end(request_id)
        self._num_moves += 1
        if self._num_moves > self._capacity:
            longest = next(iter(self._moves))
            self._moves[longest].popleft()
            self._num_moves -= 1
            if not self._moves[longest]:
                del self._moves[longest]
