"""CORS: which web pages may read the answers.

Without it a page of another origin can send nothing that a route takes, since bodies are JSON, and read nothing. An API key travels
in a header that the page itself sets, so no credentials of the browser's own are needed; `credentials` is for a proxy that asks for
cookies.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response

from frontend.server.api.errors import ApiError

_EXPOSED = b"x-request-id, x-max-tokens-clipped, retry-after"
_METHODS = "GET, HEAD, OPTIONS, POST"
_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z, -]*")  # of headers, with commas between
_MAX_AGE = "600"  # seconds for which a browser need not ask again: Chromium's default is 5, its limit 7200

HeaderList = list[tuple[bytes, bytes]]


class Origins:
    """Those that are allowed."""

    def __init__(self, allowed: Sequence[str], *, credentials: bool = False) -> None:
        """`allowed`: origins as browsers write them, or * for all. `credentials`: pages may send cookies; never together with *."""
        self._any = "*" in allowed
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._credentials = credentials and not self._any

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def headers(self, origin: bytes) -> HeaderList:
        """What an answer to a page of this origin says; an empty one: to anybody else."""
        if self._any:  # not the origin itself, with which browsers would send credentials of their own
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        if origin not in self._allowed:
            return [(b"vary", b"Origin")]
        credentials = [(b"access-control-allow-credentials", b"true")] if self._credentials else []
        return [
            (b"access-control-allow-origin", origin),
            *credentials,
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"Origin"),
        ]

    def preflight(self, request: Headers) -> Response:
        """The answer to what a browser asks before a request; the caller adds `headers`. Raises ApiError 403 for a page that is not
        allowed."""
        origin = request.get("origin", "")
        if not self._any and origin.encode("latin-1") not in self._allowed:
            message = f"pages of {origin[:200]!r} may not use this engine: start it with --allowed-origins {origin[:200]}"
            raise ApiError(403, message, code="origin_not_allowed")
        asked = request.get("access-control-request-headers", "")
        fields = {"access-control-allow-methods": _METHODS, "access-control-max-age": _MAX_AGE}
        if asked and _NAMES.fullmatch(asked):  # named one by one: * does not cover Authorization
            fields["access-control-allow-headers"] = asked
        return Response(None, 204, fields | {"vary": "Access-Control-Request-Headers"})
