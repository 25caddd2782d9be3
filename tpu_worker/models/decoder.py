"""The decoder that most families are: rotary positions, grouped-query attention, a gated MLP, RMS norms before or after each.

A family's file says what its layers have (biases, norms, windows, scales: see `LayerSpec`) and where its files say so; what is here
serves all of them.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import msgspec

from protocol.errors import ModelError
from tpu_worker.inputs import StepInputs
from tpu_worker.models import experts
from tpu_worker.models.family import Parameters, Weights
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers, check_sizes
from tpu_worker.models.layers import gated, rms_norm, sum_last
from tpu_worker.models.rope import Rope
from tpu_worker.models.spec import LayerSpec, LogicalAxis, ModelSpec, ParameterSpec, Part
from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.platform import Cache, Platform, Prepared
from tpu_worker.stacking import Layers, value

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.sinks": "attn_sinks.weight",
    **experts.GGUF_NAMES,
}


ROTATED = ("self_attn.q_proj", "self_attn.k_proj")  # whose rows GGUF files of some architectures interleave
LAYER_TYPES = ("full_attention", "sliding_attention")
# Of checkpoints that also see, as older and newer versions of transformers write them.
TEXT_PREFIXES = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."}
VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_NONE: Mapping[str, float | None] = MappingProxyType({})


class DecoderConfig(Protocol):
    """The fields of a config.json that no family does without."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool


class LayerConfig(Protocol):
    """The fields of a config.json that say how large its layers are."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int | None  # None: as many as there are heads
    head_dim: int | None  # None: that which the heads share hidden_size with


class WindowedConfig(msgspec.Struct):
    """The fields of a config.json of the Qwen families, whose upper layers may have windows. The defaults are transformers'."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None


def layer_from_config(config: LayerConfig, rope: Callable[[int], Rope]) -> LayerSpec:
    """A layer of the sizes that config.json gives, and nothing more. `rope`: the rotation of heads of a size."""
    head_dim = config.head_dim or config.hidden_size // max(1, config.num_attention_heads)
    return LayerSpec(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        rope=rope(head_dim),
    )


def spec_with_windows(
    file: ConfigJson,
    config: WindowedConfig,
    *,
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: Literal["head"] | None = None,
) -> ModelSpec:
    """The spec of a config.json whose layers differ in their windows only. Raises ModelError naming what cannot be."""
    window = config.sliding_window if config.use_sliding_window else None
    types = layer_types(
        file.path, config.layer_types, config.num_hidden_layers, None if window is None else config.max_window_layers
    )
    return spec_from_config(
        file,
        config,
        (
            replace(
                layer_from_config(config, functools.partial(file.rope, layer_type=layer_type)),
                sliding_window=window if layer_type == "sliding_attention" else None,
                qkv_bias=qkv_bias,
                output_bias=output_bias,
                qk_norm=qk_norm,
            )
            for layer_type in types
        ),
    )


def layer_types(path: object, named: Sequence[str] | None, num_layers: int, first_window: int | None) -> Sequence[str]:
    """The type of each layer: as the config names them, else "sliding_attention" from layer `first_window` on (None: nowhere).

    Raises ModelError when the config names too few or too many.
    """
    check_num_layers(path, num_layers)
    if named is None:
        return [
            "full_attention" if first_window is None or index < first_window else "sliding_attention" for index in range(num_layers)
        ]
    if len(named) != num_layers:
        raise ModelError(f"{path}: layer_types names {len(named)} layers, num_hidden_layers is {num_layers}")
    if unknown := sorted({*named} - {*LAYER_TYPES}):
        raise ModelError(f"{path}: layer_types names {unknown[0]!r}, only {' and '.join(LAYER_TYPES)} are supported")
    return named


def spec_from_config(file: ConfigJson, config: DecoderConfig, layers: Iterable[LayerSpec], **scales: float | None) -> ModelSpec:
    """The spec of a config.json with these layers. `scales`: more of its fields. Raises ModelError naming a size that cannot be."""
    spec = ModelSpec(
        architecture=file.architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        tied_embeddings=config.tie_word_embeddings,
        layers=tuple(layers),
        **scales,  # type: ignore[arg-type]
    )
    return check_sizes(file.path, spec)


