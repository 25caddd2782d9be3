"""The grammar process's only I/O: waits, reads every pipe, follows, sends masks to workers and verdicts to frontends."""

from protocol.channel import Poller, Receiver, Sender
from protocol.clock import now_ns
from protocol.codec import unpack_int32
from protocol.config import PROTOCOL_VERSION, ChildSpec
from protocol.endpoints import (
    GRAMMAR_INBOX,
    GRAMMAR_OUTBOX,
    GRAMMAR_QUESTIONS,
    grammar_answers,
    ipc_address,
    session_dir,
    worker_inbox,
)
from protocol.grammar_messages import (
    FRONTEND_TO_GRAMMAR,
    SCHEDULER_TO_GRAMMAR,
    Advance,
    Constrain,
    Forget,
    FrontendToGrammar,
    GrammarChecked,
    GrammarReady,
    GrammarWelcome,
    SchedulerToGrammar,
    WantMasks,
)
from protocol.logs import set_level
from protocol.messages import Drain, LauncherToChild, Pulse, Ready, Reload, SchedulerStarted
from protocol.model_files import read_model_facts
from protocol.pulse import Metronome
from protocol.request_ids import frontend_of
from protocol.supervision import SupervisionLink
from protocol.vocabulary import read_vocabulary
from scheduler_proc.grammar.checker import Checker
from scheduler_proc.grammar.compiler import Compiler
from scheduler_proc.grammar.desk import Desk
from scheduler_proc.grammar.follower import Follower
from scheduler_proc.grammar.suspect import Suspect
from scheduler_proc.grammar.tokens import Tokens

_LONGEST = 0.1  # seconds to wait at most while grammars are tried: the time of one may be over


class GrammarLoop:
    """Owns the sockets of the grammar process."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        """Raises OSError or EngineError when the process cannot do its work."""
        config, directory = spec.config, spec.run_dir
        self._config, self._run_dir = config, directory
        self._launcher = launcher
        self._epoch = spec.epoch
        vocab_size = read_model_facts(config.model_path, config.model_format, config.load_format).vocab_size
        tokens = Tokens(read_vocabulary(directory), vocab_size)
        self._suspect = Suspect(directory)
        self._follower = Follower(tokens, self._suspect)
        self._compiler = Compiler(tokens)
        self._checker = Checker(directory, vocab_size)
        self._desk = Desk(self._checker, self._compiler)
        self._from_frontends: Receiver[FrontendToGrammar] = Receiver(
            ipc_address(directory, GRAMMAR_QUESTIONS), FRONTEND_TO_GRAMMAR, bind=True
        )
        self._to_frontends = [
            Sender(ipc_address(directory, grammar_answers(index)), bind=False) for index in range(config.frontends)
        ]
        self._poller = Poller()
        self._open_session(spec.session)
        self._poller.watch(self._from_frontends)
        for source in (launcher, self._checker, self._compiler):
            self._poller.watch(source.fileno())
        self._tick = config.pulse_interval
        self._metronome = Metronome(self._tick)
        self._draining = False
        self._num_messages = 0

    def run(self) -> None:
        """Serves until the launcher says drain, or is gone."""
        self._launcher.send(Ready())
        while not (self._draining or self._launcher.closed):
            self._poller.wait(self._timeout())
            self._read()
            self._answer()
            self._send_masks()
            if self._metronome.is_due(now_ns()):
                self._launcher.flush()
                self._launcher.send(Pulse("following" if len(self._follower) else "idle", self._num_messages))

    def close(self) -> None:
        """Closes every socket, and ends the helper and the thread."""
        self._suspect.close()
        self._checker.close()
        self._compiler.close()
        self._close_session()
        self._from_frontends.close()
        for sender in self._to_frontends:
            sender.close()

    def _open_session(self, session: int) -> None:
        """A scheduler begins: it answers the hello with all that is to be known."""
        directory = session_dir(self._run_dir, session)
        self._from_scheduler: Receiver[SchedulerToGrammar] = Receiver(
            ipc_address(directory, GRAMMAR_INBOX), SCHEDULER_TO_GRAMMAR, bind=True
        )
        self._to_scheduler = Sender(ipc_address(directory, GRAMMAR_OUTBOX), bind=False)
        workers = range(self._config.workers)
        self._to_workers = [Sender(ipc_address(directory, worker_inbox(index)), bind=False) for index in workers]
        self._welcome = False  # what comes before the scheduler's answer was meant for a predecessor
        self._poller.watch(self._from_scheduler)
        self._to_scheduler.send(GrammarReady(PROTOCOL_VERSION, self._epoch))

    def _close_session(self) -> None:
        self._poller.forget(self._from_scheduler)
        self._from_scheduler.close()
        for sender in (self._to_scheduler, *self._to_workers):
            sender.close(deliver=False)

    def _timeout(self) -> float:
        if self._follower.has_work:
            return 0.0
        return min(self._tick, _LONGEST) if self._desk.is_waiting else self._tick

    def _read(self) -> None:
        while (order := self._launcher.receive()) is not None:
            match order:
                case Drain():
                    self._draining = True
                case Reload():
                    set_level(order.log_level)
                case SchedulerStarted(session):
                    self._follower.clear()
                    self._desk.clear()
                    self._close_session()
                    self._open_session(session)
        while (question := self._from_frontends.receive()) is not None:
            self._num_messages += 1
            self._desk.check(question.query_id, question.grammar)
        while (message := self._from_scheduler.receive()) is not None:
            self._num_messages += 1
            if isinstance(message, GrammarWelcome):
                self._welcome = message.epoch == self._epoch
                self._follower.clear()
                self._desk.clear()
            elif self._welcome:
                self._follow(message)

    def _follow(self, message: SchedulerToGrammar) -> None:
        follower = self._follower
        match message:
            case Advance():
                follower.advance(message)
            case WantMasks():
                follower.want(message)
            case Constrain(request_id, grammar, token_ids_i32):
                follower.constrain(request_id, grammar.min_tokens, unpack_int32(token_ids_i32).tolist())
                self._desk.constrain(request_id, grammar)
            case Forget(request_id):
                follower.forget(request_id)

    def _answer(self) -> None:
        answers = self._desk.answers()
        for question, verdict in answers.verdicts:
            self._to_frontends[frontend_of(question)].send(GrammarChecked(question, verdict.error, verdict.busy))
        for request_id, matcher in answers.matchers:
            self._follower.begin(request_id, matcher)
        for request_id, error in answers.failures:
            self._follower.fail(request_id, error)

    def _send_masks(self) -> None:
        for worker, masks in self._follower.masks():
            self._to_workers[worker].send(masks)
        for message in self._follower.said():
            self._to_scheduler.send(message)
