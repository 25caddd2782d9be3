"""What signals ask for."""

import os
import signal

import pytest

from frontend.launcher.signals import Signals


def test_signals_are_read_in_their_order(signals: Signals) -> None:
    assert signals.take() == []
    for signum in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), signum)
    assert signals.take() == ["reload", "stop", "stop"]
    assert signals.take() == []


def test_a_terminal_that_was_closed_wants_an_end(monkeypatch: pytest.MonkeyPatch, signals: Signals) -> None:
    monkeypatch.setattr(signals, "_terminal", True)
    monkeypatch.setattr("frontend.launcher.signals._terminal", lambda: False)
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.take() == ["stop"]
    monkeypatch.setattr("frontend.launcher.signals._terminal", lambda: True)
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.take() == ["reload"], "somebody sent it"
