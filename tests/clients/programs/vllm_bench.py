"""vLLM's own benchmark client: the load that the project began with, cut short."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BASE_URL, MODEL, TOKENIZER = sys.argv[1:]
with tempfile.TemporaryDirectory() as directory:
    for backend, endpoint in (("vllm", "/v1/completions"), ("openai-chat", "/v1/chat/completions")):
        command = [
            Path(sys.executable).with_name("vllm"),
            *("bench", "serve", f"--backend={backend}", f"--endpoint={endpoint}", f"--base-url={BASE_URL}", f"--model={MODEL}"),
            *(f"--tokenizer={TOKENIZER}", "--dataset-name=random", "--random-input-len=64", "--random-output-len=16"),
            *("--num-prompts=8", "--max-concurrency=4", "--ignore-eos", "--save-result", f"--result-dir={directory}"),
            f"--result-filename={backend}.json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        result = json.loads(Path(directory, f"{backend}.json").read_text())
        assert result["completed"] == 8 and result["total_output_tokens"] == 128, result
