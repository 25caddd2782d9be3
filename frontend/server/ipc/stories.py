"""Finds the stories of requests, by what people call these."""

import asyncio

from frontend.server.router import Router
from protocol.messages import ANY_REQUEST, Story

_MOST = 16  # told at a time
_LONGEST_SUBJECT = 512
_MOST_DIGITS = 18  # of a number: less than 2^63
_PREFIXES = ("chatcmpl-", "cmpl-", "resp_", "resp-", "msg_", "msg-")  # the id of an HTTP answer is its request's name behind one


class Stories:
    """Asks the scheduler one thing at a time, however many want to know."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._turn = asyncio.Lock()

    async def find(self, subject: str) -> tuple[Story, ...]:
        """The stories of the latest requests of this number or name, oldest first. Raises what `Router.story` raises."""
        async with self._turn:
            for request_id, name in _meanings(subject[:_LONGEST_SUBJECT]):
                story = await self._router.story(request_id, name)
                if not story.moves:
                    continue
                return tuple(await asyncio.gather(*map(self._router.story, story.request_ids[-_MOST:])))
        return ()


def _meanings(subject: str) -> list[tuple[int, str]]:
    """What is asked for, as numbers and names: the likeliest first."""
    if not subject:
        return [(ANY_REQUEST, "")]
    meanings = []
    if subject.isascii() and subject.isdigit() and len(subject) <= _MOST_DIGITS:
        meanings.append((int(subject), ""))
    names = [subject, *(subject.removeprefix(prefix) for prefix in _PREFIXES if subject.startswith(prefix))]
    return meanings + [(ANY_REQUEST, name) for name in names if name]
