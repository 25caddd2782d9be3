"""`engine-story`: how a request came to stand where it stands, and what it waits for; without one, the latest requests."""

import argparse
import sys
from collections.abc import Sequence

from frontend.client import Client, Story
from frontend.terminal.plain import printable
from protocol.errors import EngineError, ExitCode

_SECONDS = 1e-9  # of a nanosecond
_LONGEST_NAME = 40  # characters, in a list


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="engine-story", description=__doc__)
    parser.add_argument(
        "request",
        nargs="?",
        default="",
        metavar="REQUEST",
        help="the engine's number of it, or the id or x-request-id of its answer",
    )
    parser.add_argument("--ipc", metavar="PATH", help="the socket of the engine; default: as the Python client finds it")
    options = parser.parse_args(arguments)
    try:
        with Client(options.ipc, reconnect=0) as client:
            stories = client.story(options.request)
    except EngineError as error:
        print(f"engine-story: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    if not stories:
        wanted = f"no request is known as {printable(options.request)}: it never came, or that was too long ago"
        print(f"engine-story: {wanted if options.request else 'no request has come yet'}", file=sys.stderr)
        return ExitCode.CRASHED
    try:
        print("\n\n".join(map(tell, stories)) if options.request else "\n".join(map(summary, stories)))
    except BrokenPipeError:
        sys.stderr.close()  # whoever read it has enough; nothing is to be said of that at the end either
    return ExitCode.OK


def tell(story: Story) -> str:
    """A story in lines: when, since the request arrived; what it became; why."""
    began = story.moves[0].at_ns
    name = f", {printable(story.name)}" if story.name else ""
    lines = [f"request {story.request_id}{name}"]
    if story.moves[0].before != "new":
        lines.append("  what was before is forgotten")
    for move in story.moves:
        lines.append(f"  {(move.at_ns - began) * _SECONDS:9.3f} s  {move.after:<11}{printable(move.cause)}")
    since = f"{(story.now_ns - story.moves[-1].at_ns) * _SECONDS:.3f} s"
    lines.append(f"  ended {since} ago" if _has_ended(story) else f"  now, for {since}: {printable(story.now)}")
    return "\n".join(lines)


def summary(story: Story) -> str:
    """A story in one line: number, name, where it stands, for how long, why."""
    last = story.moves[-1]
    since = (story.now_ns - last.at_ns) * _SECONDS
    name = printable(story.name)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 1]}…"
    why = last.cause if _has_ended(story) else story.now
    return f"{story.request_id:>8}  {name or '-':<24}  {last.after:<11}{since:9.3f} s  {printable(why)}"


def _has_ended(story: Story) -> bool:
    return story.moves[-1].after == "finished"


if __name__ == "__main__":
    sys.exit(main())
