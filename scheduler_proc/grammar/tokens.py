"""The tokenizer as the library sees it: a tree of the bytes of all tokens; and what is compiled for it."""

import re

import msgspec
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from protocol.codec import Int32Array
from protocol.params import Grammar
from protocol.vocabulary import Vocabulary
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.lark import quoted
from scheduler_proc.grammar.translate import explain, translate

# What one matcher may use. A mask takes 5 µs as a rule; the library's own limits stop what would take longer than some 20 ms. A
# state of the lexer is one to two kilobytes, and each request has its own.
_LIMITS = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)


class Tokens:
    """The tokens of one model."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        """`vocab_size`: of the model, whose embedding may be padded.

        A tokenizer that the library cannot read is no error here: nothing can be compiled for it, and why is said then. The same
        for a model without an end of sequence, whose outputs could not end where they are complete.
        """
        self.eos_ids = vocabulary.eos_ids
        self.vocab_size = vocab_size
        self.num_words = -(-vocab_size // 32)  # uint32 in a mask
        self._tokenizer: LLTokenizer | None = None
        self._refusal = "this model has no end-of-sequence token, so no structured output could end"
        self._control: dict[str, int] = {}
        if vocabulary.eos_ids:
            try:
                source, self._control = _with_control(vocabulary)
                self._tokenizer = LLTokenizer(source, n_vocab=vocab_size, eos_token=list(vocabulary.eos_ids))
            except ValueError as error:
                self._refusal = f"structured output is not possible with this model's tokenizer: {error}"
        self._names = re.compile("|".join(map(re.escape, sorted(self._control, key=len, reverse=True))))  # the longest first

    def translate(self, grammar: Grammar) -> str:
        """The library's source of a grammar. Raises GrammarError."""
        return translate(grammar, self.spell)

    def compile(self, source: str) -> LLMatcher:
        """A matcher at its beginning. Raises GrammarError. Takes milliseconds as a rule, and lets other threads run meanwhile."""
        if self._tokenizer is None:
            raise GrammarError(self._refusal)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(explain(matcher.get_error()))
        return matcher

    def mask(self, matcher: LLMatcher) -> Int32Array:
        """What may come next: int32, shape [num_words], bit b of word w is token 32 w + b. Raises as `check`."""
        row = np.empty(self.num_words, np.int32)
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self.check(matcher, row)
        return row

    def check(self, matcher: LLMatcher, row: Int32Array) -> None:
        """Looks at a mask that the matcher wrote. Raises GrammarError when a limit was reached, or nothing may come."""
        if matcher.is_error():
            raise GrammarError(explain(matcher.get_error()))
        if not row[0] and not row.any():
            raise GrammarError("nothing can follow here")

    def spell(self, text: str) -> str:
        """Lark for a constant text, in which control tokens may be named: they are no text to the library."""
        if not self._control:
            return quoted(text)
        pieces, position = [], 0
        for match in self._names.finditer(text):
            if position < match.start():
                pieces.append(quoted(text[position : match.start()]))
            pieces.append(f"<[{self._control[match[0]]}]>")
            position = match.end()
        if position < len(text) or not pieces:
            pieces.append(quoted(text[position:]))
        return " ".join(pieces)


class _Added(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _File(msgspec.Struct):
    added_tokens: list[_Added] = []


def _with_control(vocabulary: Vocabulary) -> tuple[str, dict[str, int]]:
    """The file with every control token marked as one, and the control tokens by name. Raises ValueError.

    The library keeps marked tokens out of all texts. A file may leave the mark out, and an end of sequence in the middle of a text
    would end it there.
    """
    source, wanted = vocabulary.tokenizer_json, {*vocabulary.control_ids, *vocabulary.eos_ids}
    added = msgspec.json.decode(source, type=_File).added_tokens
    control = {token.content: token.id for token in added if token.special or token.id in wanted}
    if wanted <= {token.id for token in added if token.special}:
        return source, control
    whole = msgspec.json.decode(source)
    for entry in whole["added_tokens"]:
        entry["special"] = entry["special"] or entry["id"] in wanted
    pieces = whole["model"]["vocab"]
    ids = pieces if isinstance(pieces, dict) else {piece[0]: index for index, piece in enumerate(pieces)}
    missing = wanted - {entry["id"] for entry in whole["added_tokens"]}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for name, token_id in ids.items():
        if token_id in missing:
            whole["added_tokens"].append({"id": token_id, "content": name, "special": True, **plain})
            control[name] = token_id
    whole["added_tokens"].sort(key=lambda entry: entry["id"])
    return msgspec.json.encode(whole).decode(), control
