"""A grammar process, and the three that it talks with, played by the test."""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import psutil

from frontend.server.text.tokenizer import Tokenizer
from protocol.channel import Receiver, Sender
from protocol.codec import Int32Array, unpack_int32
from protocol.config import ChildSpec, EngineConfig, encode_spec
from protocol.endpoints import GRAMMAR_INBOX, GRAMMAR_OUTBOX, GRAMMAR_QUESTIONS, grammar_answers, ipc_address, worker_inbox
from protocol.grammar_messages import (
    GRAMMAR_TO_FRONTEND,
    GRAMMAR_TO_SCHEDULER,
    CheckGrammar,
    ConstraintFailed,
    Forced,
    GrammarChecked,
    GrammarReady,
    GrammarToFrontend,
    GrammarToScheduler,
    GrammarWelcome,
    SchedulerToGrammar,
)
from protocol.messages import SCHEDULER_TO_WORKER, SchedulerToWorker, StepMasks
from protocol.params import Grammar
from protocol.supervision import socket_pair
from protocol.vocabulary import write_vocabulary

TIMEOUT = 30.0  # seconds

Found = TypeVar("Found")


class GrammarProcess:
    """One engine's grammar process, started anew by `start`."""

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer, run_dir: str) -> None:
        self._config = config
        self._run_dir = run_dir
        self._epoch = -1
        write_vocabulary(run_dir, tokenizer.vocabulary())
        self._to_process = Sender(ipc_address(run_dir, GRAMMAR_INBOX), bind=False)
        self._questions = Sender(ipc_address(run_dir, GRAMMAR_QUESTIONS), bind=False)
        self._from_process: Receiver[GrammarToScheduler] = Receiver(
            ipc_address(run_dir, GRAMMAR_OUTBOX), GRAMMAR_TO_SCHEDULER, bind=True
        )
        self._answers: Receiver[GrammarToFrontend] = Receiver(
            ipc_address(run_dir, grammar_answers(0)), GRAMMAR_TO_FRONTEND, bind=True
        )
        self._masks: Receiver[SchedulerToWorker] = Receiver(ipc_address(run_dir, worker_inbox(0)), SCHEDULER_TO_WORKER, bind=True)
        self.answers: dict[int, GrammarChecked] = {}
        self.masks: dict[tuple[int, int], Int32Array] = {}  # by step and row
        self._links: list[socket.socket] = []
        self._count = 0

    def start(self) -> None:
        """Starts an incarnation and welcomes it."""
        self._epoch += 1
        ours, theirs = socket_pair()
        with theirs:
            ours.send(
                encode_spec(
                    ChildSpec(role="grammar", index=0, epoch=self._epoch, run_dir=self._run_dir, cpus=(), config=self._config)
                )
            )
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler_proc.grammar", str(theirs.fileno())], pass_fds=(theirs.fileno(),)
            )
        self._links.append(ours)
        ready: object = None
        while not isinstance(ready, GrammarReady) or ready.epoch != self._epoch:
            ready = self.wait(self._word)
        self.send(GrammarWelcome(self._epoch))

    def send(self, message: SchedulerToGrammar) -> None:
        self._to_process.send(message)

    def ask(self, grammar: Grammar) -> int:
        self._count += 1
        self._questions.send(CheckGrammar(self._count, grammar))
        return self._count

    def check(self, grammar: Grammar) -> GrammarChecked:
        return self.answer(self.ask(grammar))

    def answer(self, question: int) -> GrammarChecked:
        return self.wait(lambda: self.answers.get(question))

    def mask(self, step: int, row: int = 0) -> Int32Array:
        return self.wait(lambda: self.masks.get((step, row)))

    def wait(self, find: Callable[[], Found | None]) -> Found:
        deadline = time.monotonic() + TIMEOUT
        while (found := find()) is None:
            assert time.monotonic() < deadline, "it never came"
            self._read()
            time.sleep(0.001)
        return found

    def helper(self) -> psutil.Process:
        """The process that tries grammars."""
        (helper,) = psutil.Process(self.process.pid).children()
        return helper

    def close(self) -> None:
        for link in self._links:
            link.close()  # a child ends when its launcher does
        self.process.wait(timeout=TIMEOUT)
        for end in (self._to_process, self._questions, self._from_process, self._answers, self._masks):
            end.close()

    def _word(self) -> GrammarToScheduler | None:
        return self._from_process.receive()

    def _read(self) -> None:
        while (answer := self._answers.receive()) is not None:
            self.answers[answer.query_id] = answer
        while (message := self._masks.receive()) is not None:
            assert isinstance(message, StepMasks)
            rows = unpack_int32(message.rows_i32).tolist()
            bits = np.frombuffer(message.bits, np.int32).reshape(len(rows), -1)
            self.masks |= {(message.step_id, row): mask for row, mask in zip(rows, bits, strict=True)}

    def hear(self) -> Forced | ConstraintFailed:
        """The next thing that it says to the scheduler."""
        message: object = self.wait(self._word)
        assert isinstance(message, Forced | ConstraintFailed)
        return message


@contextmanager
def grammar_process(config: EngineConfig, tokenizer: Tokenizer) -> Iterator[GrammarProcess]:
    with tempfile.TemporaryDirectory() as run_dir:
        process = GrammarProcess(config, tokenizer, run_dir)
        process.start()
        try:
            yield process
        finally:
            process.close()
