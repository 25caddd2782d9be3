"""Whose turn it is: clients that have much waiting take turns with those that have little.

A form of start-time fair queuing (Goyal, Vin, Cheng 1996) with the rounds of deficit round robin (Shreedhar, Varghese 1995): in a
round each client gets as many tokens as any other. A request is given its round when it comes, and keeps it. Requests of one client
run in the order in which they came; those of clients that have one request each do so too.
"""

QUANTUM = 4096  # tokens of a client in a round: a large request or several small ones, soon computed, so that rounds are short
_MOST_LINES = 20_000  # remembered before those that have had their turn are looked for: above as many requests as an engine takes


class Rounds:
    """Gives requests their rounds."""

    def __init__(self) -> None:
        self.current = 0  # that of the latest request that was admitted for the first time
        self._asked: dict[int, int] = {}  # line -> tokens of all rounds up to where its requests reach
        self._most = _MOST_LINES

    def place(self, line: int, tokens: int) -> int:
        """The round of a request that comes now. `line`: of its client; 0: it has no other request. `tokens`: that it may take."""
        begin = (self.current + 1) * QUANTUM  # not the one that runs, whose end others wait for
        if line:
            begin = max(begin, self._asked.get(line, 0))
            self._asked[line] = begin + tokens
            if len(self._asked) > self._most:
                self._forget()
        return begin // QUANTUM

    def begin(self, number: int) -> None:
        """A request of this round is admitted."""
        self.current = max(self.current, number)

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._asked)

    def _forget(self) -> None:
        """Those who stand no worse than if they had never come."""
        reached = (self.current + 1) * QUANTUM
        self._asked = {line: asked for line, asked in self._asked.items() if asked > reached}
        self._most = max(_MOST_LINES, 2 * len(self._asked))
