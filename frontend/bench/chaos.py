"""`engine-bench chaos`: kills the processes of an engine at random while clients stream, and compares what they get with what they
should have got."""

import argparse
import asyncio
import random
import signal
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
import uvloop

from frontend.bench.chaos_requests import Answer, Clients, Question, make_questions, undisturbed
from frontend.bench.engines import RunningEngine, running_engine
from frontend.client import AsyncClient
from protocol.clock import now
from protocol.errors import ConfigError, EngineError, ExitCode

SUMMARY = "kill processes of an engine at random, and look for tokens that are lost, repeated or changed"

_VICTIMS = {"tpu_worker": 3.0, "scheduler_proc": 2.0, "frontend": 2.0, "grammar": 1.0}  # how often, by the name that `ps` shows
_ABORTED = 0.1  # of the streams
_STOPPED = 0.1  # of the blows are SIGSTOP: only the engine's own watch finds that out
_TOGETHER = 0.15  # of the blows hit two processes at once …
_AGAIN = 0.15  # … and as many hit the successor as soon as it is there
_PULSE_SECONDS = 2.0  # after which what is stopped is ended
_REST_SECONDS = 60.0  # at most, for all to be well again at the end


class Blow(msgspec.Struct, frozen=True):
    """Signals that were sent at one time."""

    at: float
    victims: tuple[str, ...]
    signal: str


