"""Why a request stands where it stands: the last few thousand changes of any request's state, in a ring."""

from collections import deque

from protocol.messages import Move
from scheduler_proc.breaches import Breach, Breaches
from scheduler_proc.request import TRANSITIONS, Request, RequestState

CAPACITY = 16_384  # moves: a request makes four, or three more with each preemption, so the last few thousand requests


class StoryRing:
    """Moves requests from state to state and remembers from where, to where, why and when."""

    def __init__(self, breaches: Breaches, capacity: int = CAPACITY) -> None:
        self.now_ns = 0  # of the events that are being handled, on the one clock
        self._breaches = breaches
        self._moves: deque[tuple[int, RequestState, RequestState, str, int]] = deque(maxlen=capacity)

    def move(self, request: Request, state: RequestState, cause: str) -> None:
        """The only way to change a request's state. `cause`: for people, in a few words."""
        before = request.state
        if state not in TRANSITIONS[before]:
            text = f"request {request.request_id} went from {before.value} to {state.value}: {cause}"
            self._breaches.report(Breach("transition", text))
        request.state = state
        if before is RequestState.NEW:
            request.arrived_ns = self.now_ns
        elif state is RequestState.PREFILLING and not request.admitted_ns:
            request.admitted_ns = self.now_ns
        self._moves.append((request.request_id, before, state, cause, self.now_ns))

    def of(self, request_id: int) -> tuple[Move, ...]:
        """The moves of one request that the ring still holds, oldest first."""
        return tuple(
            Move(before.value, state.value, cause, at_ns)
            for moved, before, state, cause, at_ns in self._moves
            if moved == request_id
        )
