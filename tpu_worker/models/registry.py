"""Which family a model's files are of. The only place that names the families."""

from collections.abc import Sequence
from pathlib import Path

from protocol.gguf_header import GgufHeader
from protocol.model_files import gguf_architecture, read_config
from protocol.quantization_config import read_quantization
from tpu_worker.models import (
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    ministral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from tpu_worker.models.family import Family, Model
from tpu_worker.models.files import ConfigJson, GgufFile

# `protocol.model_files` has their names, too, for the launcher.
FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    mixtral.FAMILY,
    qwen3_moe.FAMILY,
    gpt_oss.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
    smollm3.FAMILY,
    olmo2.FAMILY,
    granite.FAMILY,
    ministral.FAMILY,
)


def model_from_config(path: Path, families: Sequence[Family] = FAMILIES) -> Model:
    """The model of a Hugging Face config.json. Raises ModelError naming the file and what is wrong or not supported."""
    by_name = {name: family for family in families for name in family.huggingface}
    architecture, fields = read_config(path, tuple(by_name))
    family = by_name[architecture]
    return Model(family, family.read_config(ConfigJson(path, architecture, fields)), read_quantization(path, fields))


def model_from_gguf(path: Path, header: GgufHeader, families: Sequence[Family] = FAMILIES) -> Model:
    """The model of a GGUF file. Raises ModelError naming the file and what is wrong or not supported."""
    by_name = {name: family for family in families for name in family.gguf}
    architecture = gguf_architecture(path, header, tuple(by_name))
    family = by_name[architecture]
    return Model(family, family.read_gguf(GgufFile(path, architecture, header)))
