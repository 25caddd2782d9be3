"""The Llama family: pre-norm transformer with rotary positions, grouped-query attention and a gated MLP (Touvron et al. 2023)."""

import functools
from typing import Any, TypeAlias

import jax

from tpu_worker.attention import AttentionMetadata
from tpu_worker.kernels import Cache, Caches, Kernels
from tpu_worker.models.spec import LogicalAxis, ModelSpec, ParameterSpec, Part
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


def forward(
    spec: ModelSpec,
    kernels: Kernels,
    weights: Weights,
    caches: Caches,
    token_ids: jax.Array,
    meta: AttentionMetadata,
    sampled: jax.Array,
    num_sampled: jax.Array,
) -> tuple[jax.Array, Caches]:
    """One step of T tokens.

    token_ids is [T] int32; sampled [R] int32 names the tokens whose logits are wanted, of which the first num_sampled [] are
    not padding: once the last layer has attended, only these go on, and through the head. Returns (logits [R, V] float32,
    caches). The caches given are updated and must not be used again.
    """
    x = embed(weights["embedding"], token_ids)
    num_tokens = meta.offsets[-1]  # the kernels may leave out the rest
    # Functions of their own, jitted: traced once, not once per layer, which is most of the tracing time at start.
    attend, mix = (jax.jit(functools.partial(part, spec, kernels)) for part in (_attend, _mix))
    for index in range(spec.num_layers):
        layer = take(weights["layers"], index)
        attended, cache = attend(layer, take(caches, index), x, weights["rope"], meta)
        caches = put(caches, index, cache)
        if index == spec.num_layers - 1:
            x, attended, num_tokens = x[sampled], attended[sampled], num_sampled
        x = mix(layer, x, attended, num_tokens)
    return kernels.linear(x, weights["head"], num_rows=num_sampled, norm=weights["final_norm"], eps=spec.norm_eps), caches


def embed(table: jax.Array, token_ids: jax.Array) -> jax.Array:
    """Rows of table [V, D] for token_ids [T] -> [T, D] float32."""
    return table[token_ids].astype("float32")


def _attend(
    spec: ModelSpec, kernels: Kernels, weights: Weights, cache: Cache, x: jax.Array, rope: jax.Array, meta: AttentionMetadata
) -> tuple[jax.Array, Cache]:
    """The first half of a layer: x [T, hidden] -> what its heads attend to [T, H * D], and the cache."""
    qkv = kernels.linear(x, weights["qkv"], num_rows=meta.offsets[-1], norm=weights["attention_norm"], eps=spec.norm_eps)
    if "qkv_bias" in weights:
        qkv += value(weights["qkv_bias"])
    attended, cache = kernels.attend(
        qkv, cache, meta, rope, num_heads=spec.num_heads, scale=spec.head_dim**-0.5, sliding_window=spec.sliding_window
    )
    return attended.reshape(x.shape[0], -1), cache


def _mix(spec: ModelSpec, kernels: Kernels, weights: Weights, x: jax.Array, attended: jax.Array, num_rows: jax.Array) -> jax.Array:
    """The second half, token by token: output projection and MLP."""
    x = kernels.linear(attended, weights["output"], num_rows=num_rows, residual=x)
    if "output_bias" in weights:
        x += value(weights["output_bias"])
    inner = kernels.linear(x, weights["gate_up"], num_rows=num_rows, norm=weights["mlp_norm"], eps=spec.norm_eps)
    if "gate_up_bias" in weights:
        inner += value(weights["gate_up_bias"])
        inner = jax.nn.silu(inner[:, : spec.intermediate_size]) * inner[:, spec.intermediate_size :]
    x = kernels.linear(inner, weights["down"], num_rows=num_rows, residual=x)
    return x + value(weights["down_bias"]) if "down_bias" in weights else x


def _vector(name: str, size: int) -> ParameterSpec:
    return ParameterSpec("vector", (Part(name, (size,), (None,)),))
