"""Writes tests/data/sentencepiece: small models trained with SentencePiece, and what it makes of texts that are hard to split.

uvx --with sentencepiece python scripts/make_sentencepiece_references.py
"""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import sentencepiece  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[1]
OUT = ROOT / "tests" / "data" / "sentencepiece"
PARTS = [
    *("hello", "Hello world", "the engine", "scheduler", "I'm", "'s", "WORDS", "CamelCase", "__init__", "def f(x):\n    return x"),
    *(
        " ",
        "  ",
        "   ",
        "      ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\u00a0",
        "\u3000",
        "a",
        "aa",
        "aaa",
        "aaaa",
        "aaaaaaa",
        "----",
        "====",
    ),
    *("0123456789", "2024", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u200d", "\U0001f1e9\U0001f1ea"),
    *("e\u0301", "\u00e9", "\ufb01", "\u2460", "これは", "日本語", "漢字", "Привет", "שלום", "العربية", "\u0300\u0301", "ß", "İ"),
    *("\0", "\x01", "\x7f", "\ufeff", "\ufffd", "\U0010ffff", "<0x41>", "<b>", "</b>", '{"a": [1, 2]}', "x" * 50),
]
COMMON = {
    "model_type": "bpe",
    "vocab_size": 600,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "remove_extra_whitespaces": False,
    "normalization_rule_name": "identity",
    "num_threads": 1,
    "minloglevel": 2,
}
RUNS = ["\u2581\u2581", "\u2581\u2581\u2581", "\u2581\u2581\u2581\u2581", "\n", "\n\n", "\t", "<b>", "</b>"]
MODELS = {
    "llama": {},
    "gemma": {"add_dummy_prefix": False, "user_defined_symbols": RUNS, "control_symbols": ["<start_of_turn>", "<end_of_turn>"]},
    "spaces": {"remove_extra_whitespaces": True},
    "without_bytes": {"byte_fallback": False},
}


def sentences() -> list[str]:
    """What the models learn from: the project's own documents, and some lines in other scripts."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for file in files for line in file.read_text().splitlines()[:300] if line.strip()]
    others = [
        "Größe naïve façade Straße",
        "これはペンです。日本語の文章",
        "Привет, мир! Как дела?",
        "aaaa aaaaaa ---- ==== 1234567890",
    ]
    return lines + others * 30


def texts(count: int = 300) -> list[str]:
    draw = random.Random(7)
    made = ["", " a", "a ", " \n a", *PARTS]
    while len(made) < count:
        made.append("".join(draw.choice(PARTS) + " " * (draw.random() < 0.4) for _ in range(draw.randint(1, 9))))
    return made


def trained(lines: Sequence[str], **options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **COMMON | options)
    return model.getvalue()


def main() -> None:
    OUT.mkdir(exist_ok=True)
    lines, asked = sentences(), texts()
    expected: dict[str, object] = {"texts": asked}
    for name, options in MODELS.items():
        model = trained(lines, **options)
        (OUT / f"{name}.model").write_bytes(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        expected[name] = [processor.encode(text) for text in asked]
    (OUT / "expected.json").write_text(json.dumps(expected, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
