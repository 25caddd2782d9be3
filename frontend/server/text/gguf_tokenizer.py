"""Rebuilds a byte-level BPE tokenizer from the metadata of a GGUF file.

GGUF names the pre-tokenizer (`tokenizer.ggml.pre`) and leaves its rules to the reader; those here follow the `tokenizer.json` files
of the models themselves.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from protocol.errors import ModelError
from protocol.gguf_header import Value

_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2",)

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types that are matched before the text is split

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def build_from_gguf(metadata: dict[str, Value]) -> tuple[Tokenizer, list[str]]:
    """The tokenizer and its vocabulary by id. Raises ModelError naming the kind of tokenizer that is not supported."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise ModelError(
            f"tokenizer.ggml.model is {kind!r}; only byte-level BPE ('gpt2') is read from GGUF. Use the Hugging Face directory"
        )
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    merges = [_pair(text) for text in _strings(metadata, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LLAMA3))
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    if pre in _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", [])
    if isinstance(types, list):
        named = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (_CONTROL, _USER_DEFINED)]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == _CONTROL])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == _USER_DEFINED])
    bos = metadata.get("tokenizer.ggml.bos_token_id")
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in _LLAMA3)
    if adds_bos and isinstance(bos, int) and 0 <= bos < len(tokens):
        name = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name}:0 $A:0", pair=f"{name}:0 $A:0 $B:1", special_tokens=[(name, bos)]
        )
    return tokenizer, tokens


def _pre_tokenizer(pre: Value) -> pre_tokenizers.PreTokenizer:
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if pre in _LLAMA3 or pre in _QWEN2:
        pattern = Regex(_LLAMA3_SPLIT if pre in _LLAMA3 else _QWEN2_SPLIT)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, behavior="isolated"), byte_level])
    known = ("gpt-2", "smollm", *_LLAMA3, *_QWEN2)
    raise ModelError(
        f"tokenizer.ggml.pre is {pre!r}, which is not supported (known: {', '.join(known)}). Use the Hugging Face directory"
    )


def _strings(metadata: dict[str, Value], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise ModelError(f"{key} is missing")
    return [str(item) for item in value]


def _pair(merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator:
        raise ModelError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair")
    return left, right
