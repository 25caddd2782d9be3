"""The process that downloads a model: `python -m frontend.launcher.fetch`, with what is wanted as JSON.

Its own process, so that the launcher's loop never waits for a network, and an end needs nothing but a kill: what has come lies in
the cache, and the next time the rest is asked for. Files go into `huggingface_hub`'s cache as that lays them out, so that either
finds what the other fetched. The library says who may have what; the bytes are taken here, since it begins anew with what was
interrupted.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import sys
import time
from http import HTTPStatus
from pathlib import Path

import msgspec

from frontend.launcher.repositories import Wanted, choose, folder_of
from protocol.clock import now
from protocol.errors import ModelError

_CHUNK = 1 << 20  # bytes
_ATTEMPTS = 5  # in a row without a byte, before the network counts as gone
_BETWEEN = 0.2  # seconds between two lines of progress


class Order(msgspec.Struct, frozen=True):
    """What to download, and where to."""

    wanted: Wanted
    cache: str


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line to the launcher: how many bytes are here of how many, and, once, the end."""

    done: int = 0
    total: int = 0
    path: str = ""
    error: str = ""


class RemoteFile(msgspec.Struct, frozen=True):
    """One file of a repository. `etag`: its SHA-256, or what git calls a blob, which is the SHA-1 of a header and the file."""

    name: str
    size: int
    etag: str


class Transfer:
    """Takes files into a repository's folder of the cache."""

    def __init__(self, folder: Path, files: list[RemoteFile]) -> None:
        self._blobs = folder / "blobs"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._done = sum(file.size if self._blob(file).exists() else self._part(file) for file in files)
        self._total = sum(file.size for file in files)
        self._next = 0.0
        missing, free = self._total - self._done, shutil.disk_usage(self._blobs).free
        if missing > free:
            raise ModelError(f"{self._blobs}: {missing:,} bytes are still to come, but the disk has room for {free:,}: make room")

    def take(self, file: RemoteFile, url: str, headers: dict[str, str]) -> Path:
        """Returns the blob, whole and with the right hash. Raises ModelError, and what the network raises."""
        from huggingface_hub import errors, get_session
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        blob = self._blob(file)
        with open(blob.with_name(f"{file.etag}.incomplete"), "ab") as part:
            fcntl.flock(part, fcntl.LOCK_EX)  # another launcher may be at it
            if blob.exists():
                return blob
            attempts = 0
            while (have := os.fstat(part.fileno()).st_size) < file.size:
                ranged = headers | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
                try:
                    with get_session().stream("GET", url, headers=ranged, follow_redirects=True, timeout=30.0) as answer:
                        if answer.is_error:
                            answer.read()  # the reason
                        hf_raise_for_status(answer)
                        if have and answer.status_code != HTTPStatus.PARTIAL_CONTENT:  # it gives all or nothing
                            part.truncate(0)
                            self._done -= have
                        for chunk in answer.iter_raw():
                            part.write(chunk)
                            part.flush()
                            attempts = 0
                            self._tell(len(chunk))
                except errors.HTTPError as error:  # type: ignore[attr-defined]  # of the library's library for HTTP
                    attempts += 1
                    if attempts >= _ATTEMPTS or isinstance(error, errors.HfHubHTTPError):
                        raise
                    time.sleep(2.0 * (attempts - 1))
                else:
                    attempts += os.fstat(part.fileno()).st_size < file.size
                    if attempts >= _ATTEMPTS:
                        raise ModelError(f"{file.name}: the hub sends {have} bytes of {file.size}: try again later")
            self._check(file, Path(part.name))
            os.rename(part.name, blob)
        return blob

    def _check(self, file: RemoteFile, part: Path) -> None:
        size = part.stat().st_size
        is_git = len(file.etag) == 40  # hexadecimal digits of SHA-1
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if is_git else hashlib.sha256()
        with open(part, "rb") as data:
            while chunk := data.read(_CHUNK):
                digest.update(chunk)
        if size != file.size or digest.hexdigest() != file.etag:
            part.unlink()
            raise ModelError(
                f"{file.name}: what came is not what the hub has ({size} bytes of {file.size}, or another hash): try again"
            )

    def _blob(self, file: RemoteFile) -> Path:
        return self._blobs / file.etag

    def _part(self, file: RemoteFile) -> int:
        part = self._blobs / f"{file.etag}.incomplete"
        return part.stat().st_size if part.exists() else 0

    def _tell(self, count: int) -> None:
        self._done += count
        if now() >= self._next:
            self._next = now() + _BETWEEN
            _say(Report(self._done, self._total))


def download(order: Order) -> Path:
    """The directory or GGUF file that was asked for. Raises ModelError in a sentence that names the way out."""
    from huggingface_hub import HfApi, constants, errors, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    wanted, folder = order.wanted, folder_of(Path(order.cache), order.wanted.repository)
    where = f"{wanted.repository} on {constants.ENDPOINT}"
    try:
        info = HfApi().model_info(wanted.repository, revision=wanted.revision, files_metadata=True, timeout=30.0)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        files = []
        for name in choose(siblings, wanted):
            sibling = siblings[name]
            etag = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
            if etag is None or sibling.size is None or not etag.isalnum() or ".." in name or info.sha is None:
                raise ModelError(f"{where}: the hub does not say what {name} is: try again later")
            files.append(RemoteFile(name, sibling.size, etag))
        transfer = Transfer(folder, files)
        snapshot = folder / "snapshots" / str(info.sha)
        for file in files:
            blob = transfer.take(file, hf_hub_url(wanted.repository, file.name, revision=info.sha), build_hf_headers())
            _link(snapshot / file.name, blob)
        ref = folder / "refs" / wanted.revision
        if wanted.revision != info.sha:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(str(info.sha))
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(
            f"{wanted.repository}: not in the cache {order.cache}, and HF_HUB_OFFLINE forbids to download it"
        ) from error
    except errors.GatedRepoError as error:
        raise ModelError(f"{where} is gated: accept its terms on its page, and set HF_TOKEN to a token of that account") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{where} has no --revision {wanted.revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{where}: no such repository, or a private one, which needs HF_TOKEN; nor is there a file or directory of that name"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = ": set HF_TOKEN to a token that may read it" if status in (401, 403) else ": try again later"
        raise ModelError(f"{where}: the hub answers with status {status}{hint}") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise ModelError(
            f"{where} cannot be reached ({error}): what has come is kept; start again when the network is back"
        ) from error
    except OSError as error:
        room = ": make room, and start again: what has come is kept" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ModelError(f"{folder}: {error.strerror or error}{room}") from error
    return snapshot / files[0].name if wanted.is_gguf else snapshot


def _link(name: Path, blob: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    if not name.exists():
        name.unlink(missing_ok=True)
        name.symlink_to(os.path.relpath(blob, name.parent))


def _say(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    """Entry point."""
    try:
        _say(Report(path=str(download(msgspec.json.decode(sys.argv[1], type=Order)))))
    except ModelError as error:
        _say(Report(error=str(error)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
