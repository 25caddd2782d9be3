"""A process that renders: `python -m frontend.server.text.rendering FD`, started by the frontend.

It has no files, no secrets and nothing to lose. Time and memory are the kernel's to bound, since a template can stay within one
call for as long as it likes: the timer's signal has its default effect, which is death, and memory that is not there is refused.
"""

import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path

from frontend.errors import InvalidRequest
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.rendering.messages import (
    LENGTH_BYTES,
    QUESTIONS,
    Answer,
    Failed,
    Load,
    Loaded,
    OutOfMemory,
    Refused,
    Rendered,
    frame,
)
from protocol.errors import ModelError, describe
from protocol.process import name_process

_BOOT_SECONDS = 5.0  # of the processor, until the first message is read


def main() -> None:
    """Answers one question after the other until the frontend hangs up."""
    _limit_time(_BOOT_SECONDS)
    name_process("chat-template")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the whole group; the frontend says when to end
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(what, (0, 0))
    connection = socket.socket(fileno=int(sys.argv[1]))
    template, seconds = None, _BOOT_SECONDS
    while data := _read_frame(connection):
        _limit_time(seconds)
        answer: Answer
        try:
            question = QUESTIONS.decode(data)
            if isinstance(question, Load):
                seconds = question.processor_seconds
                _limit_time(seconds)
                _limit_memory(question.memory)
                template, answer = _load(question)
            else:
                assert template is not None, "Load comes first"
                answer = Rendered(template.render(question.messages, **question.options))
            data = frame(answer)
        except InvalidRequest as error:
            data = frame(Refused(describe(error), error.param, error.code))
        except UnicodeEncodeError:
            data = frame(
                Refused("the model's chat template writes lone surrogates, which no encoding of Unicode allows", "messages")
            )
        except MemoryError:
            data = frame(OutOfMemory())
        except Exception:  # noqa: BLE001 - a fault of ours: the frontend learns that it is one, and goes on
            traceback.print_exc()
            data = frame(Failed())
        _limit_time(0.0)
        connection.sendall(data)


def _load(question: Load) -> tuple[ChatTemplate | None, Loaded]:
    try:
        template = ChatTemplate(question.source, question.special_tokens)
        return template, Loaded(takes_tools=template.takes_tools)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the compiler may raise anything on a template that is odd enough
        return None, Loaded(
            describe(error) if isinstance(error, ModelError) else f"the model's chat template does not compile: {error!r}"
        )


def _limit_time(seconds: float) -> None:
    """Of the processor, from now on; 0: while a question is waited for."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _read_frame(connection: socket.socket) -> bytes:
    """Empty when the frontend has hung up."""
    head = _read(connection, LENGTH_BYTES)
    return _read(connection, int.from_bytes(head, "little")) if head else b""


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    with memoryview(data) as view:
        got = 0
        while got < size:
            count = connection.recv_into(view[got:])
            if not count:
                return b""
            got += count
    return bytes(data)


if __name__ == "__main__":
    main()
    os._exit(0)
