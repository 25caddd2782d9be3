"""Prompts with a gap: models of code are trained to write what belongs between a prefix and a suffix."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocol.gguf_header import Value

# What the vocabularies of models have for it: before the prefix, before the suffix, before the middle, which the model writes.
_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
)
# With these such a model ends what it writes, besides its ends of sequence.
_ENDS = ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "▁<EOT>", "<|endoftext|>", "<|file_separator|>", "<|file_sep|>", "<file_sep>")


@dataclass(frozen=True, slots=True)
class FillIn:
    """Token ids."""

    prefix: int
    suffix: int
    middle: int
    ends: tuple[int, ...]

    def around(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """The prompt of a gap between these."""
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]


def find_fill_in(id_of: Callable[[str], int | None]) -> FillIn | None:
    """By the texts of tokens; None where the vocabulary has none for it."""
    for texts in _TOKENS:
        prefix, suffix, middle = map(id_of, texts)
        if prefix is not None and suffix is not None and middle is not None:
            return FillIn(prefix, suffix, middle, _ends(id_of))
    return None


def fill_in_of_gguf(metadata: Mapping[str, Value], id_of: Callable[[str], int | None], num_tokens: int) -> FillIn | None:
    """By what a GGUF file says, else by the texts of tokens. `id_of` gives the ids of these, of which there are `num_tokens`."""
    for names in (("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")):  # newer and older files
        ids = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names]
        prefix, suffix, middle = (value if isinstance(value, int) and 0 <= value < num_tokens else None for value in ids)
        if prefix is not None and suffix is not None and middle is not None:
            pad = metadata.get("tokenizer.ggml.fim_pad_token_id")
            more = (pad,) if isinstance(pad, int) and 0 <= pad < num_tokens else ()
            return FillIn(prefix, suffix, middle, tuple(dict.fromkeys((*more, *_ends(id_of)))))
    return find_fill_in(id_of)


def _ends(id_of: Callable[[str], int | None]) -> tuple[int, ...]:
    return tuple(token_id for text in _ENDS if (token_id := id_of(text)) is not None)
