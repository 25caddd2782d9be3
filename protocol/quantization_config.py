"""What `quantization_config` of a config.json says of the weights: which modules hold them in few bits, and how.

Formats: compressed-tensors (its `config_groups`), `fp8` (DeepSeek, Qwen), AWQ, GPTQ, and `mxfp4`, of which the tensors' names tell.
How activations and the KV cache were meant to be quantised is no matter here: they are not.
"""

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from protocol.errors import ModelError

FIELD = "quantization_config"
_OLDER_FIELD = "compression_config"  # of compressed-tensors
METHODS = ("compressed-tensors", "fp8", "awq", "gptq", "mxfp4")
_OUT = "take the unquantised model, another quantisation of it, or a GGUF file"
_LARGEST = 1 << 20  # inputs that share a scale

# "float8" and "int8": numbers of a byte each; "packed": several in an int32, along the inputs, as compressed-tensors has them;
# "awq" and "gptq": as these have them.
Storage: TypeAlias = Literal["float8", "int8", "packed", "awq", "gptq"]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weight [out, in] of a module is stored."""

    storage: Storage
    bits: int
    outputs: int | None  # that share a scale; None: all
    inputs: int | None  # likewise
    symmetric: bool = True  # there are no zero points
    reordered: bool = False  # which inputs share a scale is said by a tensor
    zero_offset: int = 0  # what is added to zero points as they are stored


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Of one checkpoint."""

    path: Path
    method: str
    rules: tuple[tuple[re.Pattern[str], WeightFormat | None], ...]  # names of modules; the first that matches decides

    def format_of(self, *names: str) -> WeightFormat | None:
        """Of the weight of a module, by the names that it has; None: it is not quantised."""
        for pattern, found in self.rules:
            if any(pattern.match(name) for name in names):
                return found
        return None


def read_quantization(path: Path, fields: Mapping[str, Any]) -> QuantizationConfig | None:
    """None where no weights are quantised. Raises ModelError on what is not supported."""
    raw = fields.get(FIELD) or fields.get(_OLDER_FIELD)
    if not raw:
        return None
    config = _Fields(path, raw)
    method = config.get("quant_method", str, "compressed-tensors" if "config_groups" in config.values else "")
    if not method:
        raise config.refused("quant_method", None, METHODS)
    if method not in METHODS:
        raise config.refused("quant_method", method, METHODS)
    if method == "mxfp4":
        return QuantizationConfig(path, method, ())
    read = {"compressed-tensors": _compressed_tensors, "fp8": _fp8, "awq": _awq, "gptq": _gptq}[method]
    return QuantizationConfig(path, method, tuple(read(config)))


_Rules: TypeAlias = list[tuple[re.Pattern[str], WeightFormat | None]]
_ANY = re.compile("")  # matches every name: modules in few bits are "Linear", which is what all weights here are of


