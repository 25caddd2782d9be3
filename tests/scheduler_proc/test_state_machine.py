"""Every interleaving that hypothesis can think of: arrivals, aborts, steps, answers, deaths, and frames that must be refused."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from protocol.cache_groups import CacheGroups
from protocol.codec import pack_int32
from protocol.messages import ModelRunnerOutput
from protocol.params import Grammar
from scheduler_proc.events import FromWorker
from tests.scheduler_proc.world import VOCAB, World

_TOKENS = st.integers(0, 3)  # few, so that prompts share prefixes
_WORKERS = st.integers(0, 1)


class SchedulerMachine(RuleBasedStateMachine):
    """The reference model is `Sent.expected`: what follows from a request alone."""

    @initialize(
        depth=st.integers(1, 4), blocks=st.sampled_from([0, 4, 54]), budget=st.sampled_from([4, 9, 32]), cache=st.booleans(),
        windows=st.sampled_from([(0,), (0,), (1,), (7,), (16,), (7, 0), (0, 3, 3), (5, 12)]),
    )  # fmt: skip
    def start(self, depth: int, blocks: int, budget: int, cache: bool, windows: tuple[int, ...]) -> None:
        """`blocks`: beyond those that the longest sequence needs."""
        self.world = World(
            depth=depth, workers=2, blocks=CacheGroups(windows, 4, budget).demand(40) + blocks, budget=budget, prefix_caching=cache,
            max_model_len=40, pieces=cache, windows=windows,
        )  # fmt: skip
        self.epochs = [0, 0]

    @rule(
        prompt=st.lists(_TOKENS, min_size=1, max_size=39),
        max_tokens=st.integers(1, 40),
        seed=st.integers(0, 3),
        stops=st.lists(st.integers(0, VOCAB - 1), max_size=16, unique=True),
        min_tokens=st.integers(0, 3),
        priority=st.integers(0, 2),
        stream=st.booleans(),
        grammar=st.none() | st.integers(0, 9),
    )
    def add(
        self, prompt: list[int], max_tokens: int, seed: int, stops: list[int], min_tokens: int, priority: int, stream: bool,
        grammar: int | None,
    ) -> None:  # fmt: skip
        self.world.add(
            len(self.world.sent), prompt, priority=priority, stream=stream,
            max_tokens=max_tokens, seed=seed, stop_token_ids=tuple(stops), min_tokens=min_tokens,
            structured=None if grammar is None else Grammar("regex", str(grammar)),
        )  # fmt: skip

    @rule(prompt=st.lists(_TOKENS, min_size=4, max_size=36), count=st.integers(2, 6), max_tokens=st.integers(1, 8))
    def add_siblings(self, prompt: list[int], count: int, max_tokens: int) -> None:
        first = len(self.world.sent)
        self.world.feed(*(self.world.message(first + i, prompt, seed=i, max_tokens=max_tokens) for i in range(count)))

    @precondition(lambda self: any(worker.inbox or worker.outbox for worker in self.world.workers.values()))
    @rule(data=st.data())
    def fail_a_row(self, data: st.DataObject) -> None:
        busy = [index for index, worker in self.world.workers.items() if worker.inbox or worker.outbox]
        self.world.fail_row(data.draw(st.sampled_from(busy)))

    @precondition(lambda self: any(sent.end is None and not sent.aborted for sent in self.world.sent.values()))
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        running = [key for key, sent in self.world.sent.items() if sent.end is None and not sent.aborted]
        self.world.abort(data.draw(st.sampled_from(running)))

    @rule(worker=_WORKERS, steps=st.integers(1, 4))
    def run(self, worker: int, steps: int) -> None:
        for _ in range(steps):
            if worker in self.world.workers and self.world.workers[worker].inbox:
                self.world.workers[worker].run_step()

    @rule(worker=_WORKERS, answers=st.integers(1, 4))
    def answer(self, worker: int, answers: int) -> None:
        for _ in range(answers):
            if worker in self.world.workers and self.world.workers[worker].outbox:
                self.world.answer(worker)

    @rule(messages=st.integers(1, 20))
    def run_grammar(self, messages: int) -> None:
        self.world.run_grammar(messages)

    @rule(messages=st.integers(1, 20))
    def hear_grammar(self, messages: int) -> None:
        self.world.hear_grammar(messages)

    @rule()
    def replace_grammar(self) -> None:
        self.world.replace_grammar()

    @precondition(lambda self: self.world.sent)
    @rule(data=st.data())
    def fail_grammar(self, data: st.DataObject) -> None:
        self.world.fail_grammar(data.draw(st.sampled_from(sorted(self.world.sent))))

    @rule(worker=_WORKERS)
    def replace_worker(self, worker: int) -> None:
        late = self.world.workers[worker].outbox if worker in self.world.workers else ()
        if worker in self.world.workers:
            self.world.lose(worker)
        self.epochs[worker] += 1
        self.world.join(worker, self.epochs[worker])
        for output in late:  # the pipe still held answers of the dead incarnation
            self._refused("wrong_epoch", worker, output)

    @rule(worker=_WORKERS, ahead=st.integers(0, 3))
    def send_frames_to_refuse(self, worker: int, ahead: int) -> None:
        lane = self.world.state.lanes[worker]
        epoch, oldest, next_step = lane.ledger.epoch, lane.ledger.oldest, lane.ledger.next_step
        self._refused("wrong_epoch", worker, ModelRunnerOutput(epoch + 1, oldest, b""))
        if oldest > ahead:
            self._refused("duplicate", worker, ModelRunnerOutput(epoch, oldest - 1 - ahead, pack_int32([1])))
        self._refused("out_of_order", worker, ModelRunnerOutput(epoch, max(next_step, oldest + 1) + ahead, pack_int32([1])))

    def _refused(self, cause: str, worker: int, output: ModelRunnerOutput) -> None:
        before = self.world.state.counters[f"refused_{cause}"]
        self.world.feed(FromWorker(worker, output))
        assert self.world.state.counters[f"refused_{cause}"] == before + 1

    @invariant()
    def pipes_hold_at_most_the_depth(self) -> None:
        for index, worker in self.world.workers.items():
            assert worker.unanswered == self.world.state.lanes[index].ledger.in_flight <= self.world.config.queue_depth

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()
            self.world.check()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=100, stateful_step_count=60)
