"""`engine-bench attack`: how long a healthy client waits while somebody attacks the engine, and what that costs the frontend."""

import argparse
import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop

from frontend.bench.attacks import BUDGETS_MIB, MIB, Attack, Target, catalogue
from frontend.bench.engines import RunningEngine, running_engine
from frontend.bench.http_client import HttpClient, HttpError
from protocol.clock import now
from protocol.errors import ConfigError, ExitCode

SUMMARY = "attack an engine, and print how long a healthy client waits for four tokens meanwhile"

_REST = 0.02  # seconds between two requests of the healthy client
_QUESTION = msgspec.json.encode({"prompt": [5, 6, 7, 8], "max_tokens": 4, "ignore_eos": True})
_FRONTENDS = ("frontend", "chat-template")


class Outcome(msgspec.Struct, frozen=True):
    """Of one attack."""

    attack: str
    answer: str
    longest_wait_ms: float  # of the healthy client, from the beginning of the attack to a second behind its end
    loop_lag_ms: float  # the longest that the frontend's event loop took for a question that it answers by itself
    requests: int  # of the healthy client, answered
    failed: int  # not answered in full
    peak_mib: float  # resident, of the frontend and the processes that render for it; 0: not known
    after_mib: float  # the same a second behind the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An engine of its own unless one is named."""
    parser.add_argument(
        "--base-url", default="", metavar="URL", help="an engine that runs (else one is started, on the simulated device)"
    )
    parser.add_argument("--socket", default="", metavar="PATH", help="that engine's socket, to be attacked too")
    parser.add_argument("--api-key", default="", help="of that engine")
    parser.add_argument("--model", default="demo", help="of the engine that is started")
    parser.add_argument("--only", default="", metavar="TEXT", help="attacks whose names hold this text")
    parser.add_argument("--bound", type=float, default=0.0, metavar="MS", help="exit with 1 when the healthy client waits longer")
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of the table")


def run(options: argparse.Namespace) -> int:
    """Prints a line for each attack. Returns 0 when the healthy client was always answered, within --bound where there is one."""
    if options.socket and not options.base_url:
        raise ConfigError("--socket belongs to the engine that --base-url names")
    with _engine(options) as engine:
        outcomes = uvloop.run(_attack(engine, options))
    if options.json:
        print(msgspec.json.encode({"attacks": outcomes}).decode())
    else:
        _print_table(outcomes)
    bad = any(one.failed or (options.bound and one.longest_wait_ms > options.bound) for one in outcomes)
    return ExitCode.CRASHED if bad else ExitCode.OK


@contextlib.contextmanager
def _engine(options: argparse.Namespace) -> Iterator[RunningEngine]:
    if options.base_url:
        yield RunningEngine(options.base_url, options.socket, 0)
        return
    with running_engine("--model", options.model, "--device", "sim", "--sim-prefill-us-per-token", "0") as engine:
        yield engine


async def _attack(engine: RunningEngine, options: argparse.Namespace) -> list[Outcome]:
    url = urlsplit(engine.base_url)
    if url.scheme != "http" or not url.hostname or not url.port:
        raise ConfigError(f"--base-url {engine.base_url}: http://HOST:PORT is wanted")
    target = Target(url.hostname, url.port, engine.socket, options.api_key)
    client, probe = HttpClient(engine.base_url, api_key=options.api_key), HttpClient(engine.base_url)
    frontends = _descendants(engine.pid) if engine.pid else []
    outcomes = []
    try:
        await client.fetch("POST", "/v1/completions", _QUESTION)
        attacks = [one for one in catalogue(target) if options.only in one.name]
        for attack in [Attack("none", bytes, lambda *_: asyncio.sleep(3.0, "")), *attacks]:
            outcomes.append(await _one(attack, target, client, probe, frontends))
    finally:
        client.close()
        probe.close()
    return outcomes


async def _one(attack: Attack, target: Target, client: HttpClient, probe: HttpClient, frontends: list[int]) -> Outcome:
    waits: list[float] = []
    lags = [0.0]
    failed, peak = 0, 0.0
    over = False

    async def be_healthy() -> None:
        nonlocal failed, peak
        while not over:
            began = now()
            try:
                async with asyncio.timeout(120.0):
                    await client.fetch("POST", "/v1/completions", _QUESTION)
            except (HttpError, TimeoutError):
                failed += 1
            waits.append(now() - began)
            peak = max(peak, _resident(frontends))
            await asyncio.sleep(_REST)

    async def look() -> None:
        while not over:
            began = now()
            with contextlib.suppress(HttpError):
                await probe.fetch("GET", "/ping")
                lags.append(now() - began)
            await asyncio.sleep(_REST)

    data = attack.prepare()
    healthy = asyncio.gather(be_healthy(), look())
    await asyncio.sleep(0.2)
    answer = await attack.send(target, data)
    await asyncio.sleep(1.0)
    over = True
    await healthy
    lag, num_answered = 1e3 * max(lags), len(waits) - failed
    return Outcome(attack.name, answer, 1e3 * max(waits), lag, num_answered, failed, peak, _resident(frontends))


def _descendants(pid: int) -> list[int]:
    """The launcher's frontends. Their children are looked up when they are measured, since they come and go."""
    return [child for child in _children(pid) if _name(child) in _FRONTENDS]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")
        return [int(child) for thread in threads for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return []


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _resident(frontends: list[int]) -> float:
    """MiB of the frontends and of their children."""
    pages = 0
    for pid in [one for frontend in frontends for one in (frontend, *_children(frontend))]:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def _print_table(outcomes: list[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "attack", "answer", "longest wait, ms", "loop's lag, ms", "answered", "failed", "frontend at most, MiB", "after, MiB"
    )
    for one in outcomes:
        numbers = (
            f"{one.longest_wait_ms:.0f}",
            f"{one.loop_lag_ms:.0f}",
            str(one.requests),
            str(one.failed),
            f"{one.peak_mib:.0f}",
            f"{one.after_mib:.0f}",
        )
        table.add_row(one.attack, one.answer, *numbers)
    console = Console(width=160)
    console.print(table)
    worst = max(outcomes, key=lambda one: one.longest_wait_ms)
    console.print(f"the longest wait: {worst.longest_wait_ms:.0f} ms, during: {worst.attack}")
    if most := max(one.peak_mib for one in outcomes):
        console.print(f"the frontend took {most - outcomes[0].peak_mib:.0f} MiB more than idle, budgets allow {BUDGETS_MIB} MiB")
