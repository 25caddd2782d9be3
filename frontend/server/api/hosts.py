"""Which names of this engine are answered to.

A web page may have its own name resolve to an address of its reader's machine (DNS rebinding), and then counts as same-origin with
whatever listens there. Its name still stands in the Host header. So an engine on loopback answers to local names only.
"""

from collections.abc import Sequence

from frontend.server.api.errors import ApiError
from frontend.server.host_names import is_local, parse_host

_MOST_REMEMBERED = 256  # Host headers that were found good


class Hosts:
    """Those that an engine answers to."""

    def __init__(self, listening: str, allowed: Sequence[str] = ()) -> None:
        """`listening`: the address that it listens at. `allowed`: HOST, HOST:PORT, *.DOMAIN or *, besides local names and that."""
        hosts = [host for text in (listening, *allowed) if (host := parse_host(text)) is not None]
        self._allowed = frozenset(hosts)
        self._domains = tuple((name[1:], port) for name, port in hosts if name.startswith("*."))
        self._any = "*" in allowed or (not allowed and not is_local(listening))
        self._good: set[bytes] = set()  # headers that were looked at

    def check(self, header: bytes | None) -> None:
        """Raises ApiError 421 for a Host header that names another. None: there is none, so that no browser sent it."""
        if self._any or header is None or header in self._good:
            return
        host = parse_host(header.decode("latin-1"))
        if host is None or not self._answers_to(*host):
            text = header[:100].decode("latin-1")
            message = f"this engine does not answer to the host {text!r}: use a local one, or start it with --allowed-hosts {text}"
            raise ApiError(421, message, code="host_not_allowed")
        if len(self._good) < _MOST_REMEMBERED:
            self._good.add(header)

    def _answers_to(self, name: str, port: str) -> bool:
        return (
            is_local(name)
            or not self._allowed.isdisjoint({(name, ""), (name, port)})
            or any(name.endswith(domain) and wanted in ("", port) for domain, wanted in self._domains)
        )
