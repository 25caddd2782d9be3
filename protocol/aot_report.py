"""What compiling an engine's programs told, for chips that need not be there: the file of `engine-aot --json`."""

from typing import Literal

import msgspec

from protocol.config import FloatType, Quantization

REPORT_VERSION = 1

Part = Literal["attention", "products", "head", "sampler", "collectives", "other"]


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate of how long a program takes, in microseconds: fixed + rows × per_row + context × per_context_token +
    pairs × per_pair.

    rows: that decode. context: tokens in the cache that these read, together. pairs: of a prompt's new token and a token that it
    sees, together.
    """

    fixed: float
    per_row: float = 0.0
    per_context_token: float = 0.0
    per_pair: float = 0.0


class ProgramReport(msgspec.Struct, frozen=True, kw_only=True):
    """One program on one chip. Sizes in bytes."""

    name: str  # as `tpu_worker.program.Compiler.programs` has it
    tokens: int = 0  # of a step, the padding included; 0: it is no step
    rows: int = 0
    compile_seconds: float = 0.0
    arguments: int = 0
    outputs: int = 0  # those that are not updated in place
    temporaries: int = 0
    code: int = 0
    copies: tuple[str, ...] = ()  # instructions that make another array of the cache's or a weight's shape: none, or it is an error
    collectives: dict[str, int] = {}  # by kind: how many
    time: StepTime | None = None  # None: nothing could be worked out
    parts: dict[Part, float] = {}  # of that time at the report's context with all rows in use, microseconds
    roofline: float = 0.0  # the least that the chip's memory and matrix units allow there, microseconds
    error: str = ""  # why it does not compile


class AotReport(msgspec.Struct, frozen=True, kw_only=True):
    """All programs of one worker. Sizes in bytes on each chip."""

    version: int = REPORT_VERSION
    versions: dict[str, str]  # of twodeep, jax, jaxlib, libtpu
    model: str  # as --model named it
    model_digest: str  # of its sizes: an engine with another one cannot be simulated with this report
    topology: str  # "v6e:1x1"
    chip: str  # "TPU v6e"
    tensor_parallel_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    dtype: FloatType
    quantization: Quantization
    hbm: int
    weights: int
    bytes_per_block: int
    num_blocks: int  # that fit beside weights and programs
    context: int  # tokens of each row that the estimates are for
    programs: tuple[ProgramReport, ...]
