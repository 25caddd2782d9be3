"""Parsers of single flag values. Each raises ValueError that says what would be right."""

import math
import re
from collections.abc import Callable
from typing import TypeAlias

from frontend.server.host_names import parse_host

Parser: TypeAlias = Callable[[str], object]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_LARGEST_SIZE = 1 << 60  # bytes
_LONGEST_TEXT = 4096  # characters: as long as a path can be
_LONGEST_SHOWN = 200  # characters of a bad value that are repeated
_LONGEST_NAME = 300  # characters of an origin or host: a domain has at most 253
_KEY = re.compile(r"[!-~]{1,4096}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)


def integer(low: int, high: int) -> Parser:
    """A whole number from `low` to `high`, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high} is wanted")
        return value

    return parse


def power_of_two(low: int, high: int) -> Parser:
    """A power of two from `low` to `high`, both included."""

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else 0
        if not low <= value <= high or value & (value - 1):
            raise ValueError(f"a power of two from {low} to {high} is wanted")
        return value

    return parse


def number(low: float, high: float, unit: str) -> Parser:
    """A finite number from `low` to `high`, both included."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for NaN too
            raise ValueError(f"a number of {unit} from {low:g} to {high:g} is wanted")
        return value

    return parse


def size(text: str) -> int:
    """Bytes: 536870912, 512M (10^6), 512MiB or 512Mi (2^20)."""
    match = _SIZE.fullmatch(text.strip())
    value = float(match[1]) * _UNITS[(match[2] or "").upper()] if match is not None else 0
    if not 1 <= value <= _LARGEST_SIZE:
        raise ValueError("a size in bytes is wanted, such as 512M or 2GiB")
    return int(value)


def choice(*allowed: str) -> Parser:
    """One of the words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"one of {', '.join(allowed)} is wanted")
        return text

    return parse


def api_key(text: str) -> str:
    """An API key: visible ASCII, since it travels in a header."""
    if not _KEY.fullmatch(text):
        raise ValueError("a key of visible ASCII characters is wanted")
    return text


def origin(text: str) -> str:
    """An origin as browsers write it, or *."""
    value = text.strip().rstrip("/").lower()
    if value != "*" and not (_ORIGIN.fullmatch(value) and len(value) <= _LONGEST_NAME):
        raise ValueError("an origin is wanted, such as https://chat.example.com or http://localhost:3000, or * for all")
    return value


def host(text: str) -> str:
    """A Host header: a name or address, with or without a port; *.DOMAIN; or *."""
    value = text.strip().lower()
    if value != "*" and (parse_host(value.removeprefix("*.")) is None or len(value) > _LONGEST_NAME):
        raise ValueError("a host is wanted, such as engine.example.com, 10.0.0.5:8000, [::1] or *.example.com, or * for all")
    return value


def host_names(text: str) -> str:
    """Names or addresses of hosts, with commas between them."""
    for name in text.split(","):
        if not _HOST_NAME.fullmatch(name.strip()) or len(name) > _LONGEST_NAME:
            raise ValueError("names or addresses of hosts are wanted, with commas between them, such as host1,host2")
    return text


def text(value: str) -> str:
    """Any text in UTF-8 that is not empty."""
    if not value.strip() or "\0" in value or len(value) > _LONGEST_TEXT:
        raise ValueError(f"a text of 1 to {_LONGEST_TEXT} characters is wanted")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # bytes of the command line that are none reach Python as surrogates
            raise ValueError("a text in UTF-8 is wanted") from error
    return value


def shown(value: str) -> str:
    """For errors: a value that somebody gave, shortened where nobody would read it."""
    return value if len(value) <= _LONGEST_SHOWN else f"{value[: _LONGEST_SHOWN - 1]}…"
