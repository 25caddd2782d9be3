"""How models of byte-level BPE split a text before they merge its bytes, by the names of GGUF's `tokenizer.ggml.pre`.

GGUF gives a name and leaves the rule to the reader. Names as llama.cpp has them; rules from the `tokenizer.json` files of the
models. Free of the library that builds tokenizers, so that the launcher can ask before it starts anything.
"""

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_OF_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # a slash stays with the signs before it
_CASES = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"  # large letters before small ones


def _words(digits: str) -> str:
    return rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_REST}"


def _cased(ending: str, digits: str) -> str:
    return f"{_CASES % ('*', '+')}{ending}|{_CASES % ('+', '*')}{ending}|{digits}|{_REST_OF_PATHS}"


@dataclass(frozen=True, slots=True)
class Split:
    """One rule. `pattern`: None: GPT-2's, which the library has."""

    pattern: str | None = None
    single_digits: bool = False  # each is a piece, whatever the pattern says
    composed: bool = False  # the text is first brought into Unicode's form NFC
    whole_words: bool = False  # a piece that is a token is that token, whatever the merges make of it
    adds_bos: bool = False  # where the file does not say


_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|" + _REST.replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)

_GROUPS = {
    ("gpt-2", "phi-2", "olmo", "mpt", "jais", "mellum", "exaone4", "trillion", "granite-docling"): Split(),
    ("smollm", "refact", "starcoder", "codeshell", "exaone", "minerva-7b"): Split(single_digits=True),
    ("command-r",): Split(single_digits=True, composed=True),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"): Split(
        _LLAMA3, whole_words=True, adds_bos=True
    ),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): Split(_LLAMA3),  # OLMo 2, Phi-4 and SmolLM3 among them
    ("qwen2",): Split(_QWEN2, composed=True),
    ("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"): Split(_QWEN2),
    ("qwen35",): Split(_QWEN35, composed=True),
    ("tekken",): Split(_cased("", r"\p{N}"), whole_words=True, adds_bos=True),
    ("gpt-4o", "llama4", "kanana2"): Split(_cased(f"{_CONTRACTIONS}?", r"\p{N}{1,3}")),  # gpt-oss, Phi-4-mini
}
SPLITS = {name: split for names, split in _GROUPS.items() for name in names}
