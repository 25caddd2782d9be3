"""Pieces of grammars in the Lark dialect of `llguidance`."""

import msgspec

ANY_TEXT = r"/(.|\n)*/"


def quoted(text: str) -> str:
    """A string."""
    return msgspec.json.encode(text).decode()


def expression(pattern: str) -> str:
    """A regular expression, in slashes."""
    return f"/{pattern.replace('/', chr(92) + '/')}/".replace("\n", "\\n")
