"""A regular expression for any of many texts."""

import re
from collections.abc import Collection
from itertools import groupby


def any_of(texts: Collection[str]) -> str:
    """A pattern that matches the longest of these texts, which are not empty; none of none.

    Those that begin alike are tried together, letter by letter: a tokenizer may have a thousand control tokens, and most of what
    looks like the beginning of one is none.
    """
    return _longest(sorted(set(texts))) if texts else r"(?!)"


def _longest(texts: list[str]) -> str:
    """`texts`: sorted, different. The empty one among them ends the match where no other goes on."""
    ends = texts[0] == ""
    branches = []
    for letter, group in groupby(texts[ends:], key=lambda text: text[0]):
        branches.append(re.escape(letter) + _longest([text[1:] for text in group]))
    if not branches:
        return ""
    pattern = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
    return f"{pattern}?" if ends else pattern
