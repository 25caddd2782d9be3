"""Finds stop strings in text that arrives in pieces, and holds back what may become one."""

from collections.abc import Sequence


class StopPatterns:
    """The stop strings of a request, ready to be looked for in each of its outputs: one Knuth-Morris-Pratt automaton per string."""

    __slots__ = ("_failures", "first_characters", "include_in_output", "texts")

    def __init__(self, texts: Sequence[str], *, include_in_output: bool = False) -> None:
        """`texts` are not empty, nor is one of them. `include_in_output`: an output ends behind the match, not before it."""
        self.texts = tuple(texts)
        self.include_in_output = include_in_output
        self.first_characters = {text[0] for text in texts}
        self._failures: list[list[int]] = []

    @property
    def failures(self) -> list[list[int]]:
        """The automata, built when a first character is met: most texts never need them."""
        if not self._failures:
            self._failures = [_failure(text) for text in self.texts]
        return self._failures


class StopStrings:
    """Matches a request's stop strings against the growing text of one output.

    The match that is complete first wins, and of those complete at the same character the longest: so the result does not depend on
    how the text was cut into pieces. The work per character and string is constant (amortised), whatever a client asks for.
    """

    __slots__ = ("_held", "_matched", "_patterns")

    def __init__(self, patterns: StopPatterns) -> None:
        self._patterns = patterns
        self._matched = [0] * len(patterns.texts)  # per string: how many of its characters the text ends with
        self._held = ""

    def feed(self, text: str, *, counts: bool = True) -> tuple[str, str | None]:
        """Text that may be shown now, and the stop string that was found; after a match the rest of the text is dropped. `counts`:
        whether one that ends here does; one that begins here may end later."""
        patterns, matched = self._patterns, self._matched
        if not self._held and not any(character in text for character in patterns.first_characters):
            return text, None
        stops, failures = patterns.texts, patterns.failures
        for position, character in enumerate(text):
            found = -1
            for index, stop in enumerate(stops):
                state, failure = matched[index], failures[index]
                while state and stop[state] != character:
                    state = failure[state - 1]
                if stop[state] == character:
                    state += 1
                    if state == len(stop):
                        if counts and (found < 0 or state > len(stops[found])):
                            found = index
                        state = failure[state - 1]
                matched[index] = state
            if found >= 0:
                shown = self._held + text[: position + 1]
                self._held = ""
                return shown if patterns.include_in_output else shown[: len(shown) - len(stops[found])], stops[found]
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
