"""Which family a model's files are of: one of ours, which are named here and nowhere else, or of another distribution."""

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

from protocol.errors import ModelError, describe
from protocol.gguf_header import GgufHeader
from protocol.model_families import GROUP, OutsideFamily
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
    architecture, outside, fields = read_config(path, tuple(by_name))
    family = by_name[architecture] if outside is None else load_family(outside, "huggingface")
    return Model(family, family.read_config(ConfigJson(path, architecture, fields)), read_quantization(path, fields))


def model_from_gguf(path: Path, header: GgufHeader, families: Sequence[Family] = FAMILIES) -> Model:
    """The model of a GGUF file. Raises ModelError naming the file and what is wrong or not supported."""
    by_name = {name: family for family in families for name in family.gguf}
    architecture, outside = gguf_architecture(path, header, tuple(by_name))
    family = by_name[architecture] if outside is None else load_family(outside, "gguf")
    return Model(family, family.read_gguf(GgufFile(path, architecture, header)))


def load_family(outside: OutsideFamily, form: Literal["huggingface", "gguf"]) -> Family:
    """Imports a family that another distribution brings, for files of this form.

    Raises ModelError naming the distribution when that cannot be, or it is no family, or none that reads such files.
    """
    try:
        family = EntryPoint(outside.architecture, outside.target, GROUP).load()
    except Exception as error:
        raise ModelError(
            f"{outside}: cannot be loaded: {type(error).__name__}: {describe(error)}: mend or uninstall the distribution"
        ) from error
    if not isinstance(family, Family):
        raise ModelError(f"{outside}: is a {type(family).__name__}, a tpu_worker.models.family.Family is wanted")
    if outside.architecture not in (names := getattr(family, form)):
        raise ModelError(
            f"{outside}: its family lists {', '.join(names) or 'nothing'} as `{form}`: the name of the entry point must be there"
        )
    return family
