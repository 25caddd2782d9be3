"""The package that docs/add-a-model.md walks through, installed from the document itself."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.tpu_worker.tiny_models import CONFIG, Tensors, make_tensors

DOCUMENT = Path(__file__).parents[1] / "docs/add-a-model.md"
TWIN: dict[str, Any] = {
    **{key: value for key, value in CONFIG.items() if key not in ("max_position_embeddings", "rope_theta")},
    "architectures": ["TwinForCausalLM"],
    "n_positions": 256,
}


def files_of_the_document() -> dict[str, str]:
    """Each file that the document shows in whole: a line with its name, then a fence."""
    return dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))


def install(directory: Path, **changes: str) -> Path:
    """The documented distribution as an installer leaves it in a folder of the module path. changes: other entry points."""
    files = files_of_the_document()
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    points = changes or project["entry-points"]["twodeep.model_families"]
    for name, text in files.items():
        (directory / name).write_text(text)
    return write_metadata(directory, project["name"], project["version"], points)


def write_metadata(directory: Path, name: str, version: str, points: Mapping[str, str]) -> Path:
    """The metadata of an installed distribution with these families."""
    info = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{architecture} = {target}" for architecture, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[twodeep.model_families]", *lines, ""]))
    return directory


def twin_tensors() -> Tensors:
    """Of a model of TWIN's sizes, under the names of its checkpoints."""
    tensors = {name: values for name, values in make_tensors(TWIN).items() if "post_attention_layernorm" not in name}
    return {_stored(name): values for name, values in tensors.items()}


def _stored(name: str) -> str:
    return name.replace("model.layers.", "transformer.h.").replace("input_layernorm", "norm").replace("model.", "transformer.")


def twin_logits(tensors: Tensors, token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """Logits [T, V] of a whole sequence at once, in float64."""
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}
    heads, kv_heads, dim = TWIN["num_attention_heads"], TWIN["num_key_value_heads"], TWIN["head_dim"]
    length = len(token_ids)
    angles = np.arange(length)[:, None] * 10000.0 ** -(np.arange(0, dim, 2) / dim)
    turn = np.exp(1j * angles)[:, None, :]

    def norm(x: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + TWIN["rms_norm_eps"]) * weights[name]  # type: ignore[no-any-return]

    def rotate(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        turned = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1)

    x = weights["transformer.embed_tokens.weight"][token_ids]
    for layer in range(TWIN["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}."
        h = norm(x, f"{prefix}norm.weight")
        q, k, v = (h @ weights[f"{prefix}self_attn.{name}_proj.weight"].T for name in "qkv")
        q, k = rotate(q.reshape(length, heads, dim)), rotate(k.reshape(length, kv_heads, dim))
        k, v = (np.repeat(one.reshape(length, kv_heads, dim), heads // kv_heads, axis=1) for one in (k, v))
        scores = np.where(np.tri(length, dtype=bool), np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended = np.einsum("hqk,khd->qhd", shares, v).reshape(length, -1)
        gate, up = (h @ weights[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        down = (gate / (1 + np.exp(-gate)) * up) @ weights[f"{prefix}mlp.down_proj.weight"].T
        x = x + attended @ weights[f"{prefix}self_attn.o_proj.weight"].T + down
    return norm(x, "transformer.norm.weight") @ weights["lm_head.weight"].T
