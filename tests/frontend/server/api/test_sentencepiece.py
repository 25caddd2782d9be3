"""Completions of a model whose tokens begin with their spaces, from a Hugging Face directory, over HTTP and the Python client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from frontend.client import Client, SamplingParams
from tests.frontend.server.api.running import RunningEngine, demo_config, running_engine
from tests.frontend.server.ipc.serving import serving
from tests.frontend.server.text.kinds import VOCABULARY, llama2

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
_TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}"
_SEED = 566  # the first with which the simulated completion begins with a space and has no parts of characters
_PROMPT = [VOCABULARY["\u2581a"], VOCABULARY["b"]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(_CONFIG))
    save_file({"model.layers.0.input_layernorm.weight": np.zeros(8, np.float32)}, path / "model.safetensors")
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": _TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    llama2()._fast.save(str(path / "tokenizer.json"))
    with running_engine(demo_config(model_path=str(path), model_format="huggingface")) as engine:
        yield engine


@pytest.fixture(scope="module")
def http(running: RunningEngine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def _choice(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    asked = {"prompt": _PROMPT, "max_tokens": 5, "ignore_eos": True, "seed": _SEED, "return_token_ids": True} | fields
    response = http.post("/v1/completions", json=asked)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def _streamed(http: httpx.Client, **fields: Any) -> str:
    asked = {"prompt": _PROMPT, "max_tokens": 5, "ignore_eos": True, "seed": _SEED, "stream": True} | fields
    with http.stream("POST", "/v1/completions", json=asked) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line and line != "data: [DONE]"]
    return "".join(event["choices"][0]["text"] for event in events)


def test_a_completion_is_what_it_adds_to_its_prompt(http: httpx.Client, running: RunningEngine) -> None:
    choice = _choice(http)
    table = running.engine.tokenizer.bytes_without_special
    together = b"".join(table[token_id] for token_id in [*_PROMPT, *choice["token_ids"]]).decode(errors="replace")
    assert choice["text"] == together.removeprefix(" ab")
    assert choice["text"].startswith(" ")
    assert _streamed(http) == choice["text"]
    assert _choice(http, echo=True)["text"] == _streamed(http, echo=True) == "ab" + choice["text"]
    assert _choice(http, prompt="ab", echo=True)["text"] == "ab" + choice["text"]


def test_a_stop_string_with_its_space(http: httpx.Client) -> None:
    text = _choice(http)["text"]
    stop = text[:2]
    choice = _choice(http, stop=[stop])
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("", "stop", stop)
    assert _streamed(http, stop=[stop]) == ""


def test_the_python_client(running: RunningEngine, http: httpx.Client, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=5, ignore_eos=True, seed=_SEED)
    text = _choice(http)["text"]
    with serving(running, tmp_path / "api.sock") as served, Client(f"unix://{served.path}") as client:
        (output,) = client.generate(_PROMPT, params)
        assert output.text == text
        assert "".join(piece.text for piece in client.stream(_PROMPT, params)) == text


def test_a_template_writes_its_own_beginning(http: httpx.Client, running: RunningEngine) -> None:
    messages = [{"role": "user", "content": " a</s> "}]
    answer = http.post("/tokenize", json={"messages": messages}).json()
    assert [token_id for token_id in answer["tokens"] if token_id in (1, 2)] == [1, 2]
    text = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()["prompt"]
    assert text.replace("> ", ">") == "<s>user: a</s></s>"  # this tokenizer writes a space behind each control token
    adds = http.post("/tokenize", json={"messages": messages, "add_special_tokens": True}).json()
    assert adds["tokens"] == answer["tokens"]  # it adds none of its own
