"""The processes that every request goes through die, and what was promised is kept."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from frontend.client import AsyncClient, Client, Delta, SamplingParams
from tests.integration.launching import SIMULATED, Engine, launch, wait_for

# The Nth output's parameters: all that could differ when a request is taken up again.
_PARAMS: Sequence[SamplingParams] = (
    SamplingParams(max_tokens=150, temperature=0.0, seed=2, ignore_eos=True),
    SamplingParams(max_tokens=150, temperature=0.9, seed=3, ignore_eos=True, presence_penalty=0.5, frequency_penalty=0.2),
    SamplingParams(max_tokens=150, temperature=1.0, seed=4, n=2, ignore_eos=True),
    SamplingParams(
        max_tokens=150,
        temperature=1.0,
        seed=5,
        allowed_token_ids=list(range(200, 264)),
        stop_token_ids=[200, 201, 202],
        min_tokens=20,
    ),
)


async def _stream(engine: Engine, index: int, begun: asyncio.Event) -> list[list[int]]:
    """Token ids of each output of a request."""
    async with AsyncClient(engine.socket) as client:
        outputs: dict[int, list[int]] = {}
        async for delta in client.stream([100 + index] * (3 + 5 * index), _PARAMS[index % len(_PARAMS)]):
            outputs.setdefault(delta.index, []).extend(delta.token_ids)
            if len(outputs[delta.index]) > 10:
                begun.set()
        return [outputs[key] for key in sorted(outputs)]


async def _all(engine: Engine, kill: str | None) -> list[list[list[int]]]:
    begun = [asyncio.Event() for _ in range(12)]
    streams = [asyncio.ensure_future(_stream(engine, index, event)) for index, event in enumerate(begun)]
    if kill is not None:
        await asyncio.gather(*(event.wait() for event in begun))
        engine.child(kill).kill()
    return await asyncio.gather(*streams)


@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_streams_pause_when_the_scheduler_dies_and_go_on_as_if_nothing_had_happened(tmp_path: Path, depth: int) -> None:
    flags = ("--workers", "2", "--queue-depth", str(depth), "--sim-decode-us", "3000", "--max-num-seqs", "4")
    with launch(tmp_path, *SIMULATED, *flags) as engine:
        undisturbed = asyncio.run(_all(engine, None))
        workers = [engine.child(f"tpu_worker-{index}").pid for index in range(2)]
        for _ in range(3):
            assert asyncio.run(_all(engine, "scheduler_proc")) == undisturbed
        assert [engine.child(f"tpu_worker-{index}").pid for index in range(2)] == workers, "the model stays where it is"
        assert engine.said().count("scheduler was killed by SIGKILL") == 3
        assert engine.stop() == 0
        assert "Traceback" not in engine.said()


def test_scheduler_and_worker_die_together(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED, "--workers", "2", "--sim-decode-us", "3000") as engine:
        undisturbed = asyncio.run(_all(engine, None))

        async def disturbed() -> list[list[list[int]]]:
            begun = [asyncio.Event() for _ in range(12)]
            streams = [asyncio.ensure_future(_stream(engine, index, event)) for index, event in enumerate(begun)]
            await asyncio.gather(*(event.wait() for event in begun))
            for name in ("tpu_worker-1", "scheduler_proc"):
                engine.child(name).kill()
            return await asyncio.gather(*streams)

        assert asyncio.run(disturbed()) == undisturbed
        wait_for(lambda: "worker 1 is back" in engine.said(), "the other worker")
        assert asyncio.run(_all(engine, None)) == undisturbed, "both workers serve in the new session"


def test_clients_who_come_while_the_only_frontend_is_gone_wait_and_are_not_refused(tmp_path: Path) -> None:
    with launch(tmp_path, *SIMULATED) as engine:
        before = engine.complete([9, 8, 7], max_tokens=5, seed=1)
        frontend = engine.child("frontend")
        frontend.kill()
        frontend.wait(10)
        for _ in range(3):  # one comes while nobody is there, the next ones when the successor serves
            with httpx.Client(base_url=engine.address, timeout=30) as client:
                body = {"prompt": [9, 8, 7], "max_tokens": 5, "seed": 1}
                assert client.post("/v1/completions", json=body).json()["choices"] == before["choices"]
        assert "frontend was killed by SIGKILL" in engine.said()
        assert engine.stop() == 0


def _together(deltas: Sequence[Delta]) -> dict[int, tuple[list[int], str, str]]:
    """By output: its token ids, its text, and why it ended."""
    outputs: dict[int, tuple[list[int], str, str]] = {}
    for delta in deltas:
        token_ids, text, _ = outputs.get(delta.index, ([], "", ""))
        outputs[delta.index] = [*token_ids, *delta.token_ids], text + delta.text, delta.finish_reason or ""
    return outputs


_TEXTS: Sequence[tuple[str, SamplingParams]] = (
    ("Once upon a time", SamplingParams(max_tokens=200, seed=1, ignore_eos=True)),
    ("Once upon a time", SamplingParams(max_tokens=200, seed=2, n=3, ignore_eos=True, stop=["qqq", "zzz"])),
    ("Once upon", SamplingParams(max_tokens=200, seed=3, ignore_eos=True, repetition_penalty=1.2, min_tokens=30)),
)


@pytest.mark.parametrize("victims", [pytest.param(("frontend",), marks=pytest.mark.slow), ("frontend", "scheduler_proc")])
def test_streams_of_python_clients_go_on_in_another_frontend(tmp_path: Path, victims: Sequence[str]) -> None:
    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "4000") as engine, Client(engine.socket) as client:
        undisturbed = [_together(list(client.stream(prompt, params))) for prompt, params in _TEXTS]
        whole = client.generate("a", SamplingParams(max_tokens=200, seed=4, ignore_eos=True))[0].token_ids
        streams = [client.stream(prompt, params) for prompt, params in _TEXTS]
        handle = client.submit("a", SamplingParams(max_tokens=200, seed=4, ignore_eos=True))
        came = [[next(stream) for _ in range(5)] for stream in streams]
        for victim in victims:
            engine.child(victim).kill()
        for stream, deltas in zip(streams, came, strict=True):
            deltas.extend(stream)
        assert [_together(deltas) for deltas in came] == undisturbed
        assert handle.result().token_ids == whole
        assert client.health().status == "ok"
        assert engine.stop() == 0
        assert "Traceback" not in engine.said()


@pytest.mark.slow
def test_a_request_without_a_seed_goes_on_with_the_one_that_was_drawn(tmp_path: Path) -> None:
    """A continuation is one of the same draw: greedy ones of the real model apart, nothing else could be repeated."""
    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "4000", "--seed", "11") as engine, Client(engine.socket) as client:
        prompts = [[5, 6, 7]] * 2
        params = SamplingParams(max_tokens=200, ignore_eos=True)
        first, second = (output.token_ids for output in client.generate(prompts, params, progress=False))
        assert first != second
    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "4000", "--seed", "11") as engine, Client(engine.socket) as client:
        streams = [client.stream(prompt, params) for prompt in prompts]
        token_ids = [list(next(stream).token_ids) for stream in streams]
        engine.child("frontend").kill()
        for index, stream in enumerate(streams):
            for delta in stream:
                token_ids[index] += delta.token_ids
        assert token_ids == [first, second]


def test_streams_go_on_in_the_next_engine_when_the_launcher_was_killed(tmp_path: Path) -> None:
    prompt, params = _TEXTS[0]
    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "4000") as engine, Client(engine.socket) as client:
        undisturbed = _together(list(client.stream(prompt, params)))
        stream = client.stream(prompt, params)
        came = [next(stream) for _ in range(5)]
        children = engine.children()
        engine.process.kill()
        psutil.wait_procs(children, 10)
        assert not any(child.is_running() for child in children)
        with launch(tmp_path, *SIMULATED, "--sim-decode-us", "4000"):
            came.extend(stream)
        assert _together(came) == undisturbed
