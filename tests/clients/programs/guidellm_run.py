"""GuideLLM: a short benchmark of synthetic prompts."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

BASE_URL, MODEL, TOKENIZER = sys.argv[1:]
with tempfile.TemporaryDirectory() as directory:
    command = [
        Path(sys.executable).with_name("guidellm"),
        "run",
        "--backend",
        f"kind=openai_http,target={BASE_URL},model={MODEL}",
        "--profile",
        "kind=concurrent,streams=4",
        "--constraint",
        "kind=max_requests,count=12",
        "--tokenizer",
        f"kind=huggingface_auto,model={TOKENIZER}",
        "--data",
        "kind=synthetic_text,prompt_tokens=64,output_tokens=16",
        "--output",
        f"kind=json,path={directory}/report.json",
        "--disable-console",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (report,) = Path(directory).glob("*.json")
    (run,) = json.loads(report.read_text())["benchmarks"]
requests = run["requests"]
assert len(requests["successful"]) >= 10 and not requests["errored"], {kind: len(of) for kind, of in requests.items()}
assert all(request["output_tokens"] == 16 for request in requests["successful"])
