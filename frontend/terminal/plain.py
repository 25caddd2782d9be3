"""Text that others wrote, made fit for a terminal."""

# A terminal obeys control characters: it would move, hide or paste what is written. All are made visible but tab and end of line.
_VISIBLE: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"},
    0x7F: "␡",
    **dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}"),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}"),  # turn the direction of lines
}
_VISIBLE[ord("\r")] = ""  # of "\r\n"; alone it would write over the line


def printable(text: str) -> str:
    """The text with nothing in it that a terminal obeys. Works piece by piece: each character is looked at alone."""
    return text.translate(_VISIBLE)
