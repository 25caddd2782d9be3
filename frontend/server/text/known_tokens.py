"""Tokens that are known by their names, where a model's file does not say what they are for."""

import re

from tokenizers import Tokenizer

# With these, models end a turn, a message or a document. A file names one or two of them.
_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|return|>", "<|call|>"),
        *("<end_of_turn>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<|eot|>", "<EOT>", "<end_of_utterance>"),
    )
)
_CONTROL = re.compile(r"<\|[^|<>]+\|>|<(start|end)_of_(turn|text|image)>|</?s>|\[/?INST\]")


def ends_by_name(tokenizer: Tokenizer) -> set[int]:
    """Ids of the tokens, matched before a text is split, that end an output."""
    named = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.content in _ENDS}
    if named.keys() >= {"<|return|>", "<|call|>", "<|end|>"}:  # gpt-oss: the model goes on in another channel after <|end|>
        del named["<|end|>"]
    return set(named.values())


def looking_like_control(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of added tokens that are the marks of a conversation, be they marked as special ones or not."""
    added = tokenizer.get_added_tokens_decoder()
    return frozenset(token_id for token_id, token in added.items() if _CONTROL.fullmatch(token.content))
