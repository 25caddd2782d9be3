"""Errors in OpenAI's format."""

import re
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from frontend.errors import (
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    RequestLost,
    ShuttingDown,
)

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error", 405: "invalid_request_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_RESTART_SECONDS = 10  # what a successor takes to start


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


class ApiError(Exception):
    """An answer other than 200: its status, and the fields of OpenAI's error body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self, *, anthropic: bool = False) -> bytes:
        """The JSON body, which is also what a stream shows when it fails half-way. `anthropic`: in that format, not OpenAI's."""
        if anthropic:
            kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": self.message}})
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": fields})

    def response(self, path: str = "") -> Response:
        """The whole answer, in the format of the route at `path`."""
        body = self.body(anthropic=f"{path}/".startswith("/v1/messages/"))
        return Response(body, self.status, self.headers, media_type="application/json")


# Named one by one: what is left, `Exception`, is a fault of ours, which the server also logs.
EXPECTED = (
    ApiError,
    ClientDisconnect,
    ClientGone,
    DeadlineExceeded,
    EngineUnavailable,
    HTTPException,
    InvalidRequest,
    Overloaded,
    RequestLost,
)


def from_engine(error: Exception) -> ApiError:
    """What a client is told about an error of the engine. Unknown ones keep their text to the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequest):
        return ApiError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), code="overloaded", headers={"retry-after": str(max(1, round(error.retry_after)))})
    if isinstance(error, ShuttingDown):
        return ApiError(503, str(error), code="shutting_down", headers={"retry-after": str(_RESTART_SECONDS)})
    if isinstance(error, EngineUnavailable):
        return ApiError(503, str(error), code="engine_unavailable", headers={"retry-after": "1"})
    if isinstance(error, DeadlineExceeded):
        return ApiError(504, str(error), code="deadline_exceeded", headers={"x-should-retry": "false"})
    if isinstance(error, RequestLost):
        return ApiError(500, str(error), code="request_lost")
    if isinstance(error, ClientDisconnect | ClientGone):
        return ApiError(499, "the client closed the connection")  # for logs: nobody reads it
    return ApiError(500, "the engine failed on this request", code="internal_error")


def from_decoding(error: Exception) -> ApiError:
    """What a client is told about a body that is no JSON, or not of the shape that the route takes."""
    if isinstance(error, msgspec.ValidationError):
        text = str(error)
        match = _PATH.search(text)
        path = match[1] if match else ""
        reason = _PATH.sub("", text).replace("`", "").replace(" | ", " or ")
        return ApiError(400, f"{path or 'body'}: {reason[:1].lower()}{reason[1:]}", param=path or None)
    if isinstance(error, RecursionError):
        return ApiError(400, "the body is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return ApiError(400, "the body is not valid UTF-8")
    return ApiError(400, f"the body is not valid JSON: {error}")


async def show_error(request: Request, error: Exception) -> Response:
    """Exception handler for every error that a route raises."""
    method, path = request.method, request.scope["path"]  # the scope's: a URL would bring in the Host header
    if not isinstance(error, HTTPException):
        return from_engine(error).response(path)
    # The routing's own: no such path, or not with this method.
    if method == "OPTIONS" and path == "*":  # the server as a whole
        return Response(None, 204, {"allow": "GET, HEAD, OPTIONS, POST"})
    if error.status_code == 405:
        allowed = sorted({"OPTIONS", *(error.headers or {}).get("Allow", "").split(", ")} - {""})
        headers = {"allow": ", ".join(allowed)}
        if method == "OPTIONS":
            return Response(None, 204, headers)
        message = f"{method[:50]} {path[:200]}: not with this method, but with {headers['allow']}"
        return ApiError(405, message, code="method_not_allowed", headers=headers).response(path)
    code = "not_found" if error.status_code == 404 else None
    message = f"{method[:50]} {path[:200]}: {error.detail}"
    return ApiError(error.status_code, message, code=code, headers=error.headers).response(path)
