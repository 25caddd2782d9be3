"""systemd's environment, read as sd_notify(3) and sd_watchdog_enabled(3) say."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from frontend.launcher.notify import Notifier
from protocol.errors import ConfigError


def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000000"})
    notifier.ready("serving")
    assert notifier.watchdog_interval is None


@pytest.mark.parametrize("name", ["{tmp}/notify", "@twodeep-test-{pid}"])
def test_paths_and_abstract_names(tmp_path: Path, name: str) -> None:
    address = name.format(tmp=tmp_path, pid=os.getpid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        Notifier({"NOTIFY_SOCKET": address}).ready("serving m")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving m"


def test_what_a_busy_manager_has_no_room_for_is_said_again(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other, contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"STATUS=noise", str(tmp_path / "notify"))
        notifier.status("loading")
        notifier.ready("serving m")
        notifier.status("serving m, degraded")
        notifier.retry()
        assert manager.recv(100) == b"STATUS=noise"
        notifier.retry()
        while (said := manager.recv(100)) == b"STATUS=noise":
            pass
        assert said == b"STATUS=serving m, degraded\nREADY=1"
        notifier.retry()
        notifier.alive()
        assert manager.recv(100) == b"WATCHDOG=1", "nothing is said twice"


def test_a_manager_that_left_is_no_error(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "10000000"}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": str(2**64 - 2)}, 3600.0),
        ({}, None),
    ],
)
def test_the_watchdog_is_meant_for_this_process_or_not_at_all(environ: dict[str, str], interval: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/none"} | environ).watchdog_interval == interval


@pytest.mark.parametrize(
    "environ",
    [
        {"WATCHDOG_USEC": "1" + "0" * 23},
        {"WATCHDOG_USEC": "1" * 5000},
        {"WATCHDOG_USEC": str(2**64 - 1)},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "me"},
    ],
)
def test_a_watchdog_that_no_manager_asks_for_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"{list(environ)[-1]}=.*: a number from 1 to 18446744073709551614 is wanted"):
        Notifier({"NOTIFY_SOCKET": "/none"} | environ)
