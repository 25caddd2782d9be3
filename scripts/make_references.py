"""Writes tests/data/smollm2_reference.json: greedy continuations by Hugging Face transformers, in float32.

    python scripts/make_references.py MODEL.gguf tests/data/smollm2_reference.json

Needs torch, transformers, gguf, tokenizers and jinja2, in an environment of its own: none of the first two is a dependency of the
engine. The weights are those of the GGUF file, dequantised and not rounded further; the code shares nothing with the engine's.
"""

import json
import sys

import jinja2
import numpy as np
import torch
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

NUM_TOKENS = 48
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 5, 8, 13,",
    "Water boils at a temperature of",
    "The quick brown fox jumps over the lazy dog. " * 8 + "The",
    "Zürich ist eine Stadt in der",
    "Q: What is 17 + 25?\nA:",
]
CHATS = [
    "What is the capital of Japan?",
    "Write a haiku about autumn leaves.",
    "Explain why the sky is blue, in two sentences.",
    "List three fruits that are red.",
    "Translate 'good morning' to French.",
]


def main() -> None:
    reader = GGUFReader(sys.argv[1])
    model, tokenizer, template = load_model(reader), load_tokenizer(reader), field(reader, "tokenizer.chat_template")
    chat = jinja2.Environment().from_string(template)
    texts = [("prompt", text, text) for text in PROMPTS]
    for text in CHATS:
        texts.append(("chat", text, chat.render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)))
    cases = []
    for kind, source, text in texts:
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"kind": kind, "text": source, "prompt": prompt, **continuation(model, prompt)})
        print(tokenizer.decode(cases[-1]["tokens"])[:100].replace("\n", " "))
    with open(sys.argv[2], "w") as file:
        rows = ",\n".join(json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases)
        file.write(f'{{"model":"SmolLM2-135M-Instruct.Q4_1.gguf","cases":[\n{rows}\n]}}\n')


@torch.no_grad()
def continuation(model: LlamaForCausalLM, prompt: list[int]) -> dict[str, list]:
    """Greedy tokens, the log-probability of each, and how far the second candidate lies behind the first (in logits)."""
    ids, tokens, logprobs, gaps, past = torch.tensor([prompt]), [], [], [], None
    for _ in range(NUM_TOKENS):
        out = model(ids, past_key_values=past, use_cache=True)
        past, logits = out.past_key_values, out.logits[0, -1].double()
        best = torch.topk(logits, 2)
        token = int(best.indices[0])
        tokens.append(token)
        logprobs.append(round(float(logits.log_softmax(-1)[token]), 5))
        gaps.append(round(float(best.values[0] - best.values[1]), 5))
        ids = torch.tensor([[token]])
    return {"tokens": tokens, "logprobs": logprobs, "gaps": gaps}


def load_model(reader: GGUFReader) -> LlamaForCausalLM:
    arch = field(reader, "general.architecture")
    heads, kv_heads = field(reader, f"{arch}.attention.head_count"), field(reader, f"{arch}.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(field(reader, "tokenizer.ggml.tokens")),
        hidden_size=field(reader, f"{arch}.embedding_length"),
        intermediate_size=field(reader, f"{arch}.feed_forward_length"),
        num_hidden_layers=field(reader, f"{arch}.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=field(reader, f"{arch}.context_length"),
        rms_norm_eps=field(reader, f"{arch}.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field(reader, f"{arch}.rope.freq_base")},
        tie_word_embeddings=True,
        dtype="float32",
    )
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "token_embd": "embed_tokens", "output_norm": "norm",
    }  # fmt: skip
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *prefix, short, kind = tensor.name.split(".")
        if short in ("attn_q", "attn_k"):  # the file holds rotary pairs side by side
            n, (rows, columns) = heads if short == "attn_q" else kv_heads, values.shape
            values = values.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        place = f"layers.{prefix[1]}." if prefix else ""
        state[f"model.{place}{names[short]}.{kind}"] = torch.from_numpy(np.ascontiguousarray(values))
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def load_tokenizer(reader: GGUFReader) -> Tokenizer:
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, types, strict=True) if kind == 3]
    tokenizer.add_special_tokens(special)
    return tokenizer


def field(reader: GGUFReader, key: str):
    return reader.get_field(key).contents()


if __name__ == "__main__":
    main()
