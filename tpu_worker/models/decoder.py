"""The pre-norm decoder that most families are: rotary positions, grouped-query attention, a gated MLP, RMS norms.

A family's file says what its layers have (biases, norms on queries and keys, windows) and where its files say so; what is here
serves all of them.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import msgspec

from protocol.errors import ModelError
from tpu_worker.inputs import StepInputs
from tpu_worker.models import experts
from tpu_worker.models.family import Parameters, Weights
from tpu_worker.models.files import ConfigJson, GgufFile, check_num_layers, check_sizes
from tpu_worker.models.layers import gated, rms_norm
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


class DecoderConfig(Protocol):
    """The fields of a config.json that no family does without."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool


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


def spec_with_windows(
    file: ConfigJson, config: WindowedConfig, *, qkv_bias: bool = False, output_bias: bool = False, qk_norm: bool = False
) -> ModelSpec:
    """The spec of a config.json whose layers differ in their windows only. Raises ModelError naming what cannot be."""
    window = config.sliding_window if config.use_sliding_window else None
    head_dim = config.head_dim or config.hidden_size // max(1, config.num_attention_heads)
    types = layer_types(
        file.path, config.layer_types, config.num_hidden_layers, None if window is None else config.max_window_layers
    )
    return spec_from_config(
        file,
        config,
        (
            LayerSpec(
                num_heads=config.num_attention_heads,
                num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
                head_dim=head_dim,
                intermediate_size=config.intermediate_size,
                rope=file.rope(head_dim, layer_type),
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
    return named


def spec_from_config(file: ConfigJson, config: DecoderConfig, layers: Iterable[LayerSpec]) -> ModelSpec:
    """The spec of a config.json with these layers. Raises ModelError naming a size that cannot be."""
    spec = ModelSpec(
        architecture=file.architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        context_length=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        tied_embeddings=config.tie_word_embeddings,
        layers=tuple(layers),
    )
    return check_sizes(file.path, spec)


def spec_from_gguf(
    file: GgufFile,
    *,
    sliding_window: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> ModelSpec:
    """The spec of a GGUF file whose layers are alike but for experts. Raises ModelError naming the field at fault."""
    path, architecture = file.path, file.architecture
    heads, hidden = file.integer("attention.head_count"), file.integer("embedding_length")
    head_dim = file.integer("attention.key_length", hidden // max(1, heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.integer(key, head_dim) != head_dim:
            raise ModelError(f"{path}: {architecture}.{key} is {file.integer(key)}, heads are of {head_dim}: not supported")
    layer = LayerSpec(
        num_heads=heads,
        num_kv_heads=file.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=file.integer("feed_forward_length"),
        rope=file.rope(head_dim),
        sliding_window=sliding_window,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
    )
    spec = ModelSpec(
        architecture=architecture,
        vocab_size=file.vocab_size,
        hidden_size=hidden,
        context_length=file.integer("context_length"),
        norm_eps=file.number("attention.layer_norm_rms_epsilon"),
        tied_embeddings=not file.has("output.weight"),
        layers=experts.layers_of_gguf(file, (layer,) * check_num_layers(path, file.integer("block_count"))),
    )
    return check_sizes(path, spec)


def parameters(spec: ModelSpec) -> Parameters:
    """Those outside the layers."""
    embed = Part("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size), ("vocab", "embed"))
    head = embed if spec.tied_embeddings else Part("lm_head.weight", embed.shape, embed.axes)
    return {
        "embedding": ParameterSpec("table", (embed,)),
        "final_norm": _vector("model.norm.weight", spec.hidden_size, "embed"),
        "head": ParameterSpec("matrix", (head,)),
    }


def layer_parameters(spec: ModelSpec, index: int, names: experts.Names = experts.NAMES) -> Parameters:
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
        "attention_norm": _vector(prefix + "input_layernorm.weight", hidden, "embed"),
        "qkv": ParameterSpec("matrix", matrix("self_attn", qkv)),
        "output": ParameterSpec("matrix", (Part(prefix + "self_attn.o_proj.weight", (hidden, q_size), ("embed", "heads")),)),
        "mlp_norm": _vector(prefix + "post_attention_layernorm.weight", hidden, "embed"),
    }
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
    if layer.qk_norm:
        for name in ("q", "k"):
            found[f"{name}_norm"] = _vector(f"{prefix}self_attn.{name}_norm.weight", layer.head_dim, "head_dim")
    return found


def forward(spec: ModelSpec, platform: Platform, weights: Weights, caches: Layers, inputs: StepInputs) -> tuple[jax.Array, Layers]:
    """One step: (x [R, hidden] float32 of the tokens that are wanted, behind the last layer, caches).

    Once the last layer has attended, only these tokens go on. The caches given are updated and must not be used again.
    """
    x = platform.products.lookup(weights["embedding"], inputs.token_ids)
    num_tokens = inputs.num_tokens  # the kernels may leave out the rest
    # Functions of their own, jitted: traced once for layers that are alike, which is most of the tracing time at start.
    attends = {layer: jax.jit(functools.partial(_attend, layer, spec.norm_eps, platform)) for layer in set(spec.layers)}
    mixes = {layer: jax.jit(functools.partial(_mix, layer, spec.norm_eps, platform)) for layer in set(spec.layers)}
    for index, layer in enumerate(spec.layers):
        mine, rope = weights["layers"].take(index), weights["ropes"][spec.ropes.index(layer.rope)]
        attended, cache = attends[layer](mine, caches.take(index), x, rope, inputs.prepared, num_tokens)
        caches = caches.put(index, cache)
        if index == len(spec.layers) - 1:
            x, attended, num_tokens = x[inputs.sampled], attended[inputs.sampled], inputs.num_sampled
        x = mixes[layer](mine, x, attended, num_tokens)
    return x, caches


def logits(spec: ModelSpec, platform: Platform, weights: Weights, x: jax.Array, num_rows: jax.Array) -> jax.Array:
    """Of what `forward` yields, x [R, hidden], the first num_rows [] rows: [R, V] float32."""
    return platform.products.linear(x, weights["head"], num_rows=num_rows, norm=weights["final_norm"], eps=spec.norm_eps)


def _attend(
    layer: LayerSpec,
    eps: float,
    platform: Platform,
    weights: Weights,
    cache: Cache,
    x: jax.Array,
    rope: jax.Array,
    prepared: Prepared,
    num_rows: jax.Array,
) -> tuple[jax.Array, Cache]:
    """The first half of a layer: x [T, hidden] -> what its heads attend to [T, H * D], and the cache."""
    qkv = platform.products.linear(x, weights["qkv"], num_rows=num_rows, norm=weights["attention_norm"], eps=eps)
    if "qkv_bias" in weights:
        qkv += value(weights["qkv_bias"])
    if "q_norm" in weights:
        qkv = _norm_heads(qkv, layer, value(weights["q_norm"]), value(weights["k_norm"]), eps)
    how = AttentionSpec(layer.head_dim, layer.head_dim**-0.5, layer.sliding_window)
    return platform.attention.attend(qkv, cache, prepared, rope, how, value(weights["sinks"]) if "sinks" in weights else None)


def _norm_heads(qkv: jax.Array, layer: LayerSpec, q_norm: jax.Array, k_norm: jax.Array, eps: float) -> jax.Array:
    """qkv [T, (H + 2 KH) * D] with each head of q and of k normed; the norms are [D]."""
    heads = qkv.reshape(qkv.shape[0], -1, layer.head_dim)
    q, k, v = jnp.split(heads, (layer.num_heads, layer.num_heads + layer.num_kv_heads), axis=1)
    return jnp.concatenate([rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps), v], axis=1).reshape(qkv.shape)


def _mix(
    layer: LayerSpec, eps: float, platform: Platform, weights: Weights, x: jax.Array, attended: jax.Array, num_rows: jax.Array
) -> jax.Array:
    """The second half, token by token: output projection and MLP, or experts."""
    linear = platform.products.linear
    x = linear(attended, weights["output"], num_rows=num_rows, residual=x)
    if "output_bias" in weights:
        x += value(weights["output_bias"])
    if layer.experts is not None:
        return experts.apply(layer.experts, eps, platform, weights, x, num_rows)
    gate_up, norm = weights["gate_up"], weights["mlp_norm"]
    if "gate_up_bias" in weights:
        both = linear(x, gate_up, num_rows=num_rows, norm=norm, eps=eps) + value(weights["gate_up_bias"])
        gate, up = jnp.split(both, 2, axis=-1)
        inner = gated("silu", gate, up)
    else:
        inner = linear(x, gate_up, activation="silu", num_rows=num_rows, norm=norm, eps=eps)
    x = linear(inner, weights["down"], num_rows=num_rows, residual=x)
    return x + value(weights["down_bias"]) if "down_bias" in weights else x


def _vector(name: str, size: int, axis: LogicalAxis) -> ParameterSpec:
    return ParameterSpec("vector", (Part(name, (size,), (axis,)),))
