"""Writes tests/data/multiple_choice.json: how Hugging Face transformers, in float32, scores the choices of short questions, and the
first word that it goes on with.

    python scripts/make_multiple_choice.py MODEL.gguf tests/data/multiple_choice.json

Needs what make_references.py needs. A question is left out where the two best choices, or tokens of the word, lie so close that the
rounding of weights or activations may order them otherwise: every other one must be answered alike by any exact engine.
"""

import json
import re
import sys

import torch
from gguf import GGUFReader
from make_references import load_model, load_tokenizer
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

TOKEN_MARGIN = 0.3  # logits between the two best tokens of a greedy word
MARGIN = 0.8  # nats between the two best choices: a few tokens, each with the error that tests allow
QUESTIONS = [
    ("The capital of France is", ["Paris", "London", "Berlin", "Rome"], 0),
    ("The capital of Japan is", ["Kyoto", "Tokyo", "Beijing", "Seoul"], 1),
    ("The opposite of hot is", ["warm", "cold", "red", "tall"], 1),
    ("The opposite of up is", ["left", "high", "down", "over"], 2),
    ("A baby dog is called a", ["kitten", "puppy", "calf", "chick"], 1),
    ("A baby cat is called a", ["kitten", "puppy", "calf", "lamb"], 0),
    ("The color of the clear sky is", ["blue", "green", "brown", "black"], 0),
    ("The color of grass is", ["purple", "green", "white", "orange"], 1),
    ("Bees make", ["milk", "honey", "wine", "bread"], 1),
    ("Cows give", ["honey", "milk", "silk", "oil"], 1),
    ("Water freezes into", ["ice", "steam", "sand", "gold"], 0),
    ("The sun rises in the", ["west", "east", "north", "south"], 1),
    ("The day after Monday is", ["Sunday", "Friday", "Tuesday", "Thursday"], 2),
    ("The month after January is", ["March", "February", "June", "December"], 1),
    ("Two plus two equals", ["five", "three", "four", "nine"], 2),
    ("A triangle has how many sides? It has", ["three", "four", "five", "six"], 0),
    ("A week has how many days? It has", ["five", "six", "seven", "ten"], 2),
    ("The largest planet in the solar system is", ["Mars", "Jupiter", "Venus", "Mercury"], 1),
    ("The planet closest to the sun is", ["Earth", "Mercury", "Saturn", "Neptune"], 1),
    ("The author of Romeo and Juliet is William", ["Wordsworth", "Shakespeare", "Blake", "Faulkner"], 1),
    ("Fish live in", ["trees", "water", "fire", "clouds"], 1),
    ("Birds can", ["fly", "drive", "type", "melt"], 0),
    ("The human body pumps blood with the", ["liver", "heart", "lungs", "skin"], 1),
    ("We see with our", ["ears", "eyes", "hands", "feet"], 1),
    ("We hear with our", ["ears", "eyes", "nose", "knees"], 0),
    ("The language spoken in Brazil is", ["Spanish", "Portuguese", "French", "German"], 1),
    ("The currency of the United States is the", ["euro", "yen", "dollar", "pound"], 2),
    ("The chemical symbol of gold is", ["Ag", "Au", "Fe", "Pb"], 1),
    ("The chemical formula of water is", ["CO2", "H2O", "NaCl", "O2"], 1),
    ("Plants take in carbon dioxide and give off", ["oxygen", "helium", "iron", "salt"], 0),
    ("The fastest land animal is the", ["turtle", "cheetah", "cow", "snail"], 1),
    ("An animal with a long trunk is the", ["elephant", "mouse", "lion", "shark"], 0),
    ("The season after winter is", ["autumn", "spring", "summer", "night"], 1),
    ("A person who teaches is a", ["teacher", "farmer", "pilot", "baker"], 0),
    ("A person who flies planes is a", ["teacher", "farmer", "pilot", "baker"], 2),
    ("Bread is made from", ["flour", "stone", "glass", "paper"], 0),
    ("The frozen continent at the South Pole is", ["Africa", "Antarctica", "Asia", "Europe"], 1),
    ("The Great Wall is in", ["China", "Peru", "Egypt", "Canada"], 0),
    ("The pyramids are in", ["Norway", "Egypt", "Japan", "Brazil"], 1),
    ("The number after nine is", ["ten", "eight", "two", "six"], 0),
    ("Ice is", ["cold", "hot", "spicy", "loud"], 0),
    ("The first letter of the alphabet is", ["Z", "A", "M", "Q"], 1),
]


def main() -> None:
    reader = GGUFReader(sys.argv[1])
    model, tokenizer = load_model(reader), load_tokenizer(reader)
    cases = []
    for question, choices, answer in QUESTIONS:
        prompt = tokenizer.encode(question, add_special_tokens=False).ids
        scores = []
        for choice in choices:
            whole = tokenizer.encode(f"{question} {choice}", add_special_tokens=False).ids
            assert whole[: len(prompt)] == prompt
            scores.append(round(score(model, whole, len(prompt)), 4))
        best = sorted(scores, reverse=True)
        word = first_word(model, tokenizer, prompt)
        if best[0] - best[1] >= MARGIN and word:
            cases.append({"question": question, "choices": choices, "answer": answer, "scores": scores, "word": word})
    right = sum(case["scores"].index(max(case["scores"])) == case["answer"] for case in cases)
    print(f"{len(cases)} of {len(QUESTIONS)} questions kept, {right} answered rightly")
    with open(sys.argv[2], "w") as file:
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        file.write(f"[\n{rows}\n]\n")


@torch.no_grad()
def first_word(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: list[int]) -> str:
    """The first word of the greedy continuation; empty where another token came close."""
    token_ids = list(prompt)
    for _ in range(8):
        best = torch.topk(model(torch.tensor([token_ids])).logits[0, -1], 2)
        if float(best.values[0] - best.values[1]) < TOKEN_MARGIN:
            return ""
        token_ids.append(int(best.indices[0]))
        if found := re.match(r"\s*(\w+)\W", tokenizer.decode(token_ids[len(prompt) :])):
            return found[1]
    return ""


@torch.no_grad()
def score(model: LlamaForCausalLM, token_ids: list[int], start: int) -> float:
    """Sum of the log-probabilities of the tokens from `start` on."""
    logits = model(torch.tensor([token_ids])).logits[0, start - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(token_ids[start:])[:, None]).sum())


if __name__ == "__main__":
    main()
