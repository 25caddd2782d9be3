"""Rebuilds a byte-level BPE tokenizer from the metadata of a GGUF file.

GGUF names the pre-tokenizer (`tokenizer.ggml.pre`) and leaves its rules to the reader; those here follow the `tokenizer.json` files
of the models themselves.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from frontend.server.text.tokenizer_files import GPT2, LLAMA3, QWEN2, SMOLLM, gguf_vocabulary
from protocol.errors import ModelError
from protocol.gguf_header import Value

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types that are matched before the text is split

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def build_from_gguf(metadata: dict[str, Value]) -> tuple[Tokenizer, list[str]]:
    """The tokenizer and its vocabulary by id. Raises ModelError naming the kind of tokenizer that is not supported."""
    vocabulary = gguf_vocabulary(metadata)
    pre, tokens = vocabulary.pre, vocabulary.tokens
    ids, merges = {token: index for index, token in enumerate(tokens)}, [_pair(text) for text in vocabulary.merges]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=pre in LLAMA3))
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre in QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", [])
    if isinstance(types, list):
        named = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == _CONTROL])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == _USER_DEFINED])
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in LLAMA3)
    if adds_bos and isinstance(bos, int) and 0 <= bos < len(tokens):
        name = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name}:0 $A:0", pair=f"{name}:0 $A:0 $B:1", special_tokens=[(name, bos)]
        )
    return tokenizer, tokens


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre in GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre in SMOLLM:
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    pattern = Regex(_LLAMA3_SPLIT if pre in LLAMA3 else _QWEN2_SPLIT)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior="isolated"), byte_level])


def _pair(merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator:
        raise ModelError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair")
    return left, right
