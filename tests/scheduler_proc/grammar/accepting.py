"""Whether a grammar accepts a text, asked of its masks one byte at a time or a token at a time."""

import numpy as np

from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import Int32Array
from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens


def allowed(row: Int32Array) -> list[int]:
    """The token ids of a mask."""
    ids: list[int] = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist()
    return ids


def accepts(tokens: Tokens, tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    """Whether the text, and then an end, may be written."""
    matcher = tokens.compile(tokens.translate(grammar))
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        if not matcher.consume_token(token_id):
            return False
    try:
        return any(token_id in tokens.eos_ids for token_id in allowed(tokens.mask(matcher)))
    except GrammarError:
        return False
