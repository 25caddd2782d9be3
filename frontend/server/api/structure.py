"""How many arrays, objects and members a JSON text holds, without decoding it: each costs far more than its bytes."""

import numpy as np

_QUOTE = ord('"')
_COUNTED = b"[{:"


def parts(text: bytes) -> int:
    """Opening brackets, opening braces and colons outside strings. Right for JSON; some number for what is none.

    numpy works on all bytes at once and lets other threads run meanwhile.
    """
    if sum(map(text.count, (b"[", b"{", b":"))) == 0:
        return 0
    if b"\\" in text:  # what is left of quotes then begins or ends a string
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    characters = np.frombuffer(text, np.uint8)
    inside = np.bitwise_xor.accumulate((characters == _QUOTE).view(np.uint8)).view(np.bool_)
    found = np.zeros(len(text), np.bool_)
    for character in _COUNTED:
        found |= characters == character
    found &= ~inside
    return int(np.count_nonzero(found))
