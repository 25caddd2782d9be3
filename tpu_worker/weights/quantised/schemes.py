"""All ways to store quantised weights. The only place that names them."""

from collections.abc import Mapping
from types import MappingProxyType

from protocol.quantization_config import Storage
from tpu_worker.weights.quantised import awq, float8, gptq, int8, packed
from tpu_worker.weights.quantised.tensors import Scheme

SCHEMES: Mapping[Storage, Scheme] = MappingProxyType({"float8": float8, "int8": int8, "packed": packed, "awq": awq, "gptq": gptq})
NARROW_TYPES = ("F8_E4M3", "F8_E5M2", "I8", "U8")  # of tensors "weight" that are no weights by themselves
# Names of tensors, within modules, that no module has whose weight is stored in floats.
TENSORS = frozenset(name for scheme in SCHEMES.values() for name in (scheme.WEIGHT, *scheme.BESIDE)) - {"weight"}
# Of activations and of the KV cache, which are not quantised here.
LEFT_OUT = (
    "input_scale",
    "input_zero_point",
    "activation_scale",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
    "q_scale",
    "k_zero_point",
    "v_zero_point",
    "kv_scale",
    "prob_scale",
    "prob_output_scale",
)
