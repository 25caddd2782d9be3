"""Where the sockets of one engine lie: file names inside its private run directory."""

import os
import tempfile
from pathlib import Path

SCHEDULER_INBOX = "scheduler"  # frontends -> scheduler
GRAMMAR_INBOX = "grammar"  # scheduler -> grammar process
GRAMMAR_OUTBOX = "grammar-out"  # grammar process -> scheduler
GRAMMAR_QUESTIONS = "grammar-ask"  # frontends -> grammar process
LONGEST_SOCKET_PATH = 107  # bytes in sockaddr_un.sun_path, less the terminator
MAX_SESSIONS = 1000  # with names of their own


def session_dir(run_dir: str, session: int) -> str:
    """Where the sockets lie that go to and from the scheduler in its life number `session`.

    Each life has its own, so that what was sent in one cannot be read in another: nothing comes late, and nothing comes twice.
    """
    return f"{run_dir}/{session % MAX_SESSIONS}" if session else run_dir


def frontend_inbox(index: int) -> str:
    """File name of the socket that carries the scheduler's messages to frontend `index`."""
    return f"frontend{index}"


def grammar_answers(index: int) -> str:
    """File name of the socket that carries the grammar process's answers to frontend `index`."""
    return f"grammar{index}"


def worker_inbox(index: int) -> str:
    """File name of the socket that carries SchedulerOutput and StepMasks to worker `index`."""
    return f"worker{index}-in"


def worker_outbox(index: int) -> str:
    """File name of the socket that carries ModelRunnerOutput from worker `index`."""
    return f"worker{index}-out"


def ipc_address(run_dir: str, name: str) -> str:
    """ZeroMQ address of a socket of the run directory."""
    return f"ipc://{run_dir}/{name}"


def default_client_socket() -> Path:
    """Where the Python client looks, and `engine-launch` listens, when neither was told: $ENGINE_SOCKET, then the runtime
    directory of the user or, for a service, /run/engine."""
    if named := os.environ.get("ENGINE_SOCKET"):
        return Path(named.removeprefix("unix://"))
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "twodeep.sock"
    if os.access("/run/engine", os.W_OK):
        return Path("/run/engine/api.sock")
    return Path(tempfile.gettempdir()) / f"twodeep-{os.getuid()}.sock"
