"""Directories that others could put code into are refused, however they could."""

import os
from pathlib import Path

import pytest

from protocol.cache_directory import NotPrivateError, default_cache, private_directory, temporary_cache, unmapped_root

STRANGER = 4242  # a user id that is neither root's nor anybody's here


def as_stranger(path: Path) -> bool:
    """Whether the path could be made to look as another user's: only root can."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return os.geteuid() == 0


def test_missing_steps_are_made_for_this_user_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        assert private_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    finally:
        os.umask(mask)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b")] == [0o700] * 2
    (tmp_path / "a" / "b" / "kept").touch(0o600)
    assert private_directory(tmp_path / "a" / "b") == tmp_path / "a" / "b"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720, 0o702, 0o2775])
def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(NotPrivateError, match=f"write to {cache} "):
        private_directory(cache)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_so_is_one_below_such_a_directory(tmp_path: Path, mode: int) -> None:
    (tmp_path / "open" / "mine").mkdir(parents=True)
    (tmp_path / "open").chmod(mode)
    for name in ("mine", "missing"):
        with pytest.raises(NotPrivateError, match="open "):
            private_directory(tmp_path / "open" / name)
    assert not (tmp_path / "open" / "missing").exists()


def test_below_a_directory_for_all_whose_entries_are_safe_it_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert private_directory(tmp_path / "cache") == tmp_path / "cache"
    if as_stranger(tmp_path / "cache"):  # who came first
        with pytest.raises(NotPrivateError, match=f"another user .uid {STRANGER}"):
            private_directory(tmp_path / "cache")


@pytest.mark.parametrize("step", ["a", "a/b", "a/b/planted.so", "a/b/c/planted.so"])
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, step: str) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    for planted in ("planted.so", "c/planted.so"):
        (tmp_path / "a" / "b" / planted).touch(0o644)
    assert private_directory(tmp_path / "a" / "b")
    if as_stranger(tmp_path / step):
        with pytest.raises(NotPrivateError, match=f"{step} belongs to another user"):
            private_directory(tmp_path / "a" / "b")


def test_a_file_within_that_others_may_change_is_refused_where_they_can_get_at_it(tmp_path: Path) -> None:
    cache, file = tmp_path / "cache", tmp_path / "cache" / "entry"
    cache.mkdir()
    file.touch()
    file.chmod(0o664)
    cache.chmod(0o755)
    with pytest.raises(NotPrivateError, match="entry: remove it"):
        private_directory(cache)
    cache.chmod(0o700)
    assert private_directory(cache) == cache


def test_links_of_this_user_are_followed_wherever_they_lead(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for index, target in enumerate([real, Path("real"), Path("../" + tmp_path.name + "/real"), tmp_path / "missing"]):
        link = tmp_path / f"link{index}"
        link.symlink_to(target)
        assert private_directory(link / "cache") == tmp_path / target.name / "cache"
    (tmp_path / "open").mkdir(0o700)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "into").symlink_to(tmp_path / "open")
    with pytest.raises(NotPrivateError, match="open "):
        private_directory(tmp_path / "into" / "cache")


def test_links_of_others_and_links_without_end_are_not(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(NotPrivateError, match="too many"):
        private_directory(tmp_path / "loop")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    if as_stranger(tmp_path / "link"):
        with pytest.raises(NotPrivateError, match="link of another user"):
            private_directory(tmp_path / "link")


@pytest.mark.parametrize("path", ["file", "file/cache"])
def test_a_file_in_its_place_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is no directory"):
        private_directory(tmp_path / path)


def test_where_root_has_no_id_its_directories_are_those_of_the_id_that_stands_for_all_such() -> None:
    assert unmapped_root("         0          0 4294967295\n", "65534\n") == frozenset()
    assert unmapped_root("0 1000 1\n1 100000 65536\n", "65534") == frozenset()
    assert unmapped_root("1000 1000 1\n", "65534") == frozenset({65534})


def test_the_default_is_the_services_then_the_users(tmp_path: Path) -> None:
    home = Path.home() / ".cache" / "twodeep"
    assert default_cache({"CACHE_DIRECTORY": "/v:/other", "XDG_CACHE_HOME": "/c"}) == Path("/v/twodeep")
    assert default_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/twodeep")
    assert default_cache({"XDG_CACHE_HOME": "not/absolute"}) == default_cache({}) == home
    assert str(os.geteuid()) in temporary_cache().name
