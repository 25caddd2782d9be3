"""From files to the parameters of a model on the device."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt

from protocol.config import EngineConfig
from tpu_worker.kernels import Kernels
from tpu_worker.models.layers import rotary_table
from tpu_worker.models.llama import Weights, layer_parameters, model_parameters
from tpu_worker.models.spec import ParameterSpec
from tpu_worker.weights.source import WeightSource

_THREADS = 2  # NumPy lets go of the interpreter lock while it converts; more only adds peak memory


def open_source(config: EngineConfig) -> WeightSource:
    """The reader for the configured format. Raises ModelError."""
    if config.model_format == "gguf":
        from tpu_worker.weights.gguf import GgufSource  # half a second of imports that the other format does not need

        return GgufSource(config.model_path)
    from tpu_worker.weights.safetensors import SafetensorsSource

    return SafetensorsSource(config.model_path)


def load_weights(source: WeightSource, kernels: Kernels, num_positions: int, report: Callable[[int, int], None]) -> Weights:
    """Reads, stacks, packs and uploads every parameter; `report(done, total)` counts parameters. Raises ModelError."""
    spec = source.spec
    places: list[tuple[Weights, str, ParameterSpec]] = []
    weights: Weights = {"layers": [{} for _ in range(spec.num_layers)]}
    places += [(weights, name, parameter) for name, parameter in model_parameters(spec).items()]
    for index, layer in enumerate(weights["layers"]):
        places += [(layer, name, parameter) for name, parameter in layer_parameters(spec, index).items()]
    weights["rope"] = jnp.asarray(rotary_table(num_positions, source.inverse_frequencies()))
    with ThreadPoolExecutor(_THREADS) as pool:
        pending = [pool.submit(_load, source, parameter, kernels) for _, _, parameter in places]
        try:
            for done, ((holder, name, _), value) in enumerate(zip(places, pending, strict=True), 1):
                holder[name] = value.result()
                report(done, len(places))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return weights


def _load(source: WeightSource, parameter: ParameterSpec, kernels: Kernels) -> Any:
    parts = [source.read(part) for part in parameter.parts]
    values: npt.NDArray[Any] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if parameter.kind in ("matrix", "gated"):
        return kernels.pack(values, gated=parameter.kind == "gated")
    if parameter.kind == "table":
        return jnp.asarray(values.astype(ml_dtypes.bfloat16, copy=False))
    return jax.device_put(values.astype(np.float32, copy=False))
