"""The start, as it is shown where there is no terminal."""

import io

from frontend.launcher.events import SCHEDULER, Child
from frontend.launcher.progress import PlainDisplay
from protocol.messages import Progress

WORKER = Child("worker", 0)


def test_each_phase_is_one_line_whatever_goes_on_beside_it() -> None:
    stream = io.StringIO()
    display = PlainDisplay(lambda line: print(line, file=stream))
    display.update(SCHEDULER, Progress("waiting", 0, 1))
    for done in range(3):  # one worker that compiles while it loads
        display.update(WORKER, Progress("loading weights", done, 30))
        display.update(WORKER, Progress("compiling", done, 3))
    display.update(SCHEDULER, Progress("waiting", 1, 1))
    display.finish(WORKER)
    assert stream.getvalue() == ("scheduler: waiting\nworker 0: loading weights (30)\nworker 0: compiling (3)\nworker 0: ready\n")
