"""Rebuilds a tokenizer from the metadata of a GGUF file: byte-level BPE, or SentencePiece's."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from frontend.server.text import sentencepiece
from frontend.server.text.sentencepiece import CONTROL, USER_DEFINED, Piece
from frontend.server.text.splits import SPLITS, Split
from frontend.server.text.tokenizer_files import GgufVocabulary, gguf_vocabulary
from protocol.errors import ModelError
from protocol.gguf_header import Value

# Ids of SentencePiece's own tokens where the file does not say, as in llama.cpp.
_USUAL_IDS = {"bos": 1, "eos": 2, "unknown": 0}


def build_from_gguf(metadata: dict[str, Value]) -> tuple[Tokenizer, list[str]]:
    """The tokenizer and its vocabulary by id. Raises ModelError naming the kind of tokenizer that is not supported."""
    vocabulary = gguf_vocabulary(metadata)
    if vocabulary.kind == "llama":
        pieces = list(map(Piece, vocabulary.tokens, vocabulary.scores, vocabulary.types))
        prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
        tokenizer = sentencepiece.build(pieces, token_id(metadata, "unknown"), space_prefix=bool(prefix))
        adds_bos = True
    else:
        split = SPLITS[vocabulary.pre]
        tokenizer, adds_bos = _byte_level(vocabulary, split), split.adds_bos
    before = _added_token(metadata, "bos", vocabulary.tokens, adds_bos)
    after = _added_token(metadata, "eos", vocabulary.tokens, False)
    if before or after:
        single = [*(f"{name}:0" for name, _ in before), "$A:0", *(f"{name}:0" for name, _ in after)]
        pair = [*single, "$B:1", *(f"{name}:1" for name, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[*before, *after])
    return tokenizer, vocabulary.tokens


def token_id(metadata: dict[str, Value], role: str) -> int | None:
    """The id that a file gives the token of a role, such as "bos"; None where it has none."""
    usual = _USUAL_IDS.get(role) if metadata.get("tokenizer.ggml.model") == "llama" else None
    value = metadata.get(f"tokenizer.ggml.{role}_token_id", usual)
    return value if isinstance(value, int) and value >= 0 else None


def _byte_level(vocabulary: GgufVocabulary, split: Split) -> Tokenizer:
    ids: dict[str, int] = {}
    for index, token in enumerate(vocabulary.tokens):
        ids.setdefault(token, index)
    merges = [_pair(text) for text in vocabulary.merges]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=split.whole_words))
    tokenizer.pre_tokenizer = pre_tokenizer(split)
    if split.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    named = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == CONTROL and token])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in named if kind == USER_DEFINED and token])
    return tokenizer


def pre_tokenizer(split: Split) -> pre_tokenizers.PreTokenizer:
    """What splits a text by a rule, and writes its bytes in GPT-2's alphabet."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    if split.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split.pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
    return pre_tokenizers.Sequence([*steps, byte_level]) if steps else byte_level


def _added_token(metadata: dict[str, Value], role: str, tokens: list[str], usual: bool) -> list[tuple[str, int]]:
    """Name and id of the token that goes around every text, if there is one."""
    index = token_id(metadata, role)
    wanted = metadata.get(f"tokenizer.ggml.add_{role}_token", usual)
    return [(tokens[index], index)] if wanted and index is not None and index < len(tokens) else []


def _pair(merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator:
        raise ModelError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair")
    return left, right
