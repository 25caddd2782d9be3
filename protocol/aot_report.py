"""What compiling an engine's programs told, for chips that need not be there: the file of `engine-aot --json`."""

from typing import Literal

import msgspec

from protocol.config import FloatType, KvCacheDtype, Quantization
from protocol.errors import ConfigError
from protocol.model_sizes import ModelSizes

REPORT_VERSION = 1
_LARGEST = 1 << 24  # bytes of a file; a program has some hundreds
_LONGEST = 1e12  # microseconds
_MOST = 1 << 20  # tokens
_AGAIN = "make it again with engine-aot --json"

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

    def microseconds(self, rows: int, context: int, pairs: int) -> float:
        """Of a step of these."""
        return self.fixed + rows * self.per_row + context * self.per_context_token + pairs * self.per_pair


def pairs_of_prompt(tokens: int, window: int | None = None) -> int:
    """Of a prompt of so many tokens: each sees those before it, and itself, or the last so many of these."""
    more = max(0, tokens - window) if window else 0
    return (tokens - more) * (tokens - more + 1) // 2 + more * (window or 0)


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
    unknown: str = ""  # why there is no time


class AotReport(msgspec.Struct, frozen=True, kw_only=True):
    """All programs of one worker. Sizes in bytes on each chip."""

    version: int = REPORT_VERSION
    versions: dict[str, str]  # of twodeep, jax, jaxlib, libtpu
    model: str  # as --model named it
    model_digest: str  # `ModelSizes.digest`: an engine of a model with another one cannot be simulated with this report
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
    cache_of_row: int  # that a row of `context` tokens reads in a step
    num_blocks: int  # that fit beside weights and programs
    context: int  # tokens of each row that the estimates are for
    programs: tuple[ProgramReport, ...]
    decodes_apart: bool = True  # steps that are not for decoding have buckets of their own, as the platform's `Attention` has it
    padding_costs: bool = False  # which buckets there are follows from it; as the platform has it
    kv_cache_dtype: KvCacheDtype = "auto"  # as the flag had it


class _Version(msgspec.Struct):
    """All that reports of any version have in common."""

    version: int


_VERSION_DECODER = msgspec.json.Decoder(_Version)
_DECODER = msgspec.json.Decoder(AotReport)


def read_report(path: str, flag: str) -> AotReport:
    """The report in a file, all numbers of its times finite and not negative. Raises ConfigError naming the flag that the file was
    given with, and the way out."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ConfigError(f"{flag} {path}: more than {_LARGEST} bytes: no report is so long")
        version = _VERSION_DECODER.decode(data).version
        if version != REPORT_VERSION:
            raise ConfigError(f"{flag} {path}: a report of version {version}, and this engine reads {REPORT_VERSION}: {_AGAIN}")
        report = _DECODER.decode(data)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{flag} {path}: no whole report ({error}): {_AGAIN}") from error
    if not 1 <= report.block_size <= _MOST or not 1 <= report.max_model_len <= _MOST or not 0 <= report.num_blocks < 1 << 31:
        raise ConfigError(f"{flag} {path}: {report.num_blocks} blocks of {report.block_size} tokens, which cannot be: {_AGAIN}")
    for program in report.programs:
        if program.time is not None and not all(0 <= value < _LONGEST for value in msgspec.structs.astuple(program.time)):
            raise ConfigError(f"{flag} {path}: {program.name} takes {program.time}, which cannot be: {_AGAIN}")
    return report


def check_model(report: AotReport, path: str, sizes: ModelSizes) -> None:
    """Raises ConfigError when the report, that --sim-report names, is of a model of other sizes."""
    if report.model_digest != sizes.digest:
        raise ConfigError(
            f"--sim-report {path} is of {report.model} ({report.model_digest}), and --model is of another one ({sizes.digest}): "
            "give --model that one, or make a report of this one with engine-aot --json"
        )
