"""SIGHUP: what may change while an engine runs is read again."""

import signal
from pathlib import Path

import httpx

from frontend.client import Client, SamplingParams
from tests.integration.launching import SIMULATED, Engine, launch, wait_for


def _status(engine: Engine, key: str) -> int:
    return httpx.get(engine.address + "/v1/models", headers={"authorization": f"Bearer {key}"}).status_code


def test_keys_and_the_log_level_change_and_nobody_is_disturbed(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    keys.chmod(0o600)
    config = tmp_path / "engine.toml"
    config.write_text('log-level = "info"\n')
    flags = ("--config", str(config), "--api-key-file", str(keys), "--sim-decode-us", "3000", "--frontends", "2")
    with launch(tmp_path, *SIMULATED, *flags) as engine, Client(engine.socket) as client:
        stream = client.stream([1, 2, 3], SamplingParams(max_tokens=300, ignore_eos=True))
        next(stream)
        assert (_status(engine, "first"), _status(engine, "second")) == (200, 401)
        keys.write_text("second\n")
        config.write_text('log-level = "error"\n')
        engine.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "read again: 1 API keys, log level error" in engine.said(), "the launcher's word")
        for _ in range(6):  # connections go to either frontend
            wait_for(lambda: (_status(engine, "first"), _status(engine, "second")) == (401, 200), "the other key")
        lines = engine.said().count("GET /v1/models")
        assert _status(engine, "second") == 200
        assert engine.said().count("GET /v1/models") == lines, "an access line is no error"
        engine.child("frontend").kill()
        wait_for(lambda: "frontend is back" in engine.said(), "the other frontend")
        assert _status(engine, "second") == 200
        assert sum(len(delta.token_ids) for delta in stream) >= 298


def test_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n")
    keys.chmod(0o600)
    with launch(tmp_path, *SIMULATED, "--api-key-file", str(keys)) as engine:
        keys.unlink()
        engine.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "nothing is changed: " in engine.said(), "the launcher's word")
        assert str(keys) in engine.said()
        assert (_status(engine, "first"), _status(engine, "none")) == (200, 401)
        assert engine.stop() == 0
