"""What other engines' command lines hold, vLLM's above all: other names of flags, flags that change nothing, and flags that are not
there, each with a sentence. What is none of these is answered with the nearest flag.
"""

import difflib
from collections.abc import Collection, Sequence

from frontend.launcher.values import shown
from protocol.errors import ConfigError

OTHER_NAMES = {
    "data-parallel-size": "workers",
    "api-server-count": "frontends",
    "kv-cache-memory-bytes": "kv-cache-memory",
}
_SHORT = {"-tp": "--tensor-parallel-size", "-dp": "--workers", "-asc": "--frontends", "-pp": "--pipeline-parallel-size"}

# Flags without a value that can be left out; also in their --no- form.
_NEEDLESS = {
    "enable-log-requests": "each request has a line in the log, at --log-level info",
    "disable-log-requests": "--log-level warning leaves the requests' lines out",
    "disable-log-stats": "statistics are not logged; they are at /metrics",
    "disable-uvicorn-access-log": "--log-level warning leaves the requests' lines out",
    "trust-remote-code": "a model's own code is never run",
    "enforce-eager": "steps are compiled, always",
    "enable-chunked-prefill": "long prompts are cut into chunks, always",
    "disable-frontend-multiprocessing": "each part is a process of its own, always",
    "enable-prompt-tokens-details": "the usage tells of cached tokens, always",
    "enable-request-id-headers": "every answer has a request id",
    "disable-custom-all-reduce": "the compiler chooses how chips add up",
}
# The same with a value.
_NEEDLESS_VALUES = {
    "uvicorn-log-level": "there is no uvicorn; there is --log-level",
    "max-log-len": "prompts are not logged without --log-prompts",
    "distributed-executor-backend": "workers are processes of this host, always",
    "tokenizer-mode": "there is one tokenizer",
    "swap-space": "what is preempted is computed again",
    "max-seq-len-to-capture": "steps are compiled, always",
    "compilation-config": "steps are compiled as the platform needs it",
    "guided-decoding-backend": "grammars are followed by llguidance, always",
    "structured-outputs-config": "grammars are followed by llguidance, always",
    "allowed-methods": "pages that are allowed may use all methods",
    "allowed-headers": "pages that are allowed may send all headers",
}
# What would be wrong without it, so it is not passed over. Longer names begin like these, too.
_MISSING = {
    "pipeline-parallel-size": "layers are not spread over chips; --tensor-parallel-size cuts each of them",
    "enable-expert-parallel": "experts are not spread over chips",
    "data-parallel-": "all workers are on this host: --workers says how many",
    "node-rank": "an engine is one host's",
    "headless": "an engine is one host's",
    "enable-lora": "adapters are not supported: merge the adapter into the model",
    "lora-": "adapters are not supported: merge the adapter into the model",
    "max-lora": "adapters are not supported: merge the adapter into the model",
    "speculative-": "tokens are not speculated on",
    "num-speculative-tokens": "tokens are not speculated on",
    "tokenizer": "the model's own tokenizer is used",
    "hf-token": "HF_TOKEN holds it, which nobody reads in `ps`",
    "hf-overrides": "the model's config.json is taken as it is",
    "chat-template": "the model's own chat template is used",
    "ssl-": "TLS is not spoken: put a proxy in front",
    "root-path": "paths are fixed: a proxy in front can cut a prefix off",
    "uds": "HTTP is served on a port; Python clients have a socket, --ipc",
    "num-gpu-blocks-override": "--kv-cache-memory says how large the cache is, in bytes",
    "kv-transfer-config": "caches are not handed between engines",
    "cpu-offload-gb": "weights are not kept off the device",
    "middleware": "no code of others is loaded",
    "logits-processors": "no code of others is loaded",
    "worker-cls": "no code of others is loaded",
    "disable-fastapi-docs": "/docs is always there; it holds nothing that a key protects",
    "enable-force-include-usage": "clients ask for the usage of a stream with stream_options",
    "response-role": "answers are the assistant's",
    "limit-mm-per-prompt": "prompts are texts",
    "max-logprobs": "at most 20 log-probabilities are possible",
    "task": "models generate text and give embeddings, always",
    "runner": "models generate text and give embeddings, always",
    "convert": "models generate text and give embeddings, always",
    "pooler-config": "--pooling says how embeddings are pooled",
    "override-pooler-config": "--pooling says how embeddings are pooled",
}


def accept(arguments: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """The command line in the engine's own words, and remarks on what was left out. `known`: its own flags, without dashes.

    Underscores are as good as dashes. Raises ConfigError naming what to do about a flag that is not there.
    """
    own: list[str] = []
    remarks: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*own, argument, *rest], remarks
        first, sign, value = argument.partition("=")
        flag = _SHORT.get(first, first)
        if not flag.startswith("--"):
            own.append(argument)
            continue
        name = flag[2:].replace("_", "-")
        name = OTHER_NAMES.get(name, name)
        if name in known:
            own.append(f"--{name}{sign}{value}")
            continue
        reason = _NEEDLESS.get(name.removeprefix("no-"))
        if reason is None and (reason := _NEEDLESS_VALUES.get(name)) is not None and not sign and rest and rest[0][:2] != "--":
            value = rest.pop(0)
        if reason is None:
            raise ConfigError(f"--{shown(name)}: {_advice(name, known)}")
        remarks.append(f"--{name} is left out: {reason}")
    return own, remarks


def explain_unknown(name: str, known: Collection[str]) -> str:
    """What to say of a name that is no flag."""
    return _advice(OTHER_NAMES.get(name, name), known)


def _advice(name: str, known: Collection[str]) -> str:
    for missing, reason in _MISSING.items():
        if name == missing or name.startswith(missing if missing.endswith("-") else f"{missing}-"):
            return f"there is no such flag, since {reason}" if not reason.startswith("--") else f"there is no such flag; {reason}"
    near = difflib.get_close_matches(name, known, 1)
    return "there is no such flag" + (f"; did you mean --{near[0]}?" if near else "; see --help")
