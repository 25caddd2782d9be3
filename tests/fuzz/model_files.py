"""Model files: what is wrong with one has to be said, not to end or to hang the process that reads it."""

import asyncio
import json
import struct
import sys
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.files_child import NAMES
from tests.fuzz.target import HANG
from tests.fuzz.values import anything, encoded, mutated, text
from tests.model_writer import CONFIG, METADATA, TOKENIZER, gguf_bytes, safetensors_bytes
from tests.model_writer import NAMES as TENSORS

_PIECES = (
    "{{ messages[0].content }}", "{% for m in messages %}", "{% endfor %}", "{% if m.role == 'user' %}", "{% endif %}", "{{ m }}",
    "{% set a = ", " %}", "{{ bos_token }}", "{{ 'a' * 99 }}", "{{ messages | tojson }}", "{% macro f(x) %}", "{% endmacro %}",
    "{{ f(1) }}", "{#", "#}", "{{ ", " }}", "loop.index0", "namespace(a=1)", "| trim", "{% generation %}", "{% endgeneration %}",
    "{{ raise_exception('no') }}", "{% break %}", "{{ ''.__class__ }}", "{{ cycler }}", "{{ lipsum(1) }}", "{{ 1 / 0 }}",
    "{% include 'x' %}", "{% extends 'x' %}", "\x00", "é", "{{ range(5) | list }}",
)  # fmt: skip


class Files:
    """A case: a kind, a line feed, a file."""

    name = "files"
    per_case = 1

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    def make(self, draw: Random) -> bytes:
        kind = draw.choice(("gguf", "gguf", "gguf", *NAMES))
        return kind.encode() + b"\n" + _file(kind, draw)

    async def run(self, case: bytes) -> str:
        async with self._turn:
            child = self._child = self._child or await _start()
            assert child.stdin is not None and child.stdout is not None
            try:
                child.stdin.write(struct.pack("<I", len(case)) + case)
                await child.stdin.drain()
                async with asyncio.timeout(HANG):
                    line = await child.stdout.readline()
            except TimeoutError:
                await self.close()
                return "the file was read for too long"
            except ConnectionError:
                line = b""
            if not line:
                code = await child.wait()
                self._child = None
                return f"the process that read the file ended with code {code}"
            return line.decode(errors="replace").strip()

    async def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            await self._child.wait()
            self._child = None


async def _start() -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tests.fuzz.files_child")
    return await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    )


def _file(kind: str, draw: Random) -> bytes:
    match kind:
        case "gguf":
            metadata = dict(METADATA)
            for key in draw.sample(sorted(metadata), draw.randrange(3)):
                metadata[key] = _gguf_value(draw)
            data = gguf_bytes(metadata)
            return mutated(data, draw) if draw.random() < 0.7 else data
        case "safetensors":
            return mutated(safetensors_bytes(TENSORS), draw)
        case "template":
            pieces = "".join(draw.choice(_PIECES) for _ in range(draw.randrange(1, 9)))
            return pieces.encode() if draw.random() < 0.8 else mutated(pieces.encode(), draw)
    value: Any = {
        "index": {"metadata": {}, "weight_map": dict.fromkeys(TENSORS, "model.safetensors")},
        "tokenizer": TOKENIZER,
        "settings": {"bos_token": "a", "eos_token": {"content": "<|end|>"}, "chat_template": "{{ messages[0].content }}"},
        "config": CONFIG,
        "generation": {"eos_token_id": [1, 2]},
    }[kind]
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 2))):
        _change(value, draw)
    data = encoded(value, draw)
    return mutated(data, draw) if draw.random() < 0.3 else data


def _change(value: Any, draw: Random) -> None:
    """Another value somewhere within."""
    while True:
        if isinstance(value, dict) and value:
            key: Any = draw.choice(sorted(value))
        elif isinstance(value, list) and value:
            key = draw.randrange(len(value))
        else:
            return
        if isinstance(value[key], (dict, list)) and value[key] and draw.random() < 0.6:
            value = value[key]
            continue
        if draw.random() < 0.2 and isinstance(value, dict):
            value[text(draw)] = value.pop(key)
        else:
            value[key] = anything(draw, 3)
        return


def _gguf_value(draw: Random) -> object:
    numbers: tuple[object, ...] = (0, 1, 2**31, 2**63, 1.5, True, [], [1, 2], [2**31 - 1] * 3)
    texts: tuple[object, ...] = ("", text(draw), ["a", "b"], ["a b", "ab"], ["a"] * 10, draw.randbytes(12))
    return draw.choice((*numbers, *texts))
