"""Finds stop strings in text that arrives in pieces, and holds back what may become one."""

from collections.abc import Sequence


class StopStrings:
    """Matches a request's stop strings against its growing text.

    The match that is complete first wins, and of those complete at the same character the longest: so the result does not depend on
    how the text was cut into pieces. One Knuth-Morris-Pratt automaton per string: the work per character is constant (amortised),
    whatever a client asks for.
    """

    __slots__ = ("_failure", "_first", "_held", "_include", "_matched", "_stops")

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        """`stops` are not empty, nor is one of them. `include_in_output`: the text ends behind the match, not before it."""
        self._stops = tuple(stops)
        self._include = include_in_output
        self._first = {text[0] for text in stops}
        self._failure: list[list[int]] = []  # built when a first character is met: most texts never need them
        self._matched = [0] * len(stops)  # per string: how many of its characters the text ends with
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Text that may be shown now, and the stop string that was found; after a match the rest of the text is dropped."""
        if not self._held and not any(character in text for character in self._first):
            return text, None
        if not self._failure:
            self._failure = [_failure(stop) for stop in self._stops]
        stops, matched, failures = self._stops, self._matched, self._failure
        for position, character in enumerate(text):
            found = -1
            for index, stop in enumerate(stops):
                state, failure = matched[index], failures[index]
                while state and stop[state] != character:
                    state = failure[state - 1]
                if stop[state] == character:
                    state += 1
                    if state == len(stop):
                        if found < 0 or state > len(stops[found]):
                            found = index
                        state = failure[state - 1]
                matched[index] = state
            if found >= 0:
                shown = self._held + text[: position + 1]
                self._held = ""
                return shown if self._include else shown[: len(shown) - len(stops[found])], stops[found]
        whole = self._held + text
        show = len(whole) - max(matched)
        self._held = whole[show:]
        return whole[:show], None

    def flush(self) -> str:
        """What was held back, once no text follows."""
        held, self._held = self._held, ""
        return held


def _failure(pattern: str) -> list[int]:
    """failure[i]: length of the longest proper prefix of the pattern that ends at its character i."""
    failure = [0] * len(pattern)
    length = 0
    for position in range(1, len(pattern)):
        while length and pattern[position] != pattern[length]:
            length = failure[length - 1]
        if pattern[position] == pattern[length]:
            length += 1
        failure[position] = length
    return failure