def spec_from_gguf(
    file: GgufFile,
    vary: Callable[[int, LayerSpec], LayerSpec] | None = None,
    scales: Mapping[str, float | None] = _NONE,
    **layers: Any,
) -> ModelSpec:
    """The spec of a GGUF file. Raises ModelError naming the field at fault.

    layers: fields of `LayerSpec` that all have; vary(index, layer): where they are not alike. scales: fields of `ModelSpec`.
    """
    path, architecture = file.path, file.architecture
    heads, hidden = file.integer("attention.head_count"), file.integer("embedding_length")
    head_dim = file.integer("attention.key_length", hidden // max(1, heads))
    if (of_values := file.integer("attention.value_length", head_dim)) != head_dim:
        raise ModelError(f"{path}: {architecture}.attention.value_length is {of_values}, heads are of {head_dim}: not supported")
    fields = {
        "num_heads": heads,
        "num_kv_heads": file.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": file.integer("feed_forward_length"),
        "rope": file.rope(head_dim),
    }
    layer = LayerSpec(**{**fields, **layers})
    count = check_num_layers(path, file.integer("block_count"))
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=file.vocab_size,
        hidden_size=hidden,
        context_length=file.integer("context_length"),
        norm_eps=file.number("attention.layer_norm_rms_epsilon"),
        tied_embeddings=not file.has("output.weight"),
        layers=experts.layers_of_gguf(file, tuple(vary(index, layer) if vary else layer for index in range(count))),
        **scales,  # type: ignore[arg-type]
    )
    return check_sizes(path, spec)


