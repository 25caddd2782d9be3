"""What `engine-aot` and the processes that compile for it say to each other: a line of JSON each."""

import msgspec

from protocol.aot_report import ProgramReport
from protocol.config import EngineConfig, FloatType, Quantization


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first line to a compiling process: what all its programs are of."""

    config: EngineConfig
    topology: str
    context: int  # tokens of each row that times are estimated for
    scratch: str  # an empty directory of this process alone, for what the compiler writes
    save: str = ""  # a directory that takes the compiled programs; empty: they are not kept


class Compile(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Each further line: a program to compile."""

    name: str


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes on each chip, cut so and kept so. Sizes in bytes."""

    tensor_parallel_size: int
    weights: int
    weights_int8: int  # with matrices in 8 bits
    per_token: int  # of the KV cache
    per_token_fp8: int  # with keys and values in 8 bits


class Drawn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first line from a compiling process: what there is to compile, and what was chosen. Sizes in bytes on each chip."""

    versions: dict[str, str]
    model_digest: str
    chip: str
    programs: tuple[str, ...]  # as `tpu_worker.program.Compiler.programs` has them, those that take longest first
    max_model_len: int
    context_length: int  # that the model was made for
    block_size: int
    dtype: FloatType
    quantization: Quantization
    hbm: int
    weights: int
    state: int  # tokens, tables and parameters of all slots
    bytes_per_block: int
    cache_of_row: int  # as in the report
    blocks_per_sequence: int  # of max_model_len tokens
    working_memory: int  # that the engine leaves for steps
    num_blocks: int  # that the engine takes; fewer than `blocks_per_sequence`: it does not fit
    needs: tuple[Need, ...]  # on as many chips as are possible
    decodes_apart: bool = True  # as the report has it
    windows: tuple[int, ...] = (0,)  # of each KV cache group, as `CacheGroups` has them
    padding_costs: bool = False  # as the report has it


class Compiled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer to `Compile`."""

    program: ProgramReport


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """In place of `Drawn`: the job cannot be done."""

    text: str
    exit_code: int  # one of `protocol.errors.ExitCode`


Order = Job | Compile
Answer = Drawn | Compiled | Refused
