import signal
from collections.abc import Iterator

import pytest

from frontend.launcher.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    """The launcher's signals, in this process; how it took them before comes back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    made = Signals()
    yield made
    made.end()
    for signum, handler in before.items():
        signal.signal(signum, handler)
