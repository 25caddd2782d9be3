"""Many requests whose answers are wanted together, in order."""

from collections.abc import Callable, Sequence

from frontend.client.outputs import Assembly, RequestOutput
from frontend.client.prompts import Prompts, checked, pair, to_wire
from frontend.client.session import Session, nobody
from frontend.errors import DeadlineExceeded
from frontend.wire import Prompt as WirePrompt
from protocol.errors import EngineError
from protocol.params import SamplingParams

_WINDOW = 4096  # outputs under way: enough to fill any engine, a quarter of what one accepts, so that others get in


class Batch:
    """Submits as many requests as the window holds, more as they end. Knows no socket; `notify` is called when something ended."""

    def __init__(
        self,
        session: Session,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None,
        notify: Callable[[], None] = nobody,
    ) -> None:
        """Raises InvalidRequest, naming what is wrong, before anything is sent."""
        vocab_size = session.engine.vocab_size
        known: dict[int, SamplingParams] = {}  # checked once, also where one object serves a thousand prompts
        self._requests: list[tuple[WirePrompt, SamplingParams]] = []
        for prompt, given in pair(prompts, params):
            if id(given) not in known:
                known[id(given)] = checked(given, vocab_size)
            self._requests.append((to_wire(prompt), known[id(given)]))
        self._session = session
        self._notify = notify
        self._assemblies: list[Assembly] = []
        self._under_way = 0  # outputs
        self._news = False
        self.finished = 0  # requests
        self.num_tokens = 0  # of the finished ones
        self.error: EngineError | None = None

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def done(self) -> bool:
        """All have ended, or one failed."""
        return self.finished == len(self._requests) or self.error is not None

    def top_up(self) -> None:
        """Submits what the window has room for. Raises what ended the connection."""
        while len(self._assemblies) < len(self._requests) and (self._under_way < _WINDOW):
            prompt, params = self._requests[len(self._assemblies)]
            index = len(self._assemblies)
            self._under_way += params.n
            self._assemblies.append(self._session.submit(prompt, params, notify=lambda index=index: self._on_news(index)))  # type: ignore[misc]

    def has_news(self) -> bool:
        """Whether something ended since this was True."""
        news, self._news = self._news, False
        return news

    def late(self, timeout: float | None) -> DeadlineExceeded:
        """What to raise when the time is over."""
        return DeadlineExceeded(f"{self.finished} of {len(self)} answers within {timeout:g} s; the rest was aborted")

    def results(self) -> list[RequestOutput]:
        """All answers, in the order of the prompts. Raises what the first to fail failed with."""
        if self.error is not None:
            raise self.error
        return [assembly.result() for assembly in self._assemblies]

    def cancel(self) -> None:
        """Aborts what still runs."""
        for assembly in self._assemblies:
            self._session.cancel(assembly)

    def _on_news(self, index: int) -> None:
        assembly = self._assemblies[index]
        if assembly.done:
            self._under_way -= self._requests[index][1].n
            self.finished += 1
            self.num_tokens += assembly.num_tokens
            if self.error is None:
                self.error = assembly.error
            self._news = True
            self._notify()
