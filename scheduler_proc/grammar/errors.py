"""Why a grammar is refused."""

_LONGEST = 600  # characters: texts of the library quote the grammar around the place


class GrammarError(Exception):
    """The grammar says something that is wrong or not supported; the text is for its author."""

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= _LONGEST else text[:_LONGEST] + "…")
