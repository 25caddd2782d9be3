"""What a tokenizer is, in the words of a Hugging Face `tokenizer_config.json`: for programs that tokenize by themselves."""

from typing import Any

from frontend.server.text.tokenizer import Tokenizer

_ALWAYS_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")  # null where the model has none


def tokenizer_info(tokenizer: Tokenizer, max_model_len: int) -> dict[str, Any]:
    """Class, special tokens, chat template and context. `max_model_len`: tokens of prompt and output together."""
    special, added = tokenizer.special, tokenizer.added_tokens()
    before, after = tokenizer.added_at_ends
    tokens = {**dict.fromkeys(_ALWAYS_NAMED), **special.texts}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # what reads any tokenizer.json; others are Python code that is not run here
        "model_max_length": max_model_len,
        "vocab_size": tokenizer.vocab_size,
        **tokens,
        "bos_token_id": special.bos_id,
        "eos_token_id": list(special.eos_ids),
        "add_bos_token": special.bos_id is not None and special.bos_id in before,
        "add_eos_token": any(token_id in special.eos_ids for token_id in after),
        "additional_special_tokens": [
            token.content for token in added.values() if token.special and token.content not in tokens.values()
        ],
        "added_tokens_decoder": {
            str(token_id): {
                "content": token.content,
                "single_word": token.single_word,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "normalized": token.normalized,
                "special": token.special,
            }
            for token_id, token in added.items()
        },
        "chat_template": tokenizer.chat_template,
    }
