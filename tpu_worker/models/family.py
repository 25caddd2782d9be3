"""What the file of a family brings, and a model of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import jax

from protocol.quantization_config import QuantizationConfig
from tpu_worker.inputs import StepInputs
from tpu_worker.models.files import ConfigJson, GgufFile
from tpu_worker.models.spec import ModelSpec, ParameterSpec
from tpu_worker.platforms.platform import Platform
from tpu_worker.stacking import Layers

# Parameters by name; those of all layers under "layers", and under "ropes" the rotary tables of `ModelSpec.ropes`.
Weights: TypeAlias = dict[str, Any]
Parameters: TypeAlias = dict[str, ParameterSpec]


class Forward(Protocol):
    """One step of a model."""

    def __call__(
        self, spec: ModelSpec, platform: Platform, weights: Weights, caches: Layers, inputs: StepInputs
    ) -> tuple[jax.Array, Layers]:
        """(x [R, hidden] of the tokens that are wanted, caches). The caches given must not be used again."""
        ...


class Logits(Protocol):
    """The end of a step, for the tokens of which something is predicted."""

    def __call__(self, spec: ModelSpec, platform: Platform, weights: Weights, x: jax.Array, num_rows: jax.Array) -> jax.Array:
        """[R, V] float32, of the first num_rows [] rows of what `forward` yields, x [R, hidden]."""
        ...


class States(Protocol):
    """What embeddings are pooled of."""

    def __call__(self, spec: ModelSpec, weights: Weights, x: jax.Array) -> jax.Array:
        """[T, hidden] float32, each token's state behind the last norm, of what `forward` yields, x [T, hidden]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Models that differ in sizes only, as far as this engine is concerned."""

    huggingface: tuple[str, ...]  # `architectures` of a config.json
    gguf: tuple[str, ...]  # `general.architecture`
    read_config: Callable[[ConfigJson], ModelSpec]  # raises ModelError naming the field at fault
    read_gguf: Callable[[GgufFile], ModelSpec]  # likewise
    parameters: Callable[[ModelSpec], Parameters]  # those outside the layers
    layer_parameters: Callable[[ModelSpec, int], Parameters]  # those of one layer
    forward: Forward
    logits: Logits
    states: States | None = None  # None: no embeddings
    gguf_names: Mapping[str, str]  # of modules, within a layer or outside of all, by their Hugging Face names
    # Prefixes of names in Hugging Face checkpoints that also hold more than text, and what is to be read in their place.
    prefixes: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(
        default_factory=dict
    )  # within layers, likewise, where checkpoints have one name or the other
    left_out: tuple[str, ...] = ()  # prefixes of what is not text, which is not loaded
    interleaved: tuple[str, ...] = ()  # modules whose rows GGUF files hold as rotary pairs side by side, instead of halves

    def huggingface_name(self, stored: str) -> str:
        """The name of a tensor, by the one that a checkpoint has for it."""
        for prefix, instead in self.prefixes.items():
            if stored.startswith(prefix):
                stored = instead + stored.removeprefix(prefix)
                break
        for module, instead in self.modules.items():
            stored = stored.replace(f".{module}.", f".{instead}.")
        return stored

    def gguf_name(self, name: str) -> str:
        """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`. Raises KeyError for a name that it does not know."""
        module, kind = name.rsplit(".", 1)
        if module in self.gguf_names:
            return f"{self.gguf_names[module]}.{kind}"
        _, _, layer, module = module.split(".", 3)
        if f"{module}.{kind}" in self.gguf_names:  # a tensor without the name of a kind
            return f"blk.{layer}.{self.gguf_names[f'{module}.{kind}']}"
        return f"blk.{layer}.{self.gguf_names[module]}.{kind}"


@dataclass(frozen=True, slots=True)
class Model:
    """What the files of a model describe."""

    family: Family
    spec: ModelSpec
    quantization: QuantizationConfig | None = None  # of weights in a Hugging Face directory

    def parameters(self) -> list[Parameters]:
        """Those outside the layers, then those of each layer."""
        family, spec = self.family, self.spec
        return [family.parameters(spec), *(family.layer_parameters(spec, index) for index in range(len(spec.layers)))]