class _Fields:
    """An object of the config, with its complaints."""

    def __init__(self, path: Path, values: object, where: str = FIELD) -> None:
        self.path, self.where = path, where
        if not isinstance(values, dict):
            raise ModelError(f"{path}: {where} is {reprlib.repr(values)}, an object is wanted")
        self.values: Mapping[str, Any] = values

    def get(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """A field, or the default where it is missing or null. Raises ModelError when it is of another type."""
        value = self.values.get(name)
        if value is None:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ModelError(f"{self.path}: {self.where}.{name} is {reprlib.repr(value)}, {kinds[0].__name__} is wanted")
        return value

    def one_of(self, name: str, kind: type, allowed: Sequence[object], default: Any) -> Any:
        value = self.get(name, kind, default)
        if value not in allowed:
            raise self.refused(name, value, allowed)
        return value

    def names(self, *fields: str) -> list[str]:
        """A list of modules, under any of these names."""
        found: list[str] = []
        for field in fields:
            names = self.get(field, list, [])
            if not all(isinstance(name, str) for name in names):
                raise ModelError(f"{self.path}: {self.where}.{field} is {reprlib.repr(names)}, a list of names is wanted")
            found += names
        return found

    def group_size(self, name: str, default: int | None) -> int | None:
        """Inputs that share a scale; None: all."""
        size = self.get(name, int, default)
        if size is None or size == -1:
            return None
        if not 1 <= size <= _LARGEST:
            raise ModelError(f"{self.path}: {self.where}.{name} is {size}, at least 1 is wanted, or -1 for all inputs")
        return int(size)

    def pattern(self, name: str, text: str) -> re.Pattern[str]:
        try:
            return re.compile(text)
        except re.error as error:
            raise ModelError(f"{self.path}: {self.where}.{name}: {reprlib.repr(text)} is no regular expression: {error}") from error

    def refused(self, name: str, value: object, allowed: Sequence[object]) -> ModelError:
        """The error of a value that is not supported."""
        what = "is missing" if value is None else f"{reprlib.repr(value)} is not supported"
        return ModelError(f"{self.path}: {self.where}.{name} {what}, only {', '.join(map(str, allowed))}: {_OUT}")


def _compressed_tensors(config: _Fields) -> _Rules:
    sparsity = _Fields(config.path, config.get("sparsity_config", dict, {}), f"{config.where}.sparsity_config")
    sparsity.one_of("format", str, ("dense",), "dense")
    transforms = _Fields(config.path, config.get("transform_config", dict, {}), f"{config.where}.transform_config")
    if transforms.get("config_groups", dict, {}):
        raise ModelError(f"{config.path}: {transforms.where}: weights that are rotated at run time are not supported: {_OUT}")
    rules: _Rules = [(_compressed_name(config, "ignore", name), None) for name in config.names("ignore")]
    whole = config.get("format", str, None)
    for key, raw in config.get("config_groups", dict, {}).items():
        group = _Fields(config.path, raw, f"{config.where}.config_groups.{key}")
        if group.values.get("weights") is None:
            continue
        weights = _Fields(config.path, group.values["weights"], f"{group.where}.weights")
        format_, where = (group.get("format", str, None), group) if group.values.get("format") else (whole, config)
        found = _compressed_weight(weights, format_, where, bool(group.values.get("input_activations")))
        rules += [(_compressed_name(group, "targets", name), found) for name in group.names("targets")]
    return rules


def _compressed_name(config: _Fields, field: str, name: str) -> re.Pattern[str]:
    if name == "Linear":
        return _ANY
    return config.pattern(field, name[3:] if name.startswith("re:") else rf"{re.escape(name)}\Z")


def _compressed_weight(weights: _Fields, format_: str | None, where: _Fields, with_activations: bool) -> WeightFormat | None:
    known = ("int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision", "dense", None)
    if format_ not in known:
        raise where.refused("format", format_, known[:4])
    if format_ == "dense":
        return None
    kind = weights.one_of("type", str, ("int", "float"), "int")
    bits = weights.one_of("num_bits", int, (8,) if kind == "float" else (4, 8), 8)
    strategy = weights.one_of("strategy", str, ("tensor", "channel", "group", "block"), "tensor")
    size = weights.group_size("group_size", None)
    if strategy == "group" and size is None:
        raise ModelError(f"{weights.path}: {weights.where}.group_size is missing, though its strategy is 'group'")
    shape: tuple[int | None, int | None] = (None, None) if strategy == "tensor" else (1, size if strategy == "group" else None)
    if strategy == "block":
        shape = _block(weights, "block_structure")
    storage: Storage = "float8"
    if kind == "int":
        packs = format_ == "pack-quantized" or (format_ in ("mixed-precision", None) and (bits < 8 or not with_activations))
        storage = "packed" if packs else "int8"
    elif format_ == "pack-quantized":
        raise where.refused("format", format_, ("float-quantized",))
    symmetric = weights.get("symmetric", bool, True)
    reordered = weights.get("actorder", (str, bool), None) in ("group", True)
    return WeightFormat(storage, bits, *shape, symmetric or kind == "float", reordered)


def _block(config: _Fields, name: str) -> tuple[int, int]:
    value = config.values.get(name)
    if isinstance(value, str):  # "128x128"
        value = [int(part) for part in re.findall(r"\d{1,7}", value)]
    if not isinstance(value, list) or len(value) != 2 or not all(type(one) is int and 1 <= one <= _LARGEST for one in value):
        raise ModelError(f"{config.path}: {config.where}.{name} is {reprlib.repr(value)}, outputs and inputs of a block are wanted")
    return value[0], value[1]


def _fp8(config: _Fields) -> _Rules:
    config.one_of("fmt", str, ("e4m3", "float8_e4m3fn"), "e4m3")
    shape = (None, None) if config.values.get("weight_block_size") is None else _block(config, "weight_block_size")
    return [*_left_out(config, "modules_to_not_convert", "ignored_layers"), (_ANY, WeightFormat("float8", 8, *shape))]


def _awq(config: _Fields) -> _Rules:
    bits = config.one_of("bits" if "bits" in config.values else "w_bit", int, (4,), 4)
    version = config.get("version", str, "gemm")
    if version.lower() != "gemm":
        raise config.refused("version", version, ("gemm",))
    if (layout := config.get("checkpoint_format", str, "gemm")).lower() != "gemm":
        raise config.refused("checkpoint_format", layout, ("gemm",))
    if (backend := config.get("backend", str, "autoawq")) == "llm-awq":
        raise config.refused("backend", backend, ("autoawq",))
    config.one_of("zero_point", bool, (True,), True)
    size = config.group_size("group_size" if "group_size" in config.values else "q_group_size", 128)
    found = WeightFormat("awq", bits, 1, size, symmetric=False)
    return [*_left_out(config, "modules_to_not_convert"), (_ANY, found)]


def _gptq(config: _Fields) -> _Rules:
    if config.get("is_marlin_format", bool, False):
        raise config.refused("is_marlin_format", True, (False,))
    default = _gptq_weight(config, None)
    rules: _Rules = []
    for pattern, raw in config.get("dynamic", dict, {}).items():  # of modules that differ: "-:…", which are not quantised
        own = _Fields(config.path, raw, f"{config.where}.dynamic.{pattern}")
        form = None if pattern.startswith("-:") else _gptq_weight(own, config)
        rules.append((config.pattern("dynamic", pattern.removeprefix("-:").removeprefix("+:")), form))
    if not config.get("lm_head", bool, False):
        rules.append((re.compile(r"(.*\.)?lm_head\Z"), None))
    return [*rules, *_left_out(config, "modules_to_not_convert"), (_ANY, default)]


def _gptq_weight(config: _Fields, whole: _Fields | None) -> WeightFormat:
    """`whole`: whose fields hold where this one has none."""
    fields = _Fields(config.path, {**(whole.values if whole else {}), **config.values}, config.where)
    version = fields.one_of("checkpoint_format", str, ("gptq", "gptq_v2"), "gptq")
    bits = fields.one_of("bits", int, (4, 8), None)
    reordered = fields.get("desc_act", bool, False)
    offset = 1 if version == "gptq" else 0
    return WeightFormat("gptq", bits, 1, fields.group_size("group_size", 128), False, reordered, offset)


def _left_out(config: _Fields, *fields: str) -> _Rules:
    """Modules that are not quantised: by name, by the last or first parts of one, or by an expression, as transformers has it."""
    rules: _Rules = []
    for name in config.names(*fields):
        rules.append((re.compile(rf"(?:.*\.)?{re.escape(name.strip('.'))}(?:\.|\Z)"), None))
        if re.search(r"[*+?\[\](){}|^$\\]", name):
            rules.append((config.pattern(fields[0], rf"(?:{name.removeprefix('re:')})(?:(?<=\.)|(?=\.|\Z))"), None))
    return rules
