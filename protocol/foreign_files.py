"""Names what a file is that is not the kind that it should be, from its first bytes."""

ENOUGH = 64  # bytes, from the beginning of the file

_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with `git lfs pull` or `hf download`"),
    (b"GGUF", "a GGUF file"),
    (b"FUGG", "a GGUF file with its bytes swapped"),
    ((b"lmgg", b"fmgg", b"tjgg", b"algg"), "a GGML file of the time before GGUF: convert the model again"),
    (b"PK\x03\x04", "a ZIP archive, perhaps PyTorch weights: safetensors or GGUF are wanted"),
    (b"\x80\x02", "a Python pickle, perhaps PyTorch weights: safetensors or GGUF are wanted"),
    ((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"), "compressed: unpack it first"),
    ((b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML", b"<?xml"), "a web page, perhaps the error page of a download"),
)


def recognise(head: bytes) -> str | None:
    """For people: what a file that begins with `head` is, with what to do about it; None where that is not known."""
    if not head:
        return "empty"
    for beginnings, kind in _KINDS:
        if head.startswith(beginnings):
            return kind
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":  # the length of a header, then the header
        return "a safetensors file: give its directory, with config.json beside it"
    return None if any(head) else "zeros, as a download leaves that did not finish"


def kind_of(head: bytes) -> str:
    """`recognise`, or how the file begins."""
    return recognise(head) or f"something else: it begins with {head[:8]!r}"
