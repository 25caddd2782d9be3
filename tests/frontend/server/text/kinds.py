"""Tokenizers of the kinds that models have, small enough to be read."""

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from frontend.server.text.tokenizer import SpecialTokens, Tokenizer

_SPACE = "\u2581"
_CONTROL = ("<unk>", "<s>", "</s>", "<|end|>")
_PIECES = [
    *_CONTROL,
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *(_SPACE, "a", "b", "c", "<", ">", "/", "s", "|", "e", "n", "d", _SPACE + "a", "bc", _SPACE * 2),
]
VOCABULARY = {piece: index for index, piece in enumerate(_PIECES)}
FIRST_PIECE = VOCABULARY[_SPACE]  # the pieces behind the control tokens and the bytes
_MERGES = [(_SPACE, "a"), ("b", "c"), (_SPACE, _SPACE)]


def _named(fast: FastTokenizer) -> Tokenizer:
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in _CONTROL])
    return Tokenizer(fast, SpecialTokens((2,), 1, {"bos_token": "<s>", "eos_token": "</s>"}), None)


def _bpe() -> FastTokenizer:
    return FastTokenizer(models.BPE(vocab=VOCABULARY, merges=_MERGES, byte_fallback=True, unk_token="<unk>"))


def llama2() -> Tokenizer:
    """As Llama 2 and Mistral have it: a space before every text, which the decoder strips."""
    fast = _bpe()
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    fast.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _named(fast)


def metaspace() -> Tokenizer:
    """A space before the first word only; the decoder takes all spaces from the first token."""
    fast = _bpe()
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return _named(fast)


def gemma() -> Tokenizer:
    """Spaces are letters, and none is added or stripped."""
    fast = _bpe()
    fast.normalizer = normalizers.Replace(" ", _SPACE)
    fast.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _named(fast)


def unigram() -> Tokenizer:
    """The model itself finds control tokens in a text: they are pieces with the best of scores."""
    scored = [(piece, 0.0 if piece in _CONTROL else -len(piece) / 2 - 1) for piece in _PIECES]
    fast = FastTokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _named(fast)


SENTENCEPIECE = {"llama2": llama2(), "metaspace": metaspace(), "gemma": gemma(), "unigram": unigram()}
