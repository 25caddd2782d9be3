"""Mixtures of experts in place of a layer's MLP (Shazeer et al. 2017): a router chooses for each token which of them it goes to.

Families differ in what their checkpoints call the parameters (`Names`) and in how the chosen share a token (`ExpertsSpec`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from tpu_worker.models.family import Parameters, Weights
from tpu_worker.models.files import GgufFile
from tpu_worker.models.layers import sum_last
from tpu_worker.models.spec import ExpertsSpec, LayerSpec, LogicalAxis, ParameterSpec, Part, Within
from tpu_worker.platforms.platform import Platform
from tpu_worker.stacking import value


@dataclass(frozen=True, slots=True)
class Names:
    """What Hugging Face checkpoints of a family call the modules of a mixture, within a layer."""

    router: str = "mlp.gate"
    experts: str = "mlp.experts"  # numbered, and in each of them …
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    interleaved: bool = False  # … unless those of all experts are one tensor, for which gates and the others alternate


NAMES = Names()
GGUF_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}


def layers_of_gguf(file: GgufFile, layers: Sequence[LayerSpec], **more: bool) -> tuple[LayerSpec, ...]:
    """The layers of a GGUF file, with experts where it holds any. `more`: of `ExpertsSpec`. Raises ModelError."""
    count = file.integer("expert_count", 0)
    if not count:
        return tuple(layers)
    found = ExpertsSpec(
        count=count,
        chosen=file.integer("expert_used_count"),
        renormalised=file.flag("expert_weights_norm", default=True),
        **more,  # type: ignore[arg-type]
    )
    mlp = file.integer("expert_feed_forward_length", file.integer("feed_forward_length", 0))
    return tuple(
        replace(layer, experts=found, intermediate_size=mlp) if file.has(f"blk.{index}.ffn_gate_inp.weight") else layer
        for index, layer in enumerate(layers)
    )


def parameters(layer: LayerSpec, hidden: int, prefix: str, names: Names) -> Parameters:
    """Those of the mixture in a layer whose tensors' names begin so."""
    assert layer.experts is not None
    count, mlp = layer.experts.count, layer.intermediate_size
    inner: tuple[LogicalAxis, ...] = ("mlp", "embed")
    fused, width = f"{prefix}mlp.experts.gate_up_proj", 2 * mlp
    ranges = {
        names.gate: range(0, width, 2) if names.interleaved else range(mlp),
        names.up: range(1, width, 2) if names.interleaved else range(mlp, width),
    }

    def blocks(expert: int, name: str) -> tuple[Within, ...]:
        if not names.interleaved:
            return ()
        if name == names.down:
            return (Within(f"{prefix}mlp.experts.down_proj_blocks", (count, hidden, mlp // 32, 16), (expert,), mxfp4=True),)
        return (Within(f"{fused}_blocks", (count, width, hidden // 32, 16), (expert, ranges[name]), mxfp4=True),)

    def weight(expert: int, name: str) -> Part:
        if name == names.down:
            down = f"{prefix}mlp.experts.down_proj"
            shape = (count, mlp, hidden) if names.interleaved else (count, hidden, mlp)
            where = Within(down, shape, (expert,), names.interleaved)
        elif names.interleaved:  # and turned round
            where = Within(fused, (count, hidden, width), (expert, None, ranges[name]), True)
        else:
            where = Within(fused, (count, width, hidden), (expert, ranges[name]))
        size, axes = ((hidden, mlp), inner[::-1]) if name == names.down else ((mlp, hidden), inner)
        return Part(f"{prefix}{names.experts}.{expert}.{name}.weight", size, axes, expert, (where, *blocks(expert, name)))

    def bias(name: str) -> Part:
        whole = f"{prefix}{names.experts}.{name}.bias"
        if name == names.down:
            return Part(
                whole,
                (count, hidden),
                ("experts", "embed"),
                None,
                (Within(f"{prefix}mlp.experts.down_proj_bias", (count, hidden), ()),),
            )
        where = Within(f"{fused}_bias", (count, width), (None, ranges[name]))
        return Part(whole, (count, mlp), ("experts", "mlp"), None, (where,))

    gate_up = (weight(expert, name) for expert in range(count) for name in (names.gate, names.up))
    found = {
        "router": ParameterSpec("vector", (Part(f"{prefix}{names.router}.weight", (count, hidden), ("choices", "embed")),)),
        "expert_gate_up": ParameterSpec("gated", tuple(gate_up), count),
        "expert_down": ParameterSpec("matrix", tuple(weight(expert, names.down) for expert in range(count)), count),
    }
    if layer.experts.router_bias:
        found["router_bias"] = ParameterSpec("vector", (Part(f"{prefix}{names.router}.bias", (count,), ("choices",)),))
    if layer.experts.bias:
        found["expert_gate_up_bias"] = ParameterSpec("vector", (bias(names.gate), bias(names.up)))
        found["expert_down_bias"] = ParameterSpec("vector", (bias(names.down),))
    return found


def choose(spec: ExpertsSpec, scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The experts of each token by scores [T, experts] float32, the best first: (numbers [T, C] int32, shares [T, C] float32)."""
    best, chosen = jax.lax.top_k(scores, spec.chosen)
    top = best[:, :1]
    shares = jnp.exp(best - top)
    return chosen, shares / sum_last(shares if spec.renormalised else jnp.exp(scores - top))[:, None]


def apply(spec: ExpertsSpec, eps: float, platform: Platform, weights: Weights, x: jax.Array, num_rows: jax.Array) -> jax.Array:
    """x [T, hidden] float32, and added to it what its experts make of each token, normed."""
    products, norm = platform.products, weights["mlp_norm"]
    scores = products.scores(x, weights["router"], num_rows=num_rows, norm=norm, eps=eps)
    if "router_bias" in weights:
        scores += value(weights["router_bias"])
    chosen, shares = choose(spec, scores)
    return products.experts(
        x,
        chosen,
        shares,
        weights["expert_gate_up"],
        weights["expert_down"],
        activation=spec.activation,
        num_rows=num_rows,
        norm=norm,
        eps=eps,
        gate_up_bias=weights.get("expert_gate_up_bias"),
        down_bias=weights.get("expert_down_bias"),
        residual=x,
    )