def parameters(spec: ModelSpec) -> Parameters:
    """Those outside the layers."""
    embed = Part("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size), ("vocab", "embed"))
    head = embed if spec.tied_embeddings else Part("lm_head.weight", embed.shape, embed.axes)
    return {
        "embedding": ParameterSpec("table", (embed,)),
        "final_norm": _vector("model.norm.weight", spec.hidden_size, "embed", spec.norm_offset),
        "head": ParameterSpec("matrix", (head,)),
    }


# What checkpoints call the norms of a layer: before and after the attention, before and after the MLP.
PRE_NORMS = ("input_layernorm", "", "post_attention_layernorm", "")


def layer_parameters(
    spec: ModelSpec, index: int, names: experts.Names = experts.NAMES, norms: tuple[str, str, str, str] = PRE_NORMS
) -> Parameters:
    """Those of one layer. Projections that read the same input are one matrix. `names`: of what belongs to experts."""
    layer, prefix, hidden = spec.layers[index], f"model.layers.{index}.", spec.hidden_size
    q_size, kv_size, mlp = layer.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim, layer.intermediate_size
    qkv: tuple[tuple[str, int, LogicalAxis], ...] = (("q", q_size, "heads"), ("k", kv_size, "kv_heads"), ("v", kv_size, "kv_heads"))
    gate_up: tuple[tuple[str, int, LogicalAxis], ...] = (("gate", mlp, "mlp"), ("up", mlp, "mlp"))

    def matrix(module: str, projections: Sequence[tuple[str, int, LogicalAxis]]) -> tuple[Part, ...]:
        return tuple(
            Part(f"{prefix}{module}.{name}_proj.weight", (size, hidden), (axis, "embed")) for name, size, axis in projections
        )

    def biases(module: str, projections: Sequence[tuple[str, int, LogicalAxis]]) -> ParameterSpec:
        return ParameterSpec(
            "vector", tuple(Part(f"{prefix}{module}.{name}_proj.bias", (size,), (axis,)) for name, size, axis in projections)
        )

    found = {
        "qkv": ParameterSpec("matrix", matrix("self_attn", qkv)),
        "output": ParameterSpec("matrix", (Part(prefix + "self_attn.o_proj.weight", (hidden, q_size), ("embed", "heads")),)),
    }
    there = (layer.norm_before, layer.norm_after) * 2
    for one, name, has in zip(("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm"), norms, there, strict=True):
        if has:
            found[one] = _vector(f"{prefix}{name}.weight", hidden, "embed", spec.norm_offset)
    if layer.experts is not None:
        found |= experts.parameters(layer, hidden, prefix, names)
    else:
        # A bias goes between the product and the gate, so then they are not one.
        found["gate_up"] = ParameterSpec("matrix" if layer.mlp_bias else "gated", matrix("mlp", gate_up))
        found["down"] = ParameterSpec("matrix", (Part(prefix + "mlp.down_proj.weight", (hidden, mlp), ("embed", "mlp")),))
    if layer.qkv_bias:
        found["qkv_bias"] = biases("self_attn", qkv)
    if layer.output_bias:
        found["output_bias"] = _vector(prefix + "self_attn.o_proj.bias", hidden, "embed")
    if layer.mlp_bias and layer.experts is None:
        found["gate_up_bias"] = biases("mlp", gate_up)
        found["down_bias"] = _vector(prefix + "mlp.down_proj.bias", hidden, "embed")
    if layer.sinks:
        found["sinks"] = _vector(prefix + "self_attn.sinks", layer.num_heads, "heads")
    if layer.qk_norm == "head":
        for name in ("q", "k"):
            found[f"{name}_norm"] = _vector(f"{prefix}self_attn.{name}_norm.weight", layer.head_dim, "head_dim", spec.norm_offset)
    elif layer.qk_norm == "projection":
        found["q_norm"] = _vector(prefix + "self_attn.q_norm.weight", q_size, "heads", spec.norm_offset)
        found["k_norm"] = _vector(prefix + "self_attn.k_norm.weight", kv_size, "kv_heads", spec.norm_offset)
    return found


def forward(spec: ModelSpec, platform: Platform, weights: Weights, caches: Layers, inputs: StepInputs) -> tuple[jax.Array, Layers]:
    """One step: (x [R, hidden] float32 of the tokens that are wanted, behind the last layer, caches).

    Once the last layer has attended, only these tokens go on. The caches given are updated and must not be used again.
    """
    x = platform.products.lookup(weights["embedding"], inputs.token_ids)
    if spec.embedding_scale != 1.0:
        x *= jnp.float32(spec.embedding_scale)
    num_tokens = inputs.num_tokens  # the kernels may leave out the rest
    # Functions of their own, jitted: traced once for layers that are alike, which is most of the tracing time at start.
    attends = {layer: jax.jit(functools.partial(_attend, layer, spec.norm_eps, platform)) for layer in set(spec.layers)}
    mixes = {layer: jax.jit(functools.partial(_mix, layer, spec.norm_eps, platform)) for layer in set(spec.layers)}
    for index, layer in enumerate(spec.layers):
        mine = weights["layers"].take(index)
        rope = None if layer.rope is None else weights["ropes"][spec.ropes.index(layer.rope)]
        attended, cache = attends[layer](mine, caches.take(index), x, rope, inputs.prepared.take(index), num_tokens)
        caches = caches.put(index, cache)
        if index == len(spec.layers) - 1:
            x, attended, num_tokens = x[inputs.sampled], attended[inputs.sampled], inputs.num_sampled
        x = mixes[layer](mine, x, attended, num_tokens)
    return x, caches


def logits(spec: ModelSpec, platform: Platform, weights: Weights, x: jax.Array, num_rows: jax.Array) -> jax.Array:
    """Of what `forward` yields, x [R, hidden], the first num_rows [] rows: [R, V] float32."""
    products = platform.products
    if "head" in weights:
        head = weights["head"]
    else:  # it is the table of embeddings
        assert products.as_matrix is not None
        head = products.as_matrix(weights["embedding"])
    found = products.linear(x, head, num_rows=num_rows, norm=weights["final_norm"], eps=spec.norm_eps)
    if spec.logit_scale != 1.0:
        found *= jnp.float32(spec.logit_scale)
    if (cap := spec.logit_soft_cap) is not None:
        found = jnp.float32(cap) * jnp.tanh(found / jnp.float32(cap))
    return found


def states(spec: ModelSpec, weights: Weights, x: jax.Array) -> jax.Array:
    """Of what `forward` yields, x [T, hidden]: what the last norm makes of it, [T, hidden] float32."""
    return rms_norm(x, value(weights["final_norm"]), spec.norm_eps)


def _attend(
    layer: LayerSpec,
    eps: float,
    platform: Platform,
    weights: Weights,
    cache: Cache,
    x: jax.Array,
    rope: jax.Array | None,
    prepared: Prepared,
    num_rows: jax.Array,
) -> tuple[jax.Array, Cache]:
    """The first half of a layer: x [T, hidden] -> what its heads attend to [T, H * D], and the cache."""
    qkv = platform.products.linear(x, weights["qkv"], num_rows=num_rows, norm=weights.get("attention_norm"), eps=eps)
    if "qkv_bias" in weights:
        qkv += value(weights["qkv_bias"])
    if layer.qk_norm is not None:
        norm = _norm_heads if layer.qk_norm == "head" else functools.partial(_norm_projections, platform)
        qkv = norm(qkv, layer, value(weights["q_norm"]), value(weights["k_norm"]), eps)
    scale = layer.head_dim**-0.5 if layer.scale is None else layer.scale
    how = AttentionSpec(
        layer.head_dim,
        scale,
        layer.sliding_window,
        layer.soft_cap,
        rotary_dim=None if layer.rope is None else layer.rope.size,
        position_scale=layer.position_scale,
    )
    return platform.attention.attend(qkv, cache, prepared, rope, how, value(weights["sinks"]) if "sinks" in weights else None)


def _norm_heads(qkv: jax.Array, layer: LayerSpec, q_norm: jax.Array, k_norm: jax.Array, eps: float) -> jax.Array:
    """qkv [T, (H + 2 KH) * D] with each head of q and of k normed; the norms are [D]."""
    heads = qkv.reshape(qkv.shape[0], -1, layer.head_dim)
    q, k, v = jnp.split(heads, (layer.num_heads, layer.num_heads + layer.num_kv_heads), axis=1)
    return jnp.concatenate([rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps), v], axis=1).reshape(qkv.shape)


