"""`engine-top`: what a running engine does, live; without a terminal, once."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from frontend.client import AsyncClient
from frontend.rates import rates
from frontend.terminal.plain import printable
from frontend.terminal.top.picture import picture
from protocol.errors import EngineError, ExitCode

_SHORTEST, _LONGEST = 0.1, 60.0  # seconds between two pictures: an engine is looked at, not kept busy


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="engine-top", description=__doc__)
    parser.add_argument("--ipc", metavar="PATH", help="the socket of the engine; default: as the Python client finds it")
    parser.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two pictures (1)")
    parser.add_argument("--once", action="store_true", help="show one picture, and leave")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        asyncio.run(_show(options.ipc, options.interval, console, live=console.is_terminal and not options.once))
    except EngineError as error:
        print(f"engine-top: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        pass  # the way to leave
    return ExitCode.OK


async def _show(socket: str | None, interval: float, console: Console, *, live: bool) -> None:
    async with AsyncClient(socket) as client:
        before = await client.stats()
        with Live(console=console, screen=live, auto_refresh=False, transient=True) as display:
            while True:
                await asyncio.sleep(interval)
                after = await client.stats()
                shown = picture(await client.health(), rates(before, after), after.counters, await client.story())
                if not live:
                    break
                display.update(shown, refresh=True)
                before = after
        console.print(shown)


def _seconds(text: str) -> float:
    value = float(text)
    if not _SHORTEST <= value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"a number of seconds from {_SHORTEST:g} to {_LONGEST:g} is wanted")
    return value


if __name__ == "__main__":
    sys.exit(main())
