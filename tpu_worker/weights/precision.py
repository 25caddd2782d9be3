"""What the floats of a model are kept in and computed with."""

import math

from protocol.config import Dtype, FloatType, Quantization
from tpu_worker.weights.source import WeightSource

# Parameters up to which "auto" takes float32, which is twice as much to read in each step as bfloat16: at most 256 MB. Models so
# small are made for tests and experiments, many with random weights, whose logits magnify roundings as no trained ones do. The
# smallest that people serve have twice as many.
MOST_PARAMETERS = 1 << 26


def choose_float_type(dtype: Dtype, quantization: Quantization, source: WeightSource) -> FloatType:
    """float32 if told so, or, if nothing is told, for small models. Weights may stay in blocks of few bits either way."""
    if dtype != "auto":
        return dtype
    return "float32" if quantization not in ("int8", "fp8") and num_parameters(source) <= MOST_PARAMETERS else "bfloat16"


def num_parameters(source: WeightSource) -> int:
    """Of all tensors; those that several parameters share count once."""
    parts = (part for parameters in source.model.parameters() for one in parameters.values() for part in one.parts)
    return sum({part.name: math.prod(part.shape) for part in parts}.values())
