"""`engine-bench serve` against a real engine: both kinds of prompts have the length that was asked for."""

import json
from pathlib import Path

import pytest

from frontend.bench.__main__ import main
from tests.integration.launching import Engine


@pytest.mark.parametrize("kind", ["ids", "text"])
def test_a_load_is_answered_in_full(simulated_engine: Engine, tmp_path: Path, kind: str) -> None:
    load = f"--num-prompts 12 --random-input-len 30 --random-output-len 8 --max-concurrency 4 --ignore-eos --prompt-kind {kind}"
    figures_file = tmp_path / "figures.json"
    assert main(["serve", "--base-url", simulated_engine.address, *load.split(), "--json", str(figures_file)]) == 0
    figures = json.loads(figures_file.read_text())
    assert (figures["model"], figures["completed"], figures["failed"]) == ("SmolLM2-135M-Instruct", 12, 0)
    assert figures["total_output_tokens"] == 12 * 8
    # Text is tokenized again by the server, which may join or split tokens that met by chance.
    assert figures["total_input_tokens"] == pytest.approx(12 * 30, rel=0.0 if kind == "ids" else 0.2)
    assert 0 < figures["mean_ttft_ms"] < figures["mean_e2el_ms"]
