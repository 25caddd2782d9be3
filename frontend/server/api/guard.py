"""What stands before every route: the API key, the request id that clients follow a request by, and one spelling of paths."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.server.api.errors import ApiError
from frontend.server.visit import Visit, begin, is_name, new_name

_OPEN = frozenset(
    {"/health", "/ready", "/ping", "/version", "/metrics", "/openapi.json", "/docs"}
)  # all else needs a key where keys are set
_NO_KEY = ApiError(
    401,
    "no valid API key: send it as 'Authorization: Bearer KEY', or as 'x-api-key: KEY'",
    code="invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], *, shares_prefixes: bool = False) -> None:
        """`api_keys` empty: any key, or none, is good. `shares_prefixes`: a prefix that came with one key is found with another."""
        self._app = app
        self._keys = [(key.encode(), "" if shares_prefixes else _salt(key)) for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 itself, or lets the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = scope["path"].rstrip("/") or "/"  # clients add slashes to base addresses: /v1/models/ is /v1/models
        authorization = own_key = request_id = b""
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"x-api-key":  # Anthropic's clients
                own_key = b"Bearer " + value
            elif name == b"x-request-id":
                request_id = value
        name = request_id.decode() if is_name(request_id) else new_name()
        begin(Visit(name))
        send = _naming(send, name.encode())
        if self._keys and not self._is_open(scope):
            salt = self._salt_of(authorization or own_key)
            if salt is None:
                await _NO_KEY.response(scope["path"])(scope, receive, send)
                return
            scope.setdefault("state", {})["cache_salt"] = salt
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["path"] in _OPEN or scope["method"] == "OPTIONS"  # which browsers ask without a key, and which tells nothing

    def _salt_of(self, authorization: bytes) -> str | None:
        """What keeps the prefixes of this key's holder apart from those of others; None: it is no key of ours."""
        scheme, _, key = authorization.partition(b" ")
        # Each key is compared, so that the time tells nothing about which one is close.
        matches = [salt for known, salt in self._keys if hmac.compare_digest(key.strip(), known)]
        return matches[0] if matches and scheme.lower() == b"bearer" else None


def _salt(key: str) -> str:
    """The same in every frontend, and nothing that leads back to the key."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"prefix cache").hexdigest()


def _naming(send: Send, request_id: bytes) -> Send:
    async def name(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
        await send(message)

    return name
