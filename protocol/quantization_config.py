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
class Names:
    """Modules of these names."""

    names: frozenset[str]
    parts: bool  # … or that have one of them among the parts of theirs, next to each other

    def matches(self, name: str) -> bool:
        """Whether this is one of them. Lists may be long, and modules many."""
        if name in self.names or not self.parts:
            return name in self.names
        parts = name.split(".")
        return any(
            ".".join(parts[first:last]) in self.names for first in range(len(parts)) for last in range(first + 1, len(parts) + 1)
        )


@dataclass(frozen=True, slots=True)
class Expression:
    """Modules whose names begin so."""

    pattern: re.Pattern[str]

    def matches(self, name: str) -> bool:
        """Whether this is one of them."""
        return self.pattern.match(name) is not None


Rule: TypeAlias = tuple[Names | Expression, WeightFormat | None]


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Of one checkpoint."""

    path: Path
    method: str
    rules: tuple[Rule, ...]  # the first that matches decides

    def format_of(self, *names: str) -> WeightFormat | None:
        """Of the weight of a module, by the names that it has; None: it is not quantised."""
        for modules, found in self.rules:
            if any(modules.matches(name) for name in names):
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


_ANY = Expression(re.compile(""))  # modules in few bits are "Linear", which is what all weights here are of


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

    def expression(self, name: str, text: str) -> Expression:
        try:
            return Expression(re.compile(text))
        except re.error as error:
            raise ModelError(f"{self.path}: {self.where}.{name}: {reprlib.repr(text)} is no regular expression: {error}") from error

    def refused(self, name: str, value: object, allowed: Sequence[object]) -> ModelError:
        """The error of a value that is not supported."""
        what = "is missing" if value is None else f"{reprlib.repr(value)} is not supported"
        return ModelError(f"{self.path}: {self.where}.{name} {what}, only {', '.join(map(str, allowed))}: {_OUT}")


def _compressed_tensors(config: _Fields) -> list[Rule]:
    sparsity = _Fields(config.path, config.get("sparsity_config", dict, {}), f"{config.where}.sparsity_config")
    sparsity.one_of("format", str, ("dense",), "dense")
    transforms = _Fields(config.path, config.get("transform_config", dict, {}), f"{config.where}.transform_config")
    if transforms.get("config_groups", dict, {}):
        raise ModelError(f"{config.path}: {transforms.where}: weights that are rotated at run time are not supported: {_OUT}")
    rules: list[Rule] = [(modules, None) for modules in _compressed_names(config, "ignore")]
    whole = config.get("format", str, None)
    for key, raw in config.get("config_groups", dict, {}).items():
        group = _Fields(config.path, raw, f"{config.where}.config_groups.{key}")
        if group.values.get("weights") is None:
            continue
        weights = _Fields(config.path, group.values["weights"], f"{group.where}.weights")
        format_, where = (group.get("format", str, None), group) if group.values.get("format") else (whole, config)
        found = _compressed_weight(weights, format_, where, bool(group.values.get("input_activations")))
        rules += [(modules, found) for modules in _compressed_names(group, "targets")]
    return rules


def _compressed_names(config: _Fields, field: str) -> list[Names | Expression]:
    names = config.names(field)
    found: list[Names | Expression] = [Names(frozenset(name for name in names if not name.startswith("re:")), parts=False)]
    found += [config.expression(field, name.removeprefix("re:")) for name in names if name.startswith("re:")]
    return [*found, _ANY] if "Linear" in names else found


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


def _fp8(config: _Fields) -> list[Rule]:
    config.one_of("fmt", str, ("e4m3", "float8_e4m3fn"), "e4m3")
    shape = (None, None) if config.values.get("weight_block_size") is None else _block(config, "weight_block_size")
    return [*_left_out(config, "modules_to_not_convert", "ignored_layers"), (_ANY, WeightFormat("float8", 8, *shape))]


def _awq(config: _Fields) -> list[Rule]:
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


def _gptq(config: _Fields) -> list[Rule]:
    if config.get("is_marlin_format", bool, False):
        raise config.refused("is_marlin_format", True, (False,))
    default = _gptq_weight(config, None)
    rules: list[Rule] = []
    for pattern, raw in config.get("dynamic", dict, {}).items():  # of modules that differ: "-:…", which are not quantised
        own = _Fields(config.path, raw, f"{config.where}.dynamic.{pattern}")
        form = None if pattern.startswith("-:") else _gptq_weight(own, config)
        rules.append((config.expression("dynamic", pattern.removeprefix("-:").removeprefix("+:")), form))
    if not config.get("lm_head", bool, False):
        rules.append((Names(frozenset(["lm_head"]), parts=True), None))
    return [*rules, *_left_out(config, "modules_to_not_convert"), (_ANY, default)]


def _gptq_weight(config: _Fields, whole: _Fields | None) -> WeightFormat:
    """`whole`: whose fields hold where this one has none."""
    fields = _Fields(config.path, {**(whole.values if whole else {}), **config.values}, config.where)
    version = fields.one_of("checkpoint_format", str, ("gptq", "gptq_v2"), "gptq")
    bits = fields.one_of("bits", int, (4, 8), None)
    reordered = fields.get("desc_act", bool, False)
    offset = 1 if version == "gptq" else 0
    return WeightFormat("gptq", bits, 1, fields.group_size("group_size", 128), False, reordered, offset)


def _left_out(config: _Fields, *fields: str) -> list[Rule]:
    """Modules that are not quantised: by name, by parts of one next to each other, or by an expression, as transformers has it."""
    names = config.names(*fields)
    rules: list[Rule] = [(Names(frozenset(name.strip(".") for name in names), parts=True), None)]
    for name in names:
        if re.search(r"[*+?\[\](){}|^$\\]", name):
            rules.append((config.expression(fields[0], rf"(?:{name.removeprefix('re:')})(?:(?<=\.)|(?=\.|\Z))"), None))
    return rules
