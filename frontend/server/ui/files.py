"""The files of the page, as they are sent: read once, with what browsers are told of each."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PAGE = "index.html"
_FOLDER = "/ui/"

# The page loads its own files and asks its own engine, and nothing else: nothing inline runs, no text becomes markup (Trusted
# Types), nobody frames it.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for each time, and answered with 304: another version of the engine brings other files
}


class _File:
    """One file. `tag`: its entity tag, which follows from the content."""

    def __init__(self, content: bytes, kind: str) -> None:
        self.content = content
        self.kind = kind
        self.tag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'


class Files:
    """All of them, by their paths. None holds anything of the engine but whether it wants a key."""

    def __init__(self, *, wants_key: Callable[[], bool]) -> None:
        self._wants_key = wants_key
        self._files: dict[str, _File] = {}
        for path in sorted(Path(__file__).parent.iterdir()):
            if (kind := _TYPES.get(path.suffix)) is not None:
                self._files["/" if path.name == _PAGE else _FOLDER + path.name] = _File(path.read_bytes(), kind)
        page = self._files["/"]
        self._asking = _File(page.content.replace(b'data-key="none"', b'data-key="wanted"'), page.kind)

    @property
    def paths(self) -> frozenset[str]:
        """Where they are found."""
        return frozenset(self._files)

    async def show(self, request: Request) -> Response:
        """GET of one of the paths."""
        path = request.scope["path"]
        file = self._asking if path == "/" and self._wants_key() else self._files[path]
        headers = _HEADERS | {"etag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(None, 304, headers)
        return Response(file.content, headers=headers, media_type=file.kind)
