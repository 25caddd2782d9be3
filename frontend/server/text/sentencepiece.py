"""Tokenizers of SentencePiece's BPE kind, from their pieces and scores.

SentencePiece joins the neighbours whose joint piece has the best score, and the first of equal ones. The same comes of BPE with a
list of merges: every way to make a piece of two others, the best pieces first.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # of SentencePiece's and of GGUF's types of tokens


class Piece(NamedTuple):
    """An entry of the vocabulary, whose id is its place."""

    text: str
    score: float
    kind: int


def build(pieces: Sequence[Piece], unknown: int | None, *, space_prefix: bool, single_spaces: bool = False) -> Tokenizer:
    """`unknown`: the id of what stands for characters that have no piece. `space_prefix`: a space is put before every text and, as
    llama.cpp does, before the text behind every control or user-defined token. `single_spaces`: of each run, and none at the ends.
    """
    # Those that are matched whole are matched before spaces are written as letters.
    pieces = [piece._replace(text=piece.text.replace(SPACE, " ")) if piece.kind == USER_DEFINED else piece for piece in pieces]
    ids: dict[str, int] = {}
    for token_id, piece in enumerate(pieces):
        ids.setdefault(piece.text, token_id)
    name = pieces[unknown].text if unknown is not None and 0 <= unknown < len(pieces) else None
    has_bytes = len({piece.text for piece in pieces if piece.kind == BYTE}) == 256
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges_of(pieces), unk_token=name, fuse_unk=True, byte_fallback=has_bytes))
    steps: list[normalizers.Normalizer] = []
    if single_spaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if space_prefix:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    shown = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*shown, decoders.Strip(" ", 1, 0)] if space_prefix else shown)
    tokenizer.add_special_tokens([_added(piece) for piece in pieces if piece.kind in (UNKNOWN, CONTROL) and piece.text])
    tokenizer.add_tokens([_added(piece) for piece in pieces if piece.kind == USER_DEFINED and piece.text])
    return tokenizer


def merges_of(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, best score first. What is matched whole is not made of others."""
    texts = {piece.text for piece in pieces if piece.kind in (NORMAL, UNUSED)}
    ranked = sorted((piece for piece in pieces if piece.kind in (NORMAL, UNUSED) and len(piece.text) > 1), key=_by_score)
    return [
        (left, right)
        for text in dict.fromkeys(piece.text for piece in ranked)
        # The longer left part first: of equal scores the first counts, and what comes first is longer already.
        for cut in range(len(text) - 1, 0, -1)
        if (left := text[:cut]) in texts and (right := text[cut:]) in texts
    ]


def _by_score(piece: Piece) -> float:
    return -piece.score


def _added(piece: Piece) -> AddedToken:
    return AddedToken(piece.text, normalized=False)
