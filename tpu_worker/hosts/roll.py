"""Who came to the meeting of the ranks, as rank 0 knows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.host_messages import HostHello
from tpu_worker.hosts.facts import find_disagreement


@dataclass(frozen=True, slots=True)
class _Guest:
    incarnation: int
    connection: int
    facts: Mapping[str, str]


class Roll:
    """Hellos and ends of connections in, who is missing and what is wrong out."""

    def __init__(self, hosts: Sequence[str], facts: Mapping[str, str]) -> None:
        """`hosts`: in the order of their ranks. `facts`: those of rank 0."""
        self._hosts = hosts
        self._facts = facts
        self._here: dict[int, _Guest] = {}
        self._replaced: set[int] = set()  # incarnations
        self._wrong = ""  # the first that was

    def came(self, hello: HostHello, connection: int) -> None:
        """A rank said hello, perhaps again. A successor takes the place of its predecessor."""
        if not 1 <= hello.rank < len(self._hosts):
            self.object(f"a host came with --host-rank {hello.rank}, where ranks 1 to {len(self._hosts) - 1} are waited for")
            return
        if hello.incarnation in self._replaced:
            self.object(f"two processes say that they are rank {hello.rank}: every host needs a --host-rank of its own")
        before = self._here.get(hello.rank)
        if before is not None and before.incarnation != hello.incarnation:
            self._replaced.add(before.incarnation)
        self._here[hello.rank] = _Guest(hello.incarnation, connection, hello.facts)

    def left(self, connection: int) -> None:
        """A connection ended: who came over it has to come again."""
        self._here = {rank: guest for rank, guest in self._here.items() if guest.connection != connection}

    def missing(self) -> list[int]:
        """Ranks that are not here."""
        return [rank for rank in range(1, len(self._hosts)) if rank not in self._here]

    def describe(self, ranks: Sequence[int]) -> str:
        """Ranks for people: `rank 1 (host2), rank 3 (host4)`."""
        return ", ".join(f"rank {rank} ({self._hosts[rank]})" for rank in ranks)

    @property
    def wrong(self) -> str:
        """Why these cannot work together; empty: nothing says so by now."""
        facts = {rank: guest.facts for rank, guest in sorted(self._here.items())}
        return self._wrong or find_disagreement({0: self._facts, **facts}, self._hosts)

    @property
    def incarnations(self) -> tuple[int, ...]:
        """Of all that are here, by rank."""
        return tuple(guest.incarnation for _, guest in sorted(self._here.items()))

    @property
    def connections(self) -> dict[int, int]:
        """connection -> rank."""
        return {guest.connection: rank for rank, guest in self._here.items()}

    def object(self, text: str) -> None:
        """Something is wrong; the first counts."""
        self._wrong = self._wrong or text
