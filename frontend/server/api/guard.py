"""What stands before every route: the host, the origin, the API key, and one spelling of paths."""

import hashlib
import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.server.access import in_log, log_visit
from frontend.server.api.errors import ApiError
from frontend.server.api.hosts import Hosts
from frontend.server.api.origins import HeaderList, Origins
from frontend.server.spans import Spans
from frontend.server.visit import Visit, begin, new_name

# All else needs a key where keys are set.
_OPEN = frozenset({"/health", "/ready", "/ping", "/version", "/metrics", "/openapi.json", "/docs"})
_TRACE = frozenset({b"traceparent", b"tracestate"})
_NO_KEY = ApiError(
    401,
    "no valid API key: send it as 'Authorization: Bearer KEY', or as 'x-api-key: KEY'",
    code="invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)


class ApiKeys:
    """The keys that are good by now."""

    def __init__(self, keys: Sequence[str] = (), *, shares_prefixes: bool = False) -> None:
        """`keys` empty: any key, or none, is good. `shares_prefixes`: a prefix that came with one key is found with another."""
        self._shares_prefixes = shares_prefixes
        self.set(keys)

    def set(self, keys: Sequence[str]) -> None:
        """These are good from now on, and no others."""
        self._keys = [(key.encode(), "" if self._shares_prefixes else _salt(key)) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def salt_of(self, authorization: bytes) -> str:
        """What keeps the prefixes of this key's holder apart from those of others. Raises ApiError for a key that is none."""
        scheme, _, key = authorization.partition(b" ")
        # Each key is compared, so that the time tells nothing about which one is close.
        matches = [salt for known, salt in self._keys if hmac.compare_digest(key.strip(), known)]
        if not matches or scheme.lower() != b"bearer":
            raise _NO_KEY
        return matches[0]


class Guard:
    """ASGI middleware, around all others: whatever the application answers goes through here."""

    def __init__(
        self,
        app: ASGIApp,
        api_keys: ApiKeys | None = None,
        *,
        open_paths: Collection[str] = (),
        hosts: Hosts | None = None,
        origins: Origins | None = None,
        spans: Spans | None = None,
    ) -> None:
        """None: no keys are needed (`api_keys`), any host will do (`hosts`), no pages but its own (`origins`); no `spans`.
        `open_paths`: what needs no key besides.
        """
        self._app = app
        self._open = _OPEN.union(open_paths)
        self._keys = ApiKeys() if api_keys is None else api_keys
        self._hosts = hosts or Hosts("0.0.0.0")
        self._origins = origins or Origins(())
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers itself, or lets the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["path"] = scope["path"].rstrip("/") or "/"  # clients add slashes to base addresses: /v1/models/ is /v1/models
        client, path = scope.get("client"), scope["path"]
        visit = Visit(scope.get("request_id") or new_name(), client[0] if client else "", f"{scope['method']} {in_log(path)}")
        begin(visit)
        authorization = own_key = origin = b""
        host: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"x-api-key":  # Anthropic's clients
                own_key = b"Bearer " + value
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name in _TRACE and self._spans is not None:
                visit.trace[name.decode()] = value.decode("latin-1")
        answer = self._app
        try:
            self._hosts.check(host)
            if self._origins:
                send = _adding(send, self._origins.headers(origin))
                if origin and scope["method"] == "OPTIONS" and "access-control-request-method" in (headers := Headers(scope=scope)):
                    answer = self._origins.preflight(headers)
            if self._keys and not self._is_open(scope):
                scope.setdefault("state", {})["cache_salt"] = self._keys.salt_of(authorization or own_key)
        except ApiError as error:
            answer = error.response(scope["path"])
        statuses: list[int] = []
        try:
            await answer(scope, receive, _noting(send, statuses))
        finally:
            status = statuses[0] if statuses else None
            log_visit(visit, status, quiet=path in self._open or path.startswith("/ui/"))
            if self._spans is not None:
                self._spans.record(visit, status)

    def _is_open(self, scope: Scope) -> bool:
        # OPTIONS: which browsers ask without a key, and which tells nothing.
        return scope["path"] in self._open or scope["method"] == "OPTIONS"


def _salt(key: str) -> str:
    """The same in every frontend, and nothing that leads back to the key."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"prefix cache").hexdigest()


def _noting(send: Send, statuses: list[int]) -> Send:
    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        await send(message)

    return note


def _adding(send: Send, headers: HeaderList) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return add
