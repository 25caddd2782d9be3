"""A process that compiles for chips that are not there: `python -m tpu_worker.aot`, started by `engine-aot`.

A line of JSON each: `protocol.aot_messages.Order` on standard input, `Answer` on standard output. It ends with its input.
"""

import os
import sys

import msgspec

from protocol.aot_messages import Answer, Compile, Compiled, Job, Refused
from protocol.errors import EngineError
from protocol.process import die_with_parent, name_process
from tpu_worker.aot import schedule
from tpu_worker.aot.topology import prepare_environment


def main() -> int:
    """Serves one job. Returns the exit code."""
    die_with_parent()
    name_process("aot compiler")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(message: Answer) -> None:
        answers.write(msgspec.json.encode(message) + b"\n")

    orders = msgspec.json.Decoder(Job | Compile)
    job = orders.decode(sys.stdin.buffer.readline())
    if not isinstance(job, Job):
        raise TypeError("the first order is a job")
    prepare_environment(os.environ, schedule.flags(job.scratch))
    from tpu_worker.aot.workshop import Workshop  # brings JAX, which reads the environment set before this line

    try:
        workshop = Workshop(job)
    except EngineError as error:
        answer(Refused(text=str(error), exit_code=error.exit_code))
        return error.exit_code
    answer(workshop.drawn())
    for line in sys.stdin.buffer:
        order = orders.decode(line)
        if not isinstance(order, Compile):
            raise TypeError("a process serves one job")
        answer(Compiled(program=workshop.compile(order.name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