def _norm_projections(
    platform: Platform, qkv: jax.Array, layer: LayerSpec, q_norm: jax.Array, k_norm: jax.Array, eps: float
) -> jax.Array:
    """qkv [T, (H + 2 KH) * D] with all of q and all of k normed; the norms are [H * D] and [KH * D], or of a shard."""
    ends = (layer.num_heads * layer.head_dim, (layer.num_heads + layer.num_kv_heads) * layer.head_dim)
    q, k, v = jnp.split(qkv, ends, axis=1)

    def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
        squares = platform.products.mean_of_shards(sum_last(x * x)[:, None] / x.shape[-1])
        normed: jax.Array = x * jax.lax.rsqrt(squares + eps) * weight
        return normed

    return jnp.concatenate([norm(q, q_norm), norm(k, k_norm), v], axis=1)


def _mix(
    layer: LayerSpec, eps: float, platform: Platform, weights: Weights, x: jax.Array, attended: jax.Array, num_rows: jax.Array
) -> jax.Array:
    """The second half, token by token: output projection and MLP, or experts."""
    x = _add(layer, eps, platform, weights, x, attended, num_rows, ("output", "output_bias", "attention_post_norm"))
    if layer.experts is not None:
        return experts.apply(layer.experts, eps, platform, weights, x, num_rows)
    linear = functools.partial(platform.products.linear, num_rows=num_rows, norm=weights.get("mlp_norm"), eps=eps)
    if "gate_up_bias" in weights:
        gate, up = jnp.split(linear(x, weights["gate_up"]) + value(weights["gate_up_bias"]), 2, axis=-1)
        inner = gated(layer.activation, gate, up)
    else:
        inner = linear(x, weights["gate_up"], activation=layer.activation)
    return _add(layer, eps, platform, weights, x, inner, num_rows, ("down", "down_bias", "mlp_post_norm"))


def _add(
    layer: LayerSpec,
    eps: float,
    platform: Platform,
    weights: Weights,
    x: jax.Array,
    inner: jax.Array,
    num_rows: jax.Array,
    names: tuple[str, str, str],
) -> jax.Array:
    """x [T, hidden], and added to it a projection of what attention or MLP made, inner [T, …]. names: weight, bias and norm."""
    weight, bias, norm = names
    scale = jnp.float32(layer.residual_scale)
    if norm in weights:
        made = platform.products.linear(inner, weights[weight], num_rows=num_rows)
        if bias in weights:
            made += value(weights[bias])
        added: jax.Array = scale * rms_norm(made, value(weights[norm]), eps)
        return x + added
    if layer.residual_scale != 1.0:
        inner *= scale
    x = platform.products.linear(inner, weights[weight], num_rows=num_rows, residual=x)
    return x + scale * value(weights[bias]) if bias in weights else x


def _vector(name: str, size: int, axis: LogicalAxis, offset: float = 0.0) -> ParameterSpec:
    return ParameterSpec("vector", (Part(name, (size,), (axis,)),), offset=offset)
