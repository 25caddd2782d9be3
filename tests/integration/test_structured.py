"""Structured outputs of whole engines: valid whatever is sampled, and the same whatever happens meanwhile."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from frontend.client import Client, SamplingParams
from protocol.params import Grammar
from tests.integration.launching import Engine, launch
from tests.scheduler_proc.grammar.schemas import Schema, complaint, random_schema

SIMULATED = ("--device", "sim", "--sim-decode-us", "1000", "--sim-prefill-us-per-token", "0", "--restart-delay", "0.05")
_MOST = 1500  # tokens of an answer, several times what any needs


def schemas(seeds: range) -> list[Schema]:
    return [random_schema(random.Random(seed)) for seed in seeds]


def answers(engine: Engine, wanted: Sequence[Schema], meanwhile: Callable[[], None] = lambda: None) -> list[str]:
    """The answers to all, running at once; `meanwhile` is done when some of their tokens are there."""
    params = [
        SamplingParams(max_tokens=_MOST, seed=seed, structured=Grammar("json_schema", json.dumps(schema)))
        for seed, schema in enumerate(wanted)
    ]
    texts: dict[int, str] = {}
    with Client(engine.socket) as client:
        handles = [client.submit("Some JSON:", one) for one in params]
        handles[0].result(60)
        meanwhile()
        for index, handle in enumerate(handles):
            output = handle.result(120).outputs[0]
            assert output.finish_reason == "stop", (index, output)
            texts[index] = output.text
    return [texts[index] for index in range(len(wanted))]


def check(wanted: Sequence[Schema], texts: Sequence[str]) -> None:
    wrong = [(schema, text, said) for schema, text in zip(wanted, texts, strict=True) if (said := complaint(schema, text))]
    assert not wrong


def test_answers_are_valid_and_the_same_when_processes_die(tmp_path: Path) -> None:
    wanted = schemas(range(24))
    with launch(tmp_path, *SIMULATED) as engine:
        texts = answers(engine, wanted)
        check(wanted, texts)
        for name in ("grammar", "tpu_worker-0"):
            child = engine.child(name)
            assert answers(engine, wanted, child.kill) == texts, f"another answer after the death of {name}"
            assert not child.is_running()
        assert "structured outputs wait; starting it again" in engine.said()
        assert engine.complete([1, 2], max_tokens=5)  # and plain requests go on


class City(msgspec.Struct):
    name: str
    country: Literal["France", "Italy", "Spain"]
    districts: Annotated[int, msgspec.Meta(ge=1, le=99)]
    has_river: bool


def test_a_real_model_answers_what_was_asked_for(tmp_path: Path) -> None:
    """At a high temperature, so that nothing but the grammar keeps it to its form."""
    wanted = schemas(range(500, 504))
    with launch(tmp_path, "--device", "cpu", "--max-model-len", "2048", "--max-num-seqs", "16") as engine:
        check(wanted, answers(engine, wanted))
        with Client(engine.socket) as client:
            question = [{"role": "user", "content": "Tell me about Paris."}]
            city = client.chat(question, schema=City, temperature=1.0, seed=1, max_tokens=200).parse(City)
            assert city.country in ("France", "Italy", "Spain")
            assert client.chat(question, choice=["yes", "no"], temperature=2.0).text in ("yes", "no")
            tight = client.chat(question, regex="[ab]{40}", temperature=1.0, seed=3, min_tokens=90)
            assert len(tight.text) == 40 and tight.finish_reason == "stop"


@pytest.mark.slow
def test_five_hundred_answers_are_valid_and_the_same_at_every_depth_and_behind_preemptions(tmp_path: Path) -> None:
    wanted = schemas(range(500))
    found = []
    for depth, flags in ((1, ()), (2, ("--kv-cache-memory", "64K", "--max-model-len", "2048")), (3, ())):
        with launch(tmp_path / str(depth), *SIMULATED, "--queue-depth", str(depth), *flags) as engine:
            found.append(answers(engine, wanted))
            check(wanted, found[-1])
            with Client(engine.socket) as client:
                assert bool(client.stats().counters.get("preemptions")) is (depth == 2)
    assert found[0] == found[1] == found[2]
