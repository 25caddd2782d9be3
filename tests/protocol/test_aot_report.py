"""A report is read whole, of this version and with times that can be, or refused with the flag that named it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.aot_report import check_model, pairs_of_prompt, read_report
from protocol.errors import ConfigError
from protocol.model_sizes import ModelSizes
from tests.roofline_report import LLAMA_1B, roofline_report

WHOLE = msgspec.json.encode(roofline_report())


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(WHOLE)
    report = read_report(str(tmp_path / "r.json"), "--sim-report")
    assert report == roofline_report()
    check_model(report, "r.json", LLAMA_1B)
    with pytest.raises(ConfigError, match=r"r.json is of llama-3.2-1b \(16 layers .*, and --model is of another one \(0 l"):
        check_model(report, "r.json", ModelSizes())


def test_a_report_from_before_a_field_was_added(tmp_path: Path) -> None:
    fields = msgspec.json.decode(WHOLE)
    del fields["decodes_apart"]
    (tmp_path / "r.json").write_bytes(msgspec.json.encode(fields | {"more": 1}))
    assert read_report(str(tmp_path / "r.json"), "--sim-report").decodes_apart


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    fields: dict[str, Any] = msgspec.json.decode(WHOLE)
    change(fields)
    return msgspec.json.encode(fields)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WHOLE[:-1], "no whole report"),
        (WHOLE[:1000], "no whole report"),
        (b"", "no whole report"),
        (b"[]", "no whole report"),
        (b"\xff", "no whole report"),
        (b"[" * 100_000, "no whole report"),
        (b" " * (1 << 24) + b"{}", "more than 16777216 bytes: no report is so long"),
        (b'{"version":2}', "a report of version 2, and this engine reads 1: make it again with engine-aot --json"),
        (edited(lambda fields: fields.update(version="1")), "no whole report"),
        (edited(lambda fields: fields.pop("programs")), "no whole report"),
        (edited(lambda fields: fields["programs"][0]["time"].update(fixed=-1)), "step 4x4 takes .*, which cannot be"),
        (edited(lambda fields: fields["programs"][3]["time"].update(per_row=1e300)), "takes .*, which cannot be"),
        (edited(lambda fields: fields.update(block_size=0)), "blocks of 0 tokens, which cannot be"),
        (edited(lambda fields: fields.update(num_blocks=-3)), "-3 blocks of 64 tokens, which cannot be"),
    ],
)
def test_what_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(ConfigError, match=f"--sim-report {tmp_path}/r.json: .*{message}"):
        read_report(str(tmp_path / "r.json"), "--sim-report")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--sim-report .*none.json: No such file"):
        read_report(str(tmp_path / "none.json"), "--sim-report")


@given(st.integers(0, 300), st.integers(1, 300))
def test_pairs_are_those_of_each_token_and_what_it_sees(tokens: int, window: int) -> None:
    assert pairs_of_prompt(tokens) == sum(position + 1 for position in range(tokens))
    assert pairs_of_prompt(tokens, window) == sum(min(position + 1, window) for position in range(tokens))
