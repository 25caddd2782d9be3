"""What a model may have a terminal show."""

import unicodedata

from frontend.terminal.plain import printable


def test_a_terminal_is_told_nothing() -> None:
    assert printable("a\x1b]52;c;aGk=\x07\x9b2Jb\x7f") == "a␛]52;c;aGk=␇\N{REPLACEMENT CHARACTER}2Jb␡"
    everything = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x30000))))
    left = {character for character in printable(everything) if unicodedata.category(character) == "Cc"}
    assert left == {"\t", "\n"}


def test_text_stays_as_it_is() -> None:
    text = "Grüße,\n\t日本語 👩‍🚀 עברית ¡½!"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"
