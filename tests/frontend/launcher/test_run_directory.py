"""Directories of engines that were killed are removed, those of living ones are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frontend.launcher.run_directory import RunDirectory
from protocol.errors import ConfigError

OWNER = """
import sys
from pathlib import Path
from frontend.launcher.run_directory import RunDirectory
directory = RunDirectory(Path(sys.argv[1]))
Path(directory.path, "worker0-in.sock").touch()
print(directory.path, flush=True)
sys.stdin.read()
"""


def test_only_what_nobody_holds_is_swept(tmp_path: Path) -> None:
    foreign = tmp_path / "twodeep-foreign"
    foreign.mkdir()
    (foreign / "kept").touch()
    (tmp_path / "twodeep-file").touch()
    (tmp_path / "twodeep-link").symlink_to(tmp_path)
    program = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        ours = RunDirectory(tmp_path)
        assert Path(ours.path).stat().st_mode & 0o777 == 0o700
        assert ours.sweep() == []
        other.kill()
        other.wait()
        assert theirs.exists()
        assert ours.sweep() == [str(theirs)]
    ours.remove()
    assert sorted(os.listdir(tmp_path)) == ["twodeep-file", "twodeep-foreign", "twodeep-link"]
    assert (foreign / "kept").exists()


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone: No such file or directory; set XDG_RUNTIME_DIR"):
        RunDirectory(tmp_path / "gone")
