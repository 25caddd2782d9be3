"""What `quantization_config` says of weights, and what of it is refused by name."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ModelError
from protocol.quantization_config import METHODS, QuantizationConfig, WeightFormat, read_quantization

PATH = Path("m/config.json")
WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
GROUP = {"targets": ["Linear"], "weights": WEIGHTS}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": GROUP}}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def read(config: Any) -> QuantizationConfig | None:
    return read_quantization(PATH, {"quantization_config": config})


def form_of(config: Any, *names: str) -> WeightFormat | None:
    found = read(config)
    assert found is not None
    return found.format_of(*names)


def test_nothing_is_quantised_unless_the_config_says_so() -> None:
    assert read_quantization(PATH, {}) is None
    assert read(None) is None
    found = read({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})  # whose tensors have names of their own
    assert found is not None
    assert (found.method, found.rules) == ("mxfp4", ())


def test_what_each_method_means() -> None:
    name = "model.layers.0.mlp.up_proj"
    assert form_of(COMPRESSED, name) == WeightFormat("packed", 4, 1, 128)
    assert read_quantization(PATH, {"compression_config": {**COMPRESSED, "quant_method": None}}) == read(COMPRESSED)
    assert form_of(AWQ, name) == WeightFormat("awq", 4, 1, 64, symmetric=False)
    assert form_of({"quant_method": "awq", "w_bit": 4, "q_group_size": -1}, name) == WeightFormat(
        "awq", 4, 1, None, symmetric=False
    )
    assert form_of(GPTQ, name) == WeightFormat("gptq", 4, 1, 128, symmetric=False, zero_offset=1)
    second = {**GPTQ, "checkpoint_format": "gptq_v2", "desc_act": True, "bits": 8}
    assert form_of(second, name) == WeightFormat("gptq", 8, 1, 128, symmetric=False, reordered=True)
    assert form_of({"quant_method": "fp8"}, name) == WeightFormat("float8", 8, None, None)
    assert form_of({"quant_method": "fp8", "weight_block_size": [128, 64]}, name) == WeightFormat("float8", 8, 128, 64)


def compressed(weights: dict[str, Any], format_: str | None, **group: Any) -> dict[str, Any]:
    return {**COMPRESSED, "format": format_, "config_groups": {"g": {**GROUP, **group, "weights": weights}}}


@pytest.mark.parametrize(
    ("weights", "format_", "group", "found"),
    [
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, "float-quantized", {}, WeightFormat("float8", 8, None, None)),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, "naive-quantized", {}, WeightFormat("float8", 8, 1, None)),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "128x128"},
            "float-quantized",
            {},
            WeightFormat("float8", 8, 128, 128),
        ),
        ({"num_bits": 8, "strategy": "channel"}, "int-quantized", {}, WeightFormat("int8", 8, 1, None)),
        ({"num_bits": 8, "strategy": "channel"}, "pack-quantized", {}, WeightFormat("packed", 8, 1, None)),
        (
            {**WEIGHTS, "symmetric": False, "actorder": "group"},
            "pack-quantized",
            {},
            WeightFormat("packed", 4, 1, 128, symmetric=False, reordered=True),
        ),
        ({**WEIGHTS, "actorder": "weight"}, "pack-quantized", {}, WeightFormat("packed", 4, 1, 128)),
        (WEIGHTS, "mixed-precision", {}, WeightFormat("packed", 4, 1, 128)),
        (
            {"num_bits": 8, "strategy": "channel"},
            "mixed-precision",
            {"input_activations": {"x": 1}},
            WeightFormat("int8", 8, 1, None),
        ),
        (
            {"num_bits": 8, "strategy": "channel"},
            "mixed-precision",
            {"format": "pack-quantized"},
            WeightFormat("packed", 8, 1, None),
        ),
        (WEIGHTS, "dense", {}, None),
        (None, "pack-quantized", {}, None),
    ],
)
def test_what_compressed_tensors_means(
    weights: dict[str, Any], format_: str, group: dict[str, Any], found: WeightFormat | None
) -> None:
    assert form_of(compressed(weights, format_, **group), "model.layers.0.mlp.up_proj") == found


def test_modules_are_told_by_name_or_expression() -> None:
    other = {"targets": ["re:.*down_proj$", "model.layers.1.mlp.up_proj"], "weights": {**WEIGHTS, "group_size": 32}}
    config = {
        **COMPRESSED,
        "ignore": ["lm_head", "re:.*\\.gate$", "model.layers.0.mlp.up_proj"],
        "config_groups": {"first": other, "second": GROUP},
    }
    sizes = {"model.layers.0.mlp.down_proj": 32, "model.layers.1.mlp.up_proj": 32, "model.layers.1.mlp.gate_proj": 128}
    for name, size in sizes.items():
        assert form_of(config, name) == WeightFormat("packed", 4, 1, size)
    for name in ("lm_head", "model.layers.3.mlp.gate", "model.layers.0.mlp.up_proj"):
        assert form_of(config, name) is None
    assert form_of(config, "model.lm_head") is not None
    assert form_of(config, "model.layers.9.x", "model.language_model.layers.9.mlp.gate") is None  # by either name


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("lm_head", ["lm_head", "model.lm_head"], ["lm_head_2"]),
        ("model.layers.1", ["model.layers.1.mlp.up_proj"], ["model.layers.11.mlp.up_proj"]),
        ("mlp.gate", ["model.layers.0.mlp.gate"], ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.experts.0.gate_proj"]),
        ("o_proj", ["model.layers.0.self_attn.o_proj"], ["model.layers.0.self_attn.xo_proj"]),
        ("model.layers.*.self_attn", ["model.layers.7.self_attn.q_proj"], ["model.layers.7.mlp.up_proj"]),
    ],
)
@pytest.mark.parametrize("config", [AWQ, GPTQ, {"quant_method": "fp8"}])
def test_modules_that_are_not_converted(config: dict[str, Any], pattern: str, matches: list[str], others: list[str]) -> None:
    left_out = {**config, "modules_to_not_convert": [pattern]}
    assert all(form_of(left_out, name) is None for name in matches)
    assert all(form_of(left_out, name) is not None for name in others)


def test_modules_that_differ() -> None:
    config = {**GPTQ, "dynamic": {"-:.*mlp": {}, "+:.*q_proj": {"bits": 8, "group_size": 32}, ".*k_proj": {"desc_act": True}}}
    assert form_of(config, "a.mlp.up_proj") is None
    assert form_of(config, "a.q_proj") == WeightFormat("gptq", 8, 1, 32, symmetric=False, zero_offset=1)
    assert form_of(config, "a.k_proj") == WeightFormat("gptq", 4, 1, 128, symmetric=False, reordered=True, zero_offset=1)
    assert form_of(config, "lm_head") is None
    assert form_of({**config, "lm_head": True}, "lm_head") is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        *(({"quant_method": name}, f"quant_method '{name}' is not supported, only compressed-tensors, fp8, awq, gptq, mxfp4: ")
          for name in ("bitsandbytes", "hqq", "aqlm", "modelopt", "torchao", "exl2", "auto-round", "fbgemm_fp8")),
        ({"load_in_4bit": True}, "quant_method is missing, only compressed-tensors"),
        ({"quant_method": 7}, "quant_method is 7, str is wanted"),
        ([1], r"quantization_config is \[1\], an object is wanted"),
        ({**AWQ, "bits": 8}, "bits 8 is not supported, only 4: take the unquantised model"),
        ({**AWQ, "bits": "4"}, "bits is '4', int is wanted"),
        ({**AWQ, "version": "gemv"}, "version 'gemv' is not supported, only gemm"),
        ({**AWQ, "zero_point": False}, "zero_point False is not supported, only True"),
        ({**AWQ, "group_size": 0}, "group_size is 0, at least 1 is wanted, or -1"),
        ({**AWQ, "modules_to_not_convert": [1]}, r"modules_to_not_convert is \[1\], a list of names is wanted"),
        ({**GPTQ, "bits": 3}, "bits 3 is not supported, only 4, 8"),
        ({**GPTQ, "bits": None}, "bits is missing, only 4, 8"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported, only gptq, gptq_v2"),
        ({**GPTQ, "is_marlin_format": True}, "is_marlin_format True is not supported"),
        ({**GPTQ, "dynamic": {"+:(": {}}}, r"dynamic: '\(' is no regular expression"),
        ({**GPTQ, "dynamic": {"+:a": {"bits": 2}}}, r"quantization_config\.dynamic\.\+:a\.bits 2 is not supported"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2' is not supported, only e4m3"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size is \[128\], outputs and inputs of a block"),
        ({**COMPRESSED, "format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized' is not supported, only int-quantized"),
        (compressed({"num_bits": 4, "type": "float", "strategy": "tensor_group"}, "float-quantized"), "weights.num_bits 4 is not"),
        (compressed({"num_bits": 8, "strategy": "tensor_group"}, "int-quantized"), "strategy 'tensor_group' is not supported"),
        (compressed({**WEIGHTS, "group_size": None}, "pack-quantized"), "weights.group_size is missing, though its strategy"),
        ({**COMPRESSED, "sparsity_config": {"format": "sparse-24-bitmask"}}, r"sparsity_config\.format 'sparse-24-bitmask' is not"),
        ({**COMPRESSED, "transform_config": {"config_groups": {"u": {}}}}, "transform_config: weights that are rotated"),
        ({**COMPRESSED, "ignore": ["re:*"]}, r"ignore: '\*' is no regular expression"),
        ({**COMPRESSED, "config_groups": {"g": 3}}, r"config_groups\.g is 3, an object is wanted"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(config: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as raised:
        read(config)
    assert str(raised.value).startswith("m/config.json: quantization_config")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "Linear", "re:(", "gemm", "int", "channel"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["weights", "a"]), inner, max_size=2),
    max_leaves=4,
)
FIELDS = sorted(
    {*COMPRESSED, *GROUP, *WEIGHTS, *AWQ, *GPTQ, "ignore", "dynamic", "modules_to_not_convert", "weight_block_size", "fmt"}
)
CHANGE = st.tuples(st.sampled_from(FIELDS), VALUES)


@given(st.sampled_from(METHODS), CHANGE, CHANGE)
def test_whatever_it_holds_it_is_read_or_named(method: str, first: tuple[str, Any], second: tuple[str, Any]) -> None:
    fields, weights = dict([first]), {**WEIGHTS, **dict([second])}
    config = {**GPTQ, **fields, "quant_method": method, "config_groups": {"g": {**GROUP, **fields, "weights": weights}}}
    try:
        found = read(config)
    except ModelError as error:
        assert str(error).startswith("m/config.json: ")
    else:
        assert found is not None
        found.format_of("model.layers.0.mlp.up_proj")
