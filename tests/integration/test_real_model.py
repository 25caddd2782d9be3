"""The demo model on the CPU, in real processes: what users get, however the engine is set up."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from frontend.client import Client, SamplingParams
from tests.integration.launching import Engine, launch

_SMALL = ("--device", "cpu", "--max-model-len", "512", "--max-num-seqs", "16")
_PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a small robot that",
    "def fibonacci(n):\n",
    "Question: What is 2 + 2? Answer:",
    "The three primary colors are",
    "Once upon a time there was a small robot that could sing, and every day it went to the market to",
] * 2
_PARAMS = [
    SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=17, temperature=0.8, top_p=0.9, seed=7, ignore_eos=True),
    SamplingParams(max_tokens=20, temperature=0.0, repetition_penalty=1.3, presence_penalty=0.5),
    SamplingParams(max_tokens=1, temperature=0.0),
    SamplingParams(max_tokens=24, temperature=1.0, top_k=20, min_p=0.05, frequency_penalty=0.4, seed=3),
    SamplingParams(max_tokens=9, temperature=0.0, logprobs=2),
] * 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One worker, one step at a time."""
    with launch(tmp_path_factory.mktemp("plain"), *_SMALL, "--queue-depth", "1", "--max-num-batched-tokens", "512") as engine:
        yield engine


def answers(engine: Engine) -> list[list[int]]:
    """The tokens of one set of requests."""
    with Client(engine.socket) as client:
        return [output.token_ids for output in client.generate(_PROMPTS, _PARAMS, progress=False)]


def test_depth_and_workers_change_no_token(plain: Engine, tmp_path: Path) -> None:
    expected = answers(plain)
    with launch(tmp_path, *_SMALL, "--queue-depth", "2", "--workers", "2", "--max-num-batched-tokens", "32") as engine:
        assert answers(engine) == expected
    assert expected[:6] == expected[6:], "the same request twice in one batch"


def test_the_official_client(plain: Engine) -> None:
    with OpenAI(base_url=plain.address + "/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
        whole = client.chat.completions.create(model=model, messages=question, temperature=0, logprobs=True, top_logprobs=2)
        choice, usage = whole.choices[0], whole.usage
        assert choice.message.content == "The capital of France is Paris." and choice.finish_reason == "stop"
        assert choice.logprobs is not None and choice.logprobs.content is not None and usage is not None
        first = choice.logprobs.content[0]
        assert first.token == "The" and first.top_logprobs[0].logprob == first.logprob
        pieces, counted = [], None
        for chunk in client.chat.completions.create(
            model=model, messages=question, temperature=0, stream=True, stream_options={"include_usage": True}
        ):
            pieces += [streamed.delta.content or "" for streamed in chunk.choices]
            counted = chunk.usage or counted
        assert "".join(pieces) == choice.message.content and len(pieces) > 1  # what comes faster than it is read is one piece
        assert counted is not None and counted.completion_tokens == usage.completion_tokens
        counted_up = client.completions.create(model=model, prompt="1, 2, 3, 4,", temperature=0, max_tokens=40).choices[0].text
        cut = client.completions.create(model=model, prompt="1, 2, 3, 4,", temperature=0, max_tokens=40, stop=["7"]).choices[0]
        assert cut.text == counted_up[: counted_up.index("7")] and cut.finish_reason == "stop"
