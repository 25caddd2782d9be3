"""The pipes between the engine's processes: frames that are no messages have to be dropped, whoever sends them."""

import asyncio
from pathlib import Path
from random import Random
from typing import Any

import zmq

from protocol import endpoints
from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.grammar_messages import (
    FRONTEND_TO_GRAMMAR,
    GRAMMAR_TO_FRONTEND,
    GRAMMAR_TO_SCHEDULER,
    SCHEDULER_TO_GRAMMAR,
)
from protocol.messages import (
    FRONTEND_TO_SCHEDULER,
    SCHEDULER_TO_FRONTEND,
    SCHEDULER_TO_WORKER,
    WORKER_TO_SCHEDULER,
    AbortRequest,
    AddRequest,
    EngineReady,
    GetStats,
    ModelRunnerOutput,
    NewRequest,
    SchedulerOutput,
    TokenBatch,
)
from protocol.params import EngineParams
from tests.fuzz.values import mutated

_PARAMS = EngineParams(max_tokens=4)
_NEW = NewRequest(0, bytes(16), 4, 0, bytes(4), _PARAMS)
# What each socket takes, and some of it.
_SOCKETS: dict[str, tuple[Any, list[object]]] = {
    endpoints.SCHEDULER_INBOX: (FRONTEND_TO_SCHEDULER, [AddRequest(1, bytes(16), 4, _PARAMS), AbortRequest(1), GetStats(1)]),
    endpoints.frontend_inbox(0): (
        SCHEDULER_TO_FRONTEND,
        [EngineReady(1, 8, 8, 8, 8, "x"), TokenBatch(0, 1, bytes(8), bytes(4), lengths_i32=bytes(4))],
    ),
    endpoints.worker_inbox(0): (SCHEDULER_TO_WORKER, [SchedulerOutput(1, 1, new=(_NEW,)), SchedulerOutput(1, 2)]),
    endpoints.worker_outbox(0): (WORKER_TO_SCHEDULER, [ModelRunnerOutput(1, 0, bytes(4))]),
    endpoints.GRAMMAR_INBOX: (SCHEDULER_TO_GRAMMAR, [GetStats(1), _NEW]),
    endpoints.GRAMMAR_OUTBOX: (GRAMMAR_TO_SCHEDULER, [GetStats(1), _NEW]),
    endpoints.GRAMMAR_QUESTIONS: (FRONTEND_TO_GRAMMAR, [GetStats(1), _NEW]),
    endpoints.grammar_answers(0): (GRAMMAR_TO_FRONTEND, [GetStats(1), _NEW]),
}


class Pipes:
    """A case: the name of a socket, a line feed, and one frame.

    What decodes is left out: the processes of an engine believe each other, within the bounds of the types.
    """

    name = "pipes"
    per_case = 1

    def __init__(self, run_dir: Path) -> None:
        self._context = zmq.Context()
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        for name in _SOCKETS:
            if (run_dir / name).exists():
                socket = self._sockets[name] = self._context.socket(zmq.PUSH)
                socket.setsockopt(zmq.LINGER, 0)
                socket.connect(endpoints.ipc_address(str(run_dir), name))

    def make(self, draw: Random) -> bytes:
        name = draw.choice(sorted(_SOCKETS))
        frame = encode(draw.choice(_SOCKETS[name][1]))
        while True:
            frame = mutated(frame, draw) if draw.random() < 0.9 else draw.randbytes(draw.choice((0, 1, 10, 1000)))
            if not self._is_message(name, frame):
                return name.encode() + b"\n" + frame

    async def run(self, case: bytes) -> str:
        name, _, frame = case.partition(b"\n")
        socket = self._sockets.get(name.decode(errors="replace"))
        if socket is None or self._is_message(name.decode(), frame):
            return ""
        try:
            socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            await asyncio.sleep(0.1)
            try:
                socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                return f"{name.decode()} is not read"
        return ""

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()
        self._context.term()

    def _is_message(self, name: str, frame: bytes) -> bool:
        try:
            _SOCKETS[name][0].decode(frame)
        except ProtocolError:
            return False
        return True
