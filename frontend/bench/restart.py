"""`engine-bench restart`: restarts an engine under load, behind a socket that is held meanwhile, and counts who is refused."""

import argparse
import asyncio
import contextlib
import socket
from collections import Counter

import msgspec
import uvloop

from frontend.bench.engines import running_engine
from frontend.bench.http_client import HttpClient, HttpError
from protocol.clock import now
from protocol.errors import ExitCode

SUMMARY = "restart an engine under load, as a service manager that holds its socket does, and count whom that refuses"

_BACKLOG = 4096  # that of scripts/systemd/engine@.socket
_QUESTION = msgspec.json.encode({"prompt": [5, 6, 7], "max_tokens": 20, "seed": 1, "ignore_eos": True})


class Outcome(msgspec.Struct, frozen=True):
    """Of all requests, each on a connection of its own."""

    requests: int
    restarts: int
    answered: int  # in full, with the same tokens
    refused: int  # no connection was to be had
    failed: dict[str, int]  # what else came of them, by kind
    longest_wait: float  # seconds, of those that were answered


class _Load:
    """A number of clients that ask one after the other until so many requests are made."""

    def __init__(self, base_url: str, requests: int) -> None:
        self._base_url = base_url
        self._left = requests
        self.results: Counter[str] = Counter()
        self.texts: set[str] = set()
        self.longest_wait = 0.0

    @property
    def done(self) -> int:
        return self.results.total()

    async def client(self) -> None:
        while self._left > 0:
            self._left -= 1
            began, http = now(), HttpClient(self._base_url)
            try:
                answer = msgspec.json.decode(await http.fetch("POST", "/v1/completions", _QUESTION))
                self.texts.add(answer["choices"][0]["text"])
                self.results["answered"] += 1
                self.longest_wait = max(self.longest_wait, now() - began)
            except HttpError as error:
                text = str(error)
                kind = "refused" if "cannot be reached" in text else text.partition(": status ")[2][:3] or "cut off"
                self.results[kind] += 1
            finally:
                http.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An engine on the simulated device, started again and again."""
    parser.add_argument("--requests", type=int, default=1000, metavar="N", help="in all (1000)")
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="spread over them (3)")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="clients at a time (16)")
    parser.add_argument("--model", default="demo", help="of the engine")
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of a sentence")


def run(options: argparse.Namespace) -> int:
    """Prints what came of it. Returns 0 when every request was answered."""
    outcome = uvloop.run(_restart(options))
    if options.json:
        print(msgspec.json.encode(outcome).decode())
    else:
        others = "".join(f", {count} {kind}" for kind, count in sorted(outcome.failed.items()))
        print(
            f"{outcome.restarts} restarts under {options.concurrency} clients: {outcome.refused} of {outcome.requests} refused, "
            f"{outcome.answered} answered{others}; the longest waited {outcome.longest_wait:.2f} s"
        )
    return ExitCode.OK if outcome.answered == outcome.requests else ExitCode.CRASHED


async def _restart(options: argparse.Namespace) -> Outcome:
    flags = ("--model", options.model, "--device", "sim", "--sim-decode-us", "500", "--log-level", "warning")
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listener:
        load = _Load(f"http://127.0.0.1:{listener.getsockname()[1]}", options.requests)
        clients: list[asyncio.Task[None]] = []
        try:
            for restart in range(options.restarts + 1):
                async with contextlib.AsyncExitStack() as stack:
                    engine = running_engine(*flags, listener=listener)
                    await asyncio.to_thread(engine.__enter__)
                    stack.push_async_callback(asyncio.to_thread, engine.__exit__, None, None, None)  # the drain, under load
                    clients = clients or [asyncio.create_task(load.client()) for _ in range(options.concurrency)]
                    share = options.requests * (restart + 1) // (options.restarts + 1)
                    while load.done < share and not all(client.done() for client in clients):
                        await asyncio.wait(clients, timeout=0.01)
                    if restart == options.restarts:
                        await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
    answered, refused = load.results.pop("answered", 0), load.results.pop("refused", 0)
    if len(load.texts) > 1:
        load.results["other texts"] = len(load.texts) - 1
    return Outcome(options.requests, options.restarts, answered, refused, dict(load.results), load.longest_wait)
