"""Files to be written: what cannot be is said with the flag, and nothing is left behind."""

from pathlib import Path

import pytest

from frontend.output_files import check_output_file
from protocol.errors import ConfigError


def test_a_file_that_is_there_and_one_that_is_not_yet_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("kept")
    for name in ("there", "not-yet"):
        check_output_file("--json", str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/figures.json", "there is no directory .*missing"),
        ("", "is a directory"),
        ("x" * 300, "File name too long"),
        ("x" * 300 + "/figures.json", "File name too long"),
        ("file/figures.json", "there is no directory .*file"),
    ],
)
def test_what_cannot_be_written_is_refused_by_its_flag(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"--json .*: {why}"):
        check_output_file("--json", str(tmp_path / name))
