"""The flags of `engine-launch`: one table, read from the command line and from a TOML file under the same names.

`engine-aot` has these, too, with others of its own.
"""

import argparse
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from frontend.launcher.habits import explain_unknown
from frontend.launcher.values import (
    Parser,
    api_key,
    choice,
    host,
    host_names,
    integer,
    number,
    origin,
    power_of_two,
    shown,
    size,
    text,
)
from frontend.tools import REASONING_PARSERS, TOOL_PARSERS
from protocol.config import EngineConfig, SimulatedTimes
from protocol.errors import ConfigError
from protocol.quantization_config import METHODS
from protocol.request_ids import MAX_FRONTENDS

_MILLION = 1 << 20  # a bound against slips of the keyboard: no model or batch comes near
_MOST_VALUES = 64  # of one flag: they travel to the children in one packet
_LARGEST_FILE = 1 << 20  # bytes of a --config file
_SECONDS = number(0.01, 86400.0, "seconds")
_MICROSECONDS = number(0.0, 1e9, "microseconds")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `parse` None: a switch, with its `--no-` form."""

    name: str
    group: str
    help: str
    parse: Parser | None = None
    metavar: str = ""
    many: bool = False  # takes one or more values

    @property
    def key(self) -> str:
        """The name in Python."""
        return self.name.replace("-", "_")


FLAGS = (
    Flag(
        "model",
        "model",
        "demo (default), a directory, FILE.gguf, or of the Hugging Face hub owner/name, owner/name:Q4_K_M, owner/name/FILE.gguf",
        text,
        "MODEL",
    ),
    Flag("revision", "model", "branch, tag or commit of a model of the Hugging Face hub (main)", text, "REVISION"),
    Flag("download-dir", "model", "where models are downloaded to ($HF_HUB_CACHE, or hub in $HF_HOME)", text, "DIR"),
    Flag("served-model-name", "model", "names that clients may use; the first is shown", text, "NAME", many=True),
    Flag("max-model-len", "model", "tokens of prompt and output together (the model's own limit)", integer(2, _MILLION), "N"),
    Flag(
        "load-format",
        "model",
        "auto: weights come from the model's files; dummy: they are random, and none need be there",
        choice("auto", "dummy", "safetensors", "gguf"),
        "auto|dummy",
    ),
    Flag(
        "quantization",
        "model",
        "auto: weights as the file has them; none: in bfloat16; int8: in 8 bits, on a CPU in blocks, elsewhere with a scale for "
        "each output; fp8: likewise, as FP8 (e4m3), not on a CPU",
        # The last, which say what the files hold, are for command lines of vLLM.
        choice("auto", "none", "int8", "fp8", *sorted({*METHODS} - {"fp8"})),
        "auto|none|int8|fp8",
    ),
    Flag(
        "dtype",
        "model",
        "what is not in blocks of few bits is kept in and computed with; auto: float32 for small models, else bfloat16",
        choice("auto", "bfloat16", "half", "float16", "float", "float32"),
        "auto|bfloat16|float32",
    ),
    Flag(
        "pooling",
        "model",
        "how embeddings are pooled; auto: as the model's files say, else of the last token",
        choice("auto", "last", "mean"),
        "auto|last|mean",
    ),
    Flag("matryoshka", "model", "embeddings may be shortened by `dimensions` (as the model's config.json says)"),
    Flag("seed", "model", "draws the seeds of requests without one, so that a run can be repeated", integer(0, 2**63 - 1), "N"),
    Flag("workers", "devices", "data-parallel replicas", integer(1, 1024), "N"),
    Flag("tensor-parallel-size", "devices", "chips in each worker", integer(1, 256), "T"),
    Flag(
        "hosts",
        "devices",
        "hosts over which the one worker extends, with commas between them; as on all of them",
        host_names,
        "HOSTS",
        many=True,
    ),
    Flag("host-rank", "devices", "which of the hosts this one is; 0, the first, serves", integer(0, 255), "R"),
    Flag(
        "hosts-port", "devices", "first of three TCP ports of the first host, where the others meet it", integer(1, 65533), "PORT"
    ),
    Flag("hosts-token-file", "devices", "file with a secret that all hosts have and nobody else", text, "FILE"),
    Flag("device", "devices", "what the workers run on", choice("auto", "cpu", "tpu", "cuda", "sim"), "auto|cpu|tpu|cuda|sim"),
    Flag("compilation-cache", "devices", "where compiled programs are kept; --no-compilation-cache: nowhere", text, "DIR"),
    Flag("compiled", "devices", "directory of programs that engine-aot --save or --save-compiled wrote, to load", text, "DIR"),
    Flag("save-compiled", "devices", "directory in which compiled programs are put, for --compiled", text, "DIR"),
    Flag("kv-cache-memory", "devices", "KV cache per worker, such as 512M or 2GiB (from the memory that is there)", size, "BYTES"),
    Flag(
        "gpu-memory-utilization",
        "devices",
        "share of the device's memory, on the CPU of the host's, that may be in use once weights and KV cache are there",
        number(0.01, 1.0, "parts of the whole"),
        "F",
    ),
    Flag("queue-depth", "scheduling", "steps in flight per worker; 1 is synchronous", integer(1, 16), "D"),
    Flag("async-scheduling", "scheduling", "depth 2; --no-async-scheduling: depth 1"),
    Flag("max-num-seqs", "scheduling", "requests that run at once in a worker", integer(1, 65536), "N"),
    Flag("max-num-batched-tokens", "scheduling", "tokens in one step", integer(1, _MILLION), "N"),
    Flag(
        "kv-cache-dtype",
        "scheduling",
        "what keys and values are kept as; auto: as --dtype says; fp8 (e4m3), fp8_e5m2, and int8 with a scale for each let twice "
        "as many tokens fit, not on a CPU",
        choice("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "int8"),
        "auto|bfloat16|fp8|fp8_e5m2|int8",
    ),
    Flag("block-size", "scheduling", "tokens in a KV block", power_of_two(1, 1024), "N"),
    Flag("enable-prefix-caching", "scheduling", "keep the KV blocks of shared prefixes (on)"),
    Flag(
        "scheduling-policy",
        "scheduling",
        "fcfs: in the order of arrival; priority: HTTP clients may set the `priority` of their requests",
        choice("fcfs", "priority"),
        "fcfs|priority",
    ),
    Flag("step-timeout", "scheduling", "seconds without progress that a worker, or any main loop, may take", _SECONDS, "S"),
    Flag("pulse-timeout", "scheduling", "seconds that a process may be stopped by a signal", _SECONDS, "S"),
    Flag("max-restarts", "scheduling", "restarts of scheduler or frontend in a minute before giving up", integer(0, _MILLION), "N"),
    Flag("restart-delay", "scheduling", "seconds before a worker that dies again restarts; doubles, up to 30 times", _SECONDS, "S"),
    Flag("boot-timeout", "scheduling", "seconds without progress while a process loads or compiles", _SECONDS, "S"),
    Flag("host", "serving", "HTTP address", text, "ADDRESS"),
    Flag("port", "serving", "HTTP port; 0 takes a free one", integer(0, 65535), "PORT"),
    Flag("frontends", "serving", "processes that share the HTTP port and the work of text", integer(1, MAX_FRONTENDS), "M"),
    Flag("ipc", "serving", "socket for the Python client ($ENGINE_SOCKET, or in the user's runtime directory)", text, "PATH"),
    Flag(
        "api-key",
        "serving",
        "accepted API keys; unlike $ENGINE_API_KEY, they show in `ps`",
        api_key,
        "KEY",
        many=True,
    ),
    Flag("api-key-file", "serving", "file with one accepted API key per line", text, "FILE"),
    Flag("allowed-origins", "serving", "web pages that may read answers (CORS); * for all", origin, "ORIGIN", many=True),
    Flag("allow-credentials", "serving", "let browsers send cookies from these pages, for a proxy that asks for them (off)"),
    Flag("ui", "serving", "a page at / that shows the engine at work (on)"),
    Flag("allowed-hosts", "serving", "names that are answered to besides local ones; * for all", host, "HOST", many=True),
    Flag(
        "stream-keep-alive",
        "serving",
        "seconds of silence before a comment goes into a stream; 0: never",
        number(0.0, 3600.0, "seconds"),
        "S",
    ),
    Flag(
        "tool-call-parser",
        "serving",
        "how the model writes calls of tools; auto: as its chat template tells",
        choice("auto", *TOOL_PARSERS),
        "NAME",
    ),
    Flag("enable-auto-tool-choice", "serving", "for command lines of vLLM: tools are always the model's to call, where it may"),
    Flag(
        "reasoning-parser",
        "serving",
        "how the model marks thoughts; auto: as its chat template tells; none: they are left in the text",
        choice("auto", "none", *REASONING_PARSERS),
        "NAME",
    ),
    Flag(
        "generation-config",
        "model",
        "whose sampling parameters requests without them get: the model's (auto), nobody's (none), or those of a directory",
        text,
        "auto|none|DIR",
    ),
    Flag("override-generation-config", "model", "sampling parameters in place of those, as a JSON object", text, "JSON"),
    Flag("otlp-traces-endpoint", "serving", "collector that takes OpenTelemetry spans of requests over HTTP", text, "URL"),
    Flag("shared-prefix-cache", "serving", "let the holders of different API keys find each other's prefixes in the cache (off)"),
    Flag("strict-max-tokens", "serving", "refuse a max_tokens beyond the context, as OpenAI does, instead of clipping it (off)"),
    Flag("log-format", "logging", "lines for people, or JSON objects", choice("human", "json"), "human|json"),
    Flag("log-level", "logging", "info: with a line for each request", choice("debug", "info", "warning", "error"), "LEVEL"),
    Flag("log-prompts", "logging", "each request's line says what was asked (off)"),
    Flag("drain-timeout", "serving", "seconds that running requests get after SIGTERM", number(0.0, 86400.0, "seconds"), "S"),
    Flag("sim-report", "simulated device", "file of engine-aot --json: the times of the chip that it is of", text, "FILE"),
    Flag("sim-prefill-us-per-token", "simulated device", "microseconds", _MICROSECONDS, "US"),
    Flag("sim-decode-us", "simulated device", "microseconds of each step that decodes", _MICROSECONDS, "US"),
    Flag("sim-decode-us-per-seq", "simulated device", "microseconds per decoding request", _MICROSECONDS, "US"),
)
_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)} | {
    f"sim_{field.name}": field.default for field in msgspec.structs.fields(SimulatedTimes)
}


@dataclass(frozen=True, slots=True)
class Command:
    """A program that takes these flags."""

    name: str
    description: str
    flags: tuple[Flag, ...] = FLAGS
    hidden: frozenset[str] = frozenset()  # flags, by Python name, that are taken, and of which the help says nothing
    epilog: str = ""
    checks: bool = False  # there is `--check`

    @property
    def by_name(self) -> dict[str, Flag]:
        """The flags."""
        return {flag.name: flag for flag in self.flags}


LAUNCH = Command("engine-launch", "Starts a twodeep engine.", checks=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def read_flags(arguments: Sequence[str], command: Command = LAUNCH) -> dict[str, object]:
    """The checked values that were given, by Python name; a flag wins over the `--config` file.

    `--help` and `--version` print and raise SystemExit. Raises ConfigError naming flag, value and what would be right.
    """
    parser = _Parser(
        prog=command.name,
        description=command.description,
        epilog=command.epilog,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("words", metavar="MODEL", nargs="*", help="the model; `serve` before it says nothing")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    if command.checks:
        check_help = "say what a start would find here, and what would stop it, and leave"
        parser.add_argument("--check", action="store_true", help=check_help)
    parser.add_argument("--config", metavar="FILE.toml", help="flags by their names here, without the dashes in front")
    shown_groups = (flag.group for flag in command.flags if flag.key not in command.hidden)
    groups = {name: parser.add_argument_group(name) for name in dict.fromkeys(shown_groups)}
    for flag in command.flags:
        default = _DEFAULTS.get(flag.key)
        text_of_default = f" ({default})" if default not in (None, "", msgspec.NODEFAULT, (), True, False) else ""
        options: dict[str, object] = {"help": (flag.help + text_of_default).replace("%", "%%")}
        if flag.parse is None:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"metavar": flag.metavar} | ({"nargs": "+"} if flag.many else {})
        if flag.key in command.hidden:
            options["help"] = argparse.SUPPRESS
        groups.get(flag.group, parser).add_argument(f"--{flag.name}", **options)  # type: ignore[arg-type]
    no_cache = {"action": "store_const", "const": "", "dest": "compilation_cache", "help": argparse.SUPPRESS}
    parser.add_argument("--no-compilation-cache", **no_cache)  # type: ignore[arg-type]
    given = vars(parser.parse_intermixed_args(arguments))
    words = given.pop("words", [])
    if given.pop("version", False):
        from importlib.metadata import version  # 20 ms that only this flag needs

        print(f"twodeep {version('twodeep')}")
        raise SystemExit(0)
    given.pop("check", None)  # `frontend.launcher.__main__` acts on it
    values = _read_file(given.pop("config"), command) if "config" in given else {}
    for key, raw in given.items():
        flag = command.by_name[key.replace("_", "-")]
        off = flag.name == "compilation-cache" and raw == "" and "--no-compilation-cache" in arguments
        values[key] = "" if off else _check(flag, raw, f"--{flag.name}")
    return values | _model(words[1:] if words[:1] == ["serve"] else words, values.get("model"), command)


def flag_names(command: Command = LAUNCH) -> frozenset[str]:
    """Everything that may stand on the command line, without the dashes in front."""
    switches = (f"no-{flag.name}" for flag in command.flags if flag.parse is None)
    others = ("check",) if command.checks else ()
    return frozenset((*command.by_name, *switches, *others, "no-compilation-cache", "config", "help", "version"))


def _model(words: Sequence[str], flag: object, command: Command) -> dict[str, object]:
    """The model, if it stands there without its flag."""
    if not words:
        return {}
    if len(words) > 1 or flag not in (None, words[0]):
        others = [word for word in words if word != flag]
        known = f" beside --model {flag}" if flag is not None else ""
        raise ConfigError(f"{shown(' '.join(others))}{known}: one MODEL is wanted; see {command.name} --help")
    return {"model": _check(command.by_name["model"], words[0], "MODEL")}


def _read_file(path: str, command: Command) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
        if len(data) > _LARGEST_FILE:
            raise ConfigError(f"--config {path}: more than {_LARGEST_FILE} bytes: a TOML file with flags is wanted")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOML or UTF-8
        raise ConfigError(f"--config {path}: not a TOML file: {error}") from error
    values: dict[str, object] = {}
    for name, raw in table.items():
        flag = command.by_name.get(name.replace("_", "-"))
        if flag is None:
            raise ConfigError(f"{path}: {shown(name)}: {explain_unknown(name.replace('_', '-'), command.by_name)}")
        off = flag.name == "compilation-cache" and raw is False
        values[flag.key] = "" if off else _check(flag, raw, f"{path}: {name} =")
    return values


def _check(flag: Flag, raw: object, where: str) -> object:
    if flag.parse is None:
        if not isinstance(raw, bool):
            raise ConfigError(f"{where} {shown(repr(raw))}: true or false is wanted")
        return raw
    if flag.many:
        items = [part for item in (raw if isinstance(raw, list) else [raw]) for part in _spread(item)]
        if len(items) > _MOST_VALUES:
            raise ConfigError(f"{where}: at most {_MOST_VALUES} values are possible")
        return tuple(_check_one(flag.parse, item, where) for item in items)
    return _check_one(flag.parse, raw, where)


def _spread(item: object) -> list[object]:
    """The values of a list in JSON, which is how some tools write several; anything else is one."""
    try:
        return list(msgspec.json.decode(item, type=list[str])) if isinstance(item, str) and item.startswith('["') else [item]
    except (msgspec.DecodeError, UnicodeEncodeError):
        return [item]


def _check_one(parse: Parser, raw: object, where: str) -> object:
    try:
        given = raw if isinstance(raw, str) else str(raw)
    except ValueError:  # TOML's hexadecimal numbers may have more digits than Python writes
        given = "(a number of very many digits)"
    scalar = isinstance(raw, (str, int, float)) and not isinstance(raw, bool)
    try:
        return parse(given if scalar else "")
    except ValueError as error:
        raise ConfigError(f"{where} {shown(given)}: {error}") from error
