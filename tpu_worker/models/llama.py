"""The Llama family: pre-norm transformer with rotary positions, grouped-query attention and a gated MLP (Touvron et al. 2023)."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from tpu_worker.inputs import StepInputs
from tpu_worker.models.layers import activate
from tpu_worker.models.spec import LogicalAxis, ModelSpec, ParameterSpec, Part
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.platform import Cache, Caches, Platform, Prepared
from tpu_worker.stacking import put, take, value

# Parameters by name, those of all layers under "layers" (see `tpu_worker.stacking`), and "rope", a rotary table.
Weights: TypeAlias = dict[str, Any]


def model_parameters(spec: ModelSpec) -> dict[str, ParameterSpec]:
    """The parameters outside the layers."""
    embed = Part("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size), ("vocab", "embed"))
    head = embed if spec.tied_embeddings else Part("lm_head.weight", embed.shape, embed.axes)
    return {
        "embedding": ParameterSpec("table", (embed,)),
        "final_norm": _vector("model.norm.weight", spec.hidden_size),
        "head": ParameterSpec("matrix", (head,)),
    }


def layer_parameters(spec: ModelSpec, layer: int) -> dict[str, ParameterSpec]:
    """The parameters of one layer. Projections that read the same input are stacked into one matrix."""
    name, hidden, mlp = f"model.layers.{layer}.", spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    qkv: tuple[tuple[str, int, LogicalAxis], ...] = (("q", q_size, "heads"), ("k", kv_size, "kv_heads"), ("v", kv_size, "kv_heads"))
    parameters = {
        "attention_norm": _vector(name + "input_layernorm.weight", hidden),
        "qkv": ParameterSpec(
            "matrix", tuple(Part(f"{name}self_attn.{p}_proj.weight", (size, hidden), (axis, "embed")) for p, size, axis in qkv)
        ),
        "output": ParameterSpec("matrix", (Part(name + "self_attn.o_proj.weight", (hidden, q_size), ("embed", "heads")),)),
        "mlp_norm": _vector(name + "post_attention_layernorm.weight", hidden),
        "gate_up": ParameterSpec(
            "matrix" if spec.mlp_bias else "gated",  # a bias goes between the product and the gate
            tuple(Part(f"{name}mlp.{p}_proj.weight", (mlp, hidden), ("mlp", "embed")) for p in ("gate", "up")),
        ),
        "down": ParameterSpec("matrix", (Part(name + "mlp.down_proj.weight", (hidden, mlp), ("embed", "mlp")),)),
    }
    if spec.attention_bias:
        parts = tuple(Part(f"{name}self_attn.{p}_proj.bias", (size,), (axis,)) for p, size, axis in qkv)
        parameters["qkv_bias"] = ParameterSpec("vector", parts)
    if spec.output_bias:
        parameters["output_bias"] = _vector(name + "self_attn.o_proj.bias", hidden)
    if spec.mlp_bias:
        parts = tuple(Part(f"{name}mlp.{p}_proj.bias", (mlp,), ("mlp",)) for p in ("gate", "up"))
        parameters["gate_up_bias"] = ParameterSpec("vector", parts)
        parameters["down_bias"] = _vector(name + "mlp.down_proj.bias", hidden)
    return parameters


def forward(spec: ModelSpec, platform: Platform, weights: Weights, caches: Caches, inputs: StepInputs) -> tuple[jax.Array, Caches]:
    """One step: (logits [R, V] float32 of the tokens that are sampled, caches).

    Once the last layer has attended, only these tokens go on. The caches given are updated and must not be used again.
    """
    x = embed(weights["embedding"], inputs.token_ids)
    num_tokens = inputs.num_tokens  # the kernels may leave out the rest
    # Functions of their own, jitted: traced once, not once per layer, which is most of the tracing time at start.
    attend, mix = (jax.jit(functools.partial(part, spec, platform)) for part in (_attend, _mix))
    for index in range(spec.num_layers):
        layer = take(weights["layers"], index)
        attended, cache = attend(layer, take(caches, index), x, weights["rope"], inputs.prepared, num_tokens)
        caches = put(caches, index, cache)
        if index == spec.num_layers - 1:
            x, attended, num_tokens = x[inputs.sampled], attended[inputs.sampled], inputs.num_sampled
        x = mix(layer, x, attended, num_tokens)
    linear = platform.products.linear
    return linear(x, weights["head"], num_rows=inputs.num_sampled, norm=weights["final_norm"], eps=spec.norm_eps), caches


def embed(table: jax.Array, token_ids: jax.Array) -> jax.Array:
    """Rows of table [V, D] for token_ids [T] -> [T, D] float32."""
    return table[token_ids].astype("float32")


def _attend(
    spec: ModelSpec,
    platform: Platform,
    weights: Weights,
    cache: Cache,
    x: jax.Array,
    rope: jax.Array,
    prepared: Prepared,
    num_rows: jax.Array,
) -> tuple[jax.Array, Cache]:
    """The first half of a layer: x [T, hidden] -> what its heads attend to [T, H * D], and the cache."""
    norm = weights["attention_norm"]
    qkv = platform.products.linear(x, weights["qkv"], num_rows=num_rows, norm=norm, eps=spec.norm_eps)
    if "qkv_bias" in weights:
        qkv += value(weights["qkv_bias"])
    how = AttentionSpec(spec.head_dim, spec.head_dim**-0.5, spec.sliding_window)
    return platform.attention.attend(qkv, cache, prepared, rope, how)


def _mix(
    spec: ModelSpec, platform: Platform, weights: Weights, x: jax.Array, attended: jax.Array, num_rows: jax.Array
) -> jax.Array:
    """The second half, token by token: output projection and MLP."""
    linear = platform.products.linear
    x = linear(attended, weights["output"], num_rows=num_rows, residual=x)
    if "output_bias" in weights:
        x += value(weights["output_bias"])
    gate_up, norm = weights["gate_up"], weights["mlp_norm"]
    if "gate_up_bias" in weights:
        both = linear(x, gate_up, num_rows=num_rows, norm=norm, eps=spec.norm_eps) + value(weights["gate_up_bias"])
        gate, up = jnp.split(both, 2, axis=-1)
        inner = activate("silu", gate) * up
    else:
        inner = linear(x, gate_up, activation="silu", num_rows=num_rows, norm=norm, eps=spec.norm_eps)
    x = linear(inner, weights["down"], num_rows=num_rows, residual=x)
    return x + value(weights["down_bias"]) if "down_bias" in weights else x


def _vector(name: str, size: int) -> ParameterSpec:
    return ParameterSpec("vector", (Part(name, (size,), (None,)),))
