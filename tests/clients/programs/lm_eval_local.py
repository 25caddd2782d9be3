"""lm-eval's local-completions, with the engine as its tokenizer, too: multiple choice by log-likelihood, and generate_until.

The data is multiple_choice.json, whose questions every exact engine answers alike; scores and words are those of transformers.
"""

import json
import sys
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

BASE_URL, MODEL, DATA = sys.argv[1:]
MARGIN_PER_TOKEN = 0.25  # nats; the choices are of at most three tokens
CHOICE = f"""
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {DATA}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
GENERATE = f"""
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {DATA}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{word}}}}"
generation_kwargs: {{until: [".", "\\n"], max_gen_toks: 9, temperature: 0}}
filter_list: [{{name: first, filter: [{{function: regex, regex_pattern: "(\\\\w+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match}}]
"""

cases = json.loads(Path(DATA).read_text())
arguments = {
    "model": MODEL,
    "base_url": f"{BASE_URL}/v1/completions",
    "tokenizer_backend": "remote",
    "num_concurrent": 4,
    "max_retries": 1,
    "max_length": 2048,
}
with tempfile.TemporaryDirectory() as directory:
    Path(directory, "choices.yaml").write_text(CHOICE)
    Path(directory, "words.yaml").write_text(GENERATE)
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=arguments,
        tasks=["choices", "words"],
        task_manager=TaskManager(include_path=directory, include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
expected = sum(case["scores"].index(max(case["scores"])) == case["answer"] for case in cases) / len(cases)
assert results["results"]["choices"]["acc,none"] == expected, (results["results"], expected)
for sample in results["samples"]["choices"]:
    case = next(case for case in cases if case["question"] == sample["doc"]["question"])
    found = [float(score) for ((score, _),) in sample["resps"]]
    assert all(abs(a - b) < 3 * MARGIN_PER_TOKEN for a, b in zip(found, case["scores"], strict=True)), (found, case)
words = results["results"]["words"]["exact_match,first"]
assert words == 1, [(sample["target"], sample["filtered_resps"]) for sample in results["samples"]["words"]]
