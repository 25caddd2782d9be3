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
from tpu_worker.models.spec import ParameterSpec, Part
from tpu_worker.weights.source import WeightSource

_THREADS = 2  # NumPy lets go of the interpreter lock while it converts; more only adds peak memory


def open_source(config: EngineConfig) -> WeightSource:
    """The reader for the configured format. Raises ModelError."""
    if config.model_format == "gguf":
        from tpu_worker.weights.gguf import GgufSource  # half a second of imports that the other format does not need

        return GgufSource(config.model_path)
    from tpu_worker.weights.safetensors import SafetensorsSource

    return SafetensorsSource(config.model_path)


class WeightLoader:
    """Reads, stacks, packs and uploads the parameters of a model.

    The layers are alike, so the shapes of all are known when the first is loaded: compiling need not wait for the others.
    """

    def __init__(self, source: WeightSource, kernels: Kernels, num_positions: int, report: Callable[[int, int], None]) -> None:
        """`num_positions`: of the rotary table. `report(done, total)` counts layers, and what is outside of them as one."""
        self._source = source
        self._kernels = kernels
        self._num_positions = num_positions
        self._report = report

    def load_first(self) -> Weights:
        """What is outside the layers, and the first layer. Raises ModelError."""
        spec = self._source.spec
        outside = self._load(model_parameters(spec))
        outside["rope"] = jnp.asarray(rotary_table(self._num_positions, self._source.inverse_frequencies()))
        self._report(1, spec.num_layers + 1)
        outside["layers"] = [self._load(layer_parameters(spec, 0))]
        self._report(2, spec.num_layers + 1)
        return outside

    def load_rest(self, first: Weights) -> Weights:
        """All parameters, with those of `first`. Raises ModelError."""
        spec = self._source.spec
        layers = list(first["layers"])
        with ThreadPoolExecutor(_THREADS) as pool:
            pending = [pool.submit(self._load, layer_parameters(spec, index)) for index in range(1, spec.num_layers)]
            try:
                for layer in pending:
                    layers.append(layer.result())
                    self._report(len(layers) + 1, spec.num_layers + 1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {**first, "layers": layers}

    def _load(self, parameters: dict[str, ParameterSpec]) -> Weights:
        read: dict[Part, npt.NDArray[Any]] = {}  # a tied embedding is read once
        weights: Weights = {}
        for name, parameter in parameters.items():
            for part in parameter.parts:
                if part not in read:
                    read[part] = self._source.read(part)
            parts = [read[part] for part in parameter.parts]
            weights[name] = self._place(parameter, parts[0] if len(parts) == 1 else np.concatenate(parts))
        return weights

    def _place(self, parameter: ParameterSpec, values: npt.NDArray[Any]) -> Any:
        if parameter.kind in ("matrix", "gated"):
            return self._kernels.pack(values, gated=parameter.kind == "gated")
        if parameter.kind == "table":
            return jnp.asarray(values.astype(ml_dtypes.bfloat16, copy=False))
        return jax.device_put(values.astype(np.float32, copy=False))
