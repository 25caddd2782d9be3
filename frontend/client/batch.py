"""Many requests whose answers are wanted together, in order."""

from collections.abc import Callable, Sequence
from functools import partial

from frontend.client.awaited import Awaited, nobody
from frontend.client.outputs import RequestOutput
from frontend.client.progress import Progress
from frontend.client.requests import WholeRequest
from frontend.errors import DeadlineExceeded
from frontend.wire import Prompt
from protocol.errors import EngineError
from protocol.params import SamplingParams

_WINDOW = 4096  # outputs under way: enough to fill any engine, a quarter of what one accepts, so that others get in


class Batch(Awaited[list[RequestOutput]]):
    """Submits as many requests as the window holds, and more as they end. The first that fails ends it."""

    def __init__(
        self,
        submit: Callable[[Prompt, SamplingParams], WholeRequest],
        wanted: Sequence[tuple[Prompt, SamplingParams]],
        *,
        show_progress: bool | None,
    ) -> None:
        """`wanted`: prompts and parameters that were checked. `show_progress=None`: a bar if there is a terminal."""
        super().__init__()
        self._submit = submit
        self._wanted = wanted
        self._requests: list[WholeRequest] = []
        self._under_way = 0  # outputs
        self._finished = 0  # requests
        self._num_tokens = 0  # of the finished ones
        self._top_up()
        self._progress = Progress(len(wanted), shown=show_progress)

    @property
    def ready(self) -> bool:
        """All have ended, or one failed."""
        return self._finished == len(self._wanted) or self.error is not None

    def result(self) -> list[RequestOutput]:
        """All answers, in the order of the prompts. Raises what the first to fail failed with."""
        if self.error is not None:
            raise self.error
        return [request.result() for request in self._requests]

    def late(self, seconds: float) -> DeadlineExceeded:
        """It counts those that came in time."""
        return DeadlineExceeded(f"{self._finished} of {len(self._wanted)} answers within {seconds:g} s; the rest was aborted")

    def close(self) -> None:
        """Aborts what still runs."""
        self._progress.close()
        for request in self._requests:
            request.notify = nobody
            request.close()

    def _top_up(self) -> None:
        while len(self._requests) < len(self._wanted) and self._under_way < _WINDOW and self.error is None:
            prompt, params = self._wanted[len(self._requests)]
            try:
                request = self._submit(prompt, params)
            except EngineError as error:
                self.fail(error)
                return
            request.notify = partial(self._on_news, request, params.n)
            self._requests.append(request)
            self._under_way += params.n

    def _on_news(self, request: WholeRequest, n: int) -> None:
        if not request.ended:
            return
        if request.error is not None:
            self.fail(request.error)
        self._under_way -= n
        self._finished += 1
        self._num_tokens += request.num_tokens
        self._progress.update(self._finished, self._num_tokens)
        self._top_up()
        self.notify()
