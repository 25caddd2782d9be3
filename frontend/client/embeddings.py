"""Embeddings of many prompts, which are asked for in a few messages."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from frontend.client.awaited import Awaited
from frontend.client.reply import Reply
from frontend.errors import DeadlineExceeded
from frontend.wire import Embedded, TextPrompt, TokenPrompt
from protocol.codec import Float32Array, unpack_float32

_WINDOW = 2  # messages under way: the engine takes one after the other, and finds the second when it is done with the first
_MOST_PROMPTS, _MOST_BYTES = 512, 1 << 20  # of a message: more than run at once, and below what any engine takes

Prompt = TextPrompt | TokenPrompt


class EmbeddingBatch(Awaited[Float32Array]):
    """Asks for some prompts at a time. The first message that fails ends it."""

    def __init__(self, ask: Callable[[list[Prompt]], Reply[Embedded]], prompts: Sequence[Prompt]) -> None:
        super().__init__()
        self._ask = ask
        self._left = _portions(prompts)
        self._num_prompts = len(prompts)
        self._replies: list[Reply[Embedded]] = []
        self._finished = 0  # of these
        self._exhausted = False
        self._top_up()

    @property
    def ready(self) -> bool:
        """All are here, or one failed."""
        return self.error is not None or (self._exhausted and self._finished == len(self._replies))

    def result(self) -> Float32Array:
        """[prompts, dimensions] float32, in the order of the prompts. Raises what the first to fail failed with."""
        if self.error is not None:
            raise self.error
        if not self._replies:
            return np.empty((0, 0), np.float32)
        answers = [reply.result() for reply in self._replies]
        return np.concatenate([unpack_float32(answer.embeddings_f32).reshape(-1, answer.dimensions) for answer in answers])

    def late(self, seconds: float) -> DeadlineExceeded:
        """As the base says."""
        return DeadlineExceeded(f"not all of {self._num_prompts} embeddings came within {seconds:g} s; the rest was aborted")

    def close(self) -> None:
        """Aborts what still runs."""
        self._exhausted = True
        for reply in self._replies:
            if not reply.ready:
                reply.close()

    def _top_up(self) -> None:
        while not self._exhausted and self.error is None and len(self._replies) - self._finished < _WINDOW:
            portion = next(self._left, None)
            if portion is None:
                self._exhausted = True
                return
            reply = self._ask(portion)
            reply.notify = partial(self._on_news, reply)
            self._replies.append(reply)

    def _on_news(self, reply: Reply[Embedded]) -> None:
        self._finished += 1
        if reply.error is not None:
            self.fail(reply.error)
        self._top_up()
        self.notify()


def _portions(prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    portion: list[Prompt] = []
    size = 0
    for prompt in prompts:
        weight = 4 * len(prompt.text) if isinstance(prompt, TextPrompt) else len(prompt.token_ids_i32)
        if portion and (len(portion) == _MOST_PROMPTS or size + weight > _MOST_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(prompt)
        size += weight
    if portion:
        yield portion