class Report(msgspec.Struct, frozen=True):
    """The figures of one run."""

    seed: int
    seconds: float
    blows: dict[str, int]  # by victim
    requests: dict[str, int]  # by outcome
    differences: dict[str, int]  # tokens lost, duplicated, changed: requests by what was wrong
    stalls: dict[
        str, tuple[int, float, float]
    ]  # by victim: how many blows, median and 99th percentile of the seconds without a token
    leaks: list[str]
    memory_mib: dict[str, tuple[float, float]]  # resident, of each process, before the first blow and after the last
    examples: list[str]  # of what went wrong


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, how much, and what."""
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="signals to be sent")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and of the blows")
    parser.add_argument("--concurrency", type=int, default=32, metavar="N", help="requests at a time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--questions", type=int, default=56, metavar="N", help="different requests")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="mean time between two blows")
    parser.add_argument("--only", nargs="+", choices=sorted(_VICTIMS), default=sorted(_VICTIMS), help="whom to hit")
    parser.add_argument("--seconds", type=float, default=0.0, metavar="S", help="go on for so long at least")
    parser.add_argument("--sim-decode-us", type=float, default=3000.0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of the table")


def run(options: argparse.Namespace) -> int:
    """Prints a table. Returns 0 when nothing was lost, repeated, changed or leaked."""
    if options.kills < 0 or options.concurrency < 1 or options.questions < 1:
        raise ConfigError("--kills of at least 0, --concurrency and --questions of at least 1 are wanted")
    flags = [
        "--model", options.model, "--device", "sim", "--workers", str(options.workers), "--max-model-len", "1024",
        "--max-num-seqs", "24", "--kv-cache-memory", "200M", "--sim-decode-us", str(options.sim_decode_us),
        "--restart-delay", "0.02", "--max-restarts", "1000000", "--pulse-timeout", str(_PULSE_SECONDS),
    ]  # fmt: skip
    with running_engine(*flags) as engine:
        report = uvloop.run(_Chaos(engine, options).run())
    if options.json:
        print(msgspec.json.encode(report).decode())
    else:
        _print(report)
    return ExitCode.CRASHED if report.requests.get("lost") or report.differences or report.leaks else ExitCode.OK


class _Chaos:
    """One run against one engine."""

    def __init__(self, engine: RunningEngine, options: argparse.Namespace) -> None:
        import psutil

        self._engine = engine
        self._launcher = psutil.Process(engine.pid)
        self._options = options
        self._draw = random.Random(options.seed)
        self._questions = make_questions(options.questions, options.seed)
        self._blows: list[Blow] = []
        self._answers: list[Answer] = []
        self._over = False

    async def run(self) -> Report:
        clients = Clients(self._engine.socket, self._engine.base_url)
        await clients.connect()
        try:
            await self._until_well()
            expected = await undisturbed(clients, self._questions, self._options.concurrency)
            before = await self._footprint_at_rest(clients)
            began = now()
            readers = [asyncio.ensure_future(self._read(clients)) for _ in range(self._options.concurrency)]
            await self._strike_all()
            await asyncio.sleep(max(0.0, began + self._options.seconds - now()))
            self._over = True
            await asyncio.gather(*readers)
            seconds = now() - began
            await self._until_well()
            again = await undisturbed(clients, self._questions, self._options.concurrency)
            return self._report(expected, again, before, await self._footprint_at_rest(clients), seconds)
        finally:
            clients.close()

    async def _read(self, clients: Clients) -> None:
        """One client: asks until it is over. What broke, or was refused, is asked again."""
        number: int | None = None
        while not self._over or number is not None:
            again = number is not None
            number = self._draw.randrange(len(self._questions)) if number is None else number
            question = self._questions[number]
            aborts = question.kind == "stream" and not again and self._draw.random() < _ABORTED
            answer = await clients.ask(number, question, self._draw.randint(1, 40) if aborts else None)
            self._answers.append(answer)
            if answer.outcome in ("broken", "refused"):
                await asyncio.sleep(0.1)
            else:
                number = None

    async def _strike_all(self) -> None:
        num_signals = 0
        while num_signals < self._options.kills:
            await asyncio.sleep(self._draw.expovariate(1 / self._options.interval) if self._options.interval else 0.0)
            first = self._choose()
            several = self._draw.random()
            victims = [first]
            if several < _TOGETHER:
                victims.append(self._choose())
            stops = self._draw.random() < _STOPPED
            num_signals += self._strike(victims, signal.SIGSTOP if stops else signal.SIGKILL)
            if _TOGETHER <= several < _TOGETHER + _AGAIN and not stops:
                await asyncio.sleep(self._draw.uniform(0.05, 0.5))
                num_signals += self._strike([first], signal.SIGKILL)

    def _choose(self) -> str:
        roles = sorted(self._options.only)
        role = self._draw.choices(roles, [_VICTIMS[role] for role in roles])[0]
        return f"{role}-{self._draw.randrange(self._options.workers)}" if role == "tpu_worker" else role

    def _strike(self, victims: Sequence[str], signum: signal.Signals) -> int:
        hit = []
        for child in self._launcher.children():
            name = child.name()
            if name in victims and name not in hit:
                child.send_signal(signum)
                hit.append(name)
        if hit:
            self._blows.append(Blow(now(), tuple(sorted(hit)), signum.name))
        return len(hit)

    async def _until_well(self) -> None:
        """Every process is there and idle, and every block is free. Raises EngineError when that does not come."""
        deadline, problem = now() + _REST_SECONDS, "no answer"
        async with AsyncClient(self._engine.socket, reconnect=_REST_SECONDS) as client:
            while now() < deadline:
                problem = await self._problem(client)
                if not problem:
                    return
                await asyncio.sleep(0.1)
        raise EngineError(f"the engine is not well {_REST_SECONDS:g} s after the last blow: {problem}")

    async def _problem(self, client: AsyncClient) -> str:
        names = Counter(child.name() for child in self._launcher.children())
        workers = [f"tpu_worker-{index}" for index in range(self._options.workers)]
        if missing := [name for name in (*workers, "scheduler_proc", "frontend", "grammar") if names[name] != 1]:
            return f"{', '.join(missing)} not there once"
        health, stats = await client.health(), await client.stats()
        if health.status != "ok" or health.requests:
            return f"health {health.status}, {health.requests} requests"
        held = sum(worker.blocks - worker.blocks_free for worker in stats.workers)
        if len(stats.workers) != self._options.workers or stats.waiting or held or any(worker.running for worker in stats.workers):
            return f"{stats.waiting} requests wait, {held} blocks are held"
        breaches = [name for name in stats.counters if name.startswith("breach_")]
        return f"rules were broken: {', '.join(breaches)}" if breaches else ""

    async def _footprint_at_rest(self, clients: Clients) -> dict[str, tuple[int, int]]:
        clients.rest()
        await asyncio.sleep(0.2)  # the frontend hears of it
        await self._until_well()
        return self._footprint()

    def _footprint(self) -> dict[str, tuple[int, int]]:
        """Descriptors and resident bytes of each process, by its name."""
        processes = [self._launcher, *self._launcher.children(recursive=True)]
        return {process.name(): (process.num_fds(), process.memory_info().rss) for process in processes}

    @staticmethod
    def _leaks(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> list[str]:
        leaks = [f"processes of another name: {name}" for name in sorted(after.keys() ^ before.keys())]
        for name in sorted(after.keys() & before.keys()):
            (fds, rss), (fds_before, rss_before) = after[name], before[name]
            if fds > fds_before + 4:
                leaks.append(f"{name}: {fds} descriptors, {fds_before} before")
            if rss > 1.25 * rss_before + (8 << 20):
                leaks.append(f"{name}: {rss >> 20} MiB, {rss_before >> 20} before")
        return leaks

    def _report(
        self,
        expected: list[Answer],
        again: list[Answer],
        before: dict[str, tuple[int, int]],
        after: dict[str, tuple[int, int]],
        seconds: float,
    ) -> Report:
        differences: Counter[str] = Counter()
        examples: list[str] = []
        for answer in (*self._answers, *again):
            wrong = compare(self._questions[answer.question], answer, expected[answer.question])
            if wrong:
                differences[wrong] += 1
            if wrong or answer.outcome == "lost":
                examples.append(f"question {answer.question} ({self._questions[answer.question].kind}): {wrong or answer.why}")
        return Report(
            seed=self._options.seed,
            seconds=seconds,
            blows=dict(Counter(victim for blow in self._blows for victim in blow.victims)),
            requests=dict(Counter(answer.outcome for answer in self._answers)),
            differences=dict(differences),
            stalls=stalls(self._blows, self._answers),
            leaks=self._leaks(before, after),
            memory_mib={name: (before[name][1] / 2**20, after[name][1] / 2**20) for name in sorted(before.keys() & after.keys())},
            examples=examples[:10],
        )


def compare(question: Question, answer: Answer, expected: Answer) -> str:
    """What is wrong with an answer: "" (nothing), "duplicated", "missing" or "changed"."""
    for index in range(question.params.n):
        came, wanted = answer.outputs.get(index, []), expected.outputs[index]
        if answer.outcome == "complete" and came == wanted and answer.reasons.get(index) == expected.reasons[index]:
            continue
        if answer.outcome != "complete" and came == wanted[: len(came)]:
            continue
        first = next(
            (i for i, (one, other) in enumerate(zip(came, wanted, strict=False)) if one != other), min(len(came), len(wanted))
        )
        rest = came[first : first + 4]
        if not rest:
            return "missing"
        places = [i for i in range(len(wanted)) if wanted[i : i + len(rest)] == rest]
        return "changed" if not places else "duplicated" if places[0] < first else "missing"
    return ""


def stalls(blows: Sequence[Blow], answers: Sequence[Answer]) -> dict[str, tuple[int, float, float]]:
    """By victim: how many blows, and median and 99th percentile of how long the stream waited that waited longest."""
    waits: dict[str, list[float]] = {}
    for blow in blows:
        longest = 0.0
        for answer in answers:
            if answer.times and answer.times[0] < blow.at < answer.times[-1]:
                longest = max(longest, next(time for time in answer.times if time > blow.at) - blow.at)
        names = {victim.split("-")[0] for victim in blow.victims}
        label = names.pop() if len(blow.victims) == 1 else "several"
        waits.setdefault(f"{label}, {blow.signal}", []).append(longest)
    return {name: (len(found), *np.percentile(found, [50, 99]).tolist()) for name, found in sorted(waits.items())}


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("victim", "blows", "longest wait, p50", "p99", title=f"seed {report.seed}, {report.seconds:.0f} s")
    for name, (count, median, high) in report.stalls.items():
        table.add_row(name, str(count), f"{median:.2f} s", f"{high:.2f} s")
    console.print(table)
    console.print("signals: " + ", ".join(f"{name} {count}" for name, count in sorted(report.blows.items())))
    console.print("requests: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.requests.items())))
    wrong = ", ".join(f"{count} {what}" for what, count in report.differences.items())
    console.print(f"lost {report.requests.get('lost', 0)}; tokens: {wrong or 'none lost, none repeated, none changed'}")
    memory = (f"{name} {first:.0f} to {last:.0f} MiB" for name, (first, last) in report.memory_mib.items())
    console.print("memory: " + ", ".join(memory))
    console.print("leaks: " + ("; ".join(report.leaks) or "none"))
    for example in report.examples:
        console.print(f"  {example}", markup=False)
