"""Stop strings in text that comes in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from frontend.server.text.stops import StopPatterns, StopStrings

_TEXT = st.text(alphabet="ab#", max_size=30)
_STOPS = st.lists(st.text(alphabet="ab#", min_size=1, max_size=5), min_size=1, max_size=4)


def _matcher(stops: list[str], *, include: bool = False) -> StopStrings:
    return StopStrings(StopPatterns(stops, include_in_output=include))


def _run(stops: StopStrings, pieces: list[str]) -> tuple[list[str], str | None]:
    shown: list[str] = []
    for piece in pieces:
        text, found = stops.feed(piece)
        shown.append(text)
        if found is not None:
            return shown, found
    return [*shown, stops.flush()], None


def _expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The obvious way: the first place where a stop string ends, and the longest that ends there."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return (text[:end] if include else text[: end - len(longest)]), longest
    return text, None


@given(_TEXT, _STOPS, st.booleans(), st.data())
def test_any_cut_of_the_text_gives_the_obvious_result(text: str, stops: list[str], include: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown, found = _run(_matcher(stops, include=include), pieces)
    assert ("".join(shown), found) == _expected(text, stops, include)


@given(_TEXT, _STOPS)
def test_nothing_shown_is_part_of_a_stop_string_and_nothing_else_is_held(text: str, stops: list[str]) -> None:
    matcher = _matcher(stops)
    shown = ""
    for position, character in enumerate(text):
        piece, found = matcher.feed(character)
        shown += piece
        if found is not None:
            break
        held = text[len(shown) : position + 1]
        assert shown + held == text[: position + 1]
        beginnings = {stop[:size] for stop in stops for size in range(1, len(stop))}
        assert not held or held in beginnings
        assert not any(text[start : position + 1] in beginnings for start in range(len(shown)))


def test_text_without_a_first_character_passes_at_once() -> None:
    assert _matcher(["###", "\nUser:"]).feed("plain words") == ("plain words", None)


def test_a_beginning_that_becomes_nothing_is_shown_late_and_whole() -> None:
    stops = _matcher(["###"])
    assert stops.feed("one ##") == ("one ", None)
    assert stops.feed(" two") == ("## two", None)


def test_outputs_of_a_request_share_their_patterns() -> None:
    patterns = StopPatterns(["aab"])
    first, second = StopStrings(patterns), StopStrings(patterns)
    assert first.feed("xaa") == ("x", None)
    automata = patterns.failures
    assert second.feed("ab") == ("ab", None)
    assert first.feed("b") == ("", "aab")
    assert patterns.failures is automata


def test_the_text_behind_a_stop_string_is_dropped() -> None:
    assert _matcher(["end"]).feed("the end of it") == ("the ", "end")
    assert _matcher(["end"], include=True).feed("the end of it") == ("the end", "end")


def test_a_long_repetitive_stop_string_costs_linear_time() -> None:
    stops = _matcher(["a" * 1000 + "b", "a" * 999 + "c"])
    shown = "".join(stops.feed("a")[0] for _ in range(20_000)) + stops.flush()
    assert shown == "a" * 20_000
