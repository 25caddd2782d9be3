import os
import signal
from pathlib import Path

import pytest

from frontend.launcher.download import Downloader, StopAsked
from frontend.launcher.models import ModelFiles, examine_model, resolve_model
from frontend.launcher.repositories import Wanted, choose, parse_repository
from frontend.launcher.signals import Signals
from protocol.errors import ModelError
from tests.frontend.launcher.hub import COMMIT, Hub, serving
from tests.model_writer import gguf_bytes, write_huggingface

NAME = "Org/Tiny-1B"


def _files(directory: Path, shards: int = 2) -> dict[str, bytes]:
    write_huggingface(directory, shards)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _resolve(hub: Hub, cache: Path, signals: Signals, model: str = NAME, **more: str) -> ModelFiles:
    revision = more.pop("revision", None)
    environ = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache), **more}
    return resolve_model(model, Downloader(signals, environ), revision=revision, environ=environ)


def test_a_checkpoint_is_downloaded_once_and_only_what_is_needed(tmp_path: Path, signals: Signals) -> None:
    unneeded = {"pytorch_model.bin": b"x", "original/params.json": b"{}", "consolidated.safetensors": b"x", "README.md": b"x"}
    with serving(Hub({NAME: _files(tmp_path / "made") | unneeded})) as hub:
        model = _resolve(hub, tmp_path / "cache", signals)
        assert model.names == (NAME,)
        assert Path(model.path) == tmp_path / "cache" / "models--Org--Tiny-1B" / "snapshots" / COMMIT
        assert examine_model(model).vocab_size == 10
        assert {path.name for path in Path(model.path).iterdir()} == set(hub.repositories[NAME]) - set(unneeded) - {
            "original/params.json"
        }
        hub.requests.clear()
        assert _resolve(hub, tmp_path / "cache", signals) == model
        assert _resolve(hub, tmp_path / "cache", signals, HF_HUB_OFFLINE="1") == model
        assert hub.requests == []
        assert _resolve(hub, tmp_path / "cache", signals, revision=COMMIT) == model


def test_what_was_interrupted_goes_on_where_it_ended(tmp_path: Path, signals: Signals) -> None:
    data = gguf_bytes() + bytes(1 << 16)
    with serving(Hub({NAME: {"t.Q4_K_M.gguf": data, "t.Q8_0.gguf": b"other"}}, cut_after=len(data) // 4 + 1)) as hub:
        model = _resolve(hub, tmp_path, signals, f"{NAME}:Q4_K_M")
        assert (model.format, model.names) == ("gguf", (NAME, f"{NAME}:Q4_K_M"))
        assert Path(model.path).read_bytes() == data
        quarter = len(data) // 4 + 1
        assert hub.ranges == ["", *(f"bytes={part * quarter}-" for part in (1, 2, 3))]
        assert _resolve(hub, tmp_path, signals, f"{NAME}/t.Q4_K_M.gguf").path == model.path


def test_a_token_is_shown_to_the_hub_and_not_to_whom_it_points(tmp_path: Path, signals: Signals) -> None:
    with serving(Hub({NAME: _files(tmp_path / "made")}, gated=frozenset((NAME,)))) as hub:
        with pytest.raises(ModelError, match=r"is gated: accept its terms on its page, and set HF_TOKEN"):
            _resolve(hub, tmp_path / "cache", signals, HF_TOKEN="")
        hub.gated = frozenset()
        _resolve(hub, tmp_path / "cache", signals, HF_TOKEN="hf_secret")
        assert set(hub.tokens) == {""}


@pytest.mark.slow
def test_what_goes_wrong_is_said_in_a_sentence(tmp_path: Path, signals: Signals) -> None:
    with serving(Hub({NAME: _files(tmp_path / "made"), "Org/Empty": {}})) as hub:
        cache = tmp_path / "cache"
        for model, more, message in (
            ("Org/Absent", {}, "no such repository, or a private one, which needs HF_TOKEN; nor is there a file or directory"),
            (NAME, {"revision": "v9"}, "has no --revision v9"),
            (NAME, {"HF_HUB_OFFLINE": "1"}, "not in the cache .*, and HF_HUB_OFFLINE forbids to download it"),
            (NAME, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
            ("Org/Empty", {}, "config.json is missing"),
        ):
            with pytest.raises(ModelError, match=message):
                _resolve(hub, cache, signals, model, **more)
        hub.wrong = True
        with pytest.raises(ModelError, match="what came is not what the hub has"):
            _resolve(hub, cache, signals)
        hub.wrong = False
        _resolve(hub, cache, signals)


def test_a_signal_ends_it_at_once(tmp_path: Path, signals: Signals) -> None:
    with serving(Hub({NAME: _files(tmp_path / "made")})) as hub:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopAsked):
            _resolve(hub, tmp_path / "cache", signals)


def test_the_files_of_a_model_are_chosen_by_what_is_asked_for() -> None:
    names = [
        "a-Q4_K_M.gguf",
        "a-Q4_K_S.gguf",
        "mmproj-Q8_0.gguf",
        "Q8_0/a-Q8_0-00001-of-00002.gguf",
        "Q8_0/a-Q8_0-00002-of-00002.gguf",
    ]
    for quantization, found in (("q4_k_m", names[:1]), ("Q8_0", names[3:])):
        assert choose(names, Wanted("o/n", "main", quantization)) == found
    assert choose(names, Wanted("o/n", "main", file=names[3])) == names[3:]
    checkpoint = ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert choose(checkpoint, Wanted("o/n", "main")) == ["config.json", "tokenizer.json", "model.safetensors"]
    assert choose(checkpoint, Wanted("o/n", "main", weights=False)) == ["config.json", "tokenizer.json"]
    with pytest.raises(ModelError, match="there are: Q4_K_M, Q4_K_S, Q8_0"):
        choose(names, Wanted("o/n", "main", "Q2_K"))
    with pytest.raises(ModelError, match="GGUF files only: name one, as in o/n:Q4_K_M"):
        choose(names, Wanted("o/n", "main"))
    with pytest.raises(ModelError, match="no safetensors weights but pickled ones"):
        choose(["config.json", "pytorch_model.bin"], Wanted("o/n", "main"))
    with pytest.raises(ModelError, match="it is an adapter"):
        choose(["adapter_config.json"], Wanted("o/n", "main"))
    assert [parse_repository(name) for name in ("a/b/c", "./a", "a/../b", "a/nothing.gguf", "/a/b")] == [None] * 5
    with pytest.raises(ModelError, match="--revision ../x: a branch"):
        parse_repository("o/n", "../x")
