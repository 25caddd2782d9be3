"""The configuration of one engine: checked once by the launcher, then frozen and handed to every child."""

from typing import Literal

import msgspec

from protocol.codec import Decoder, encode
from protocol.params import Pooling, SamplingDefaults
from protocol.pulse import pulse_interval

PROTOCOL_VERSION = 1

Device = Literal["auto", "cpu", "tpu", "cuda", "sim"]
ModelFormat = Literal["gguf", "huggingface"]
# Whether HTTP clients may set the priority of their requests: "fcfs" is first come, first served.
SchedulingPolicy = Literal["fcfs", "priority"]
# How weights are kept. "auto": in the blocks of few bits that the file holds, where there are kernels for them, else as floats;
# "int8": in at most eight bits, whatever the file holds: in blocks on a CPU, elsewhere with a scale for each output; "fp8": so, as
# FP8 (e4m3); "none": as floats.
Quantization = Literal["auto", "none", "int8", "fp8"]
# What floats are kept in and computed with: weights, keys and values, and what products make of their inputs. "auto": float32 for
# small models (`tpu_worker.weights.precision`), else bfloat16. Sums, norms and what flows from layer to layer are always float32.
FloatType = Literal["bfloat16", "float32"]
Dtype = Literal["auto", "bfloat16", "float32"]
# What keys and values are kept as; "auto": as other floats are. Those of "int8" have a scale each.
KvCacheDtype = Literal["auto", "bfloat16", "fp8_e4m3", "fp8_e5m2", "int8"]
# Where weights come from. "dummy": they are random, and there need be none.
LoadFormat = Literal["auto", "dummy"]

LogFormat = Literal["human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

DEFAULT_MAX_RESTARTS = 10
DEFAULT_LOG_LEVEL: LogLevel = "info"


class SimulatedTimes(msgspec.Struct, frozen=True):
    """How long the simulated device takes, in microseconds: prefill tokens × the first + (decode rows > 0) × the second +
    decode rows × the third."""

    prefill_us_per_token: float = 20.0
    decode_us: float = 2000.0
    decode_us_per_seq: float = 0.0
    report: str = ""  # file of `engine-aot --json`, which says how long each program takes; empty: the three above do


class EmbeddingSettings(msgspec.Struct, frozen=True):
    """How embeddings are made of what the device computes, as the model's files or the operator have it."""

    pooling: Pooling = "last"
    normalize: bool = True  # to a length of one
    shortens: bool = False  # clients may have fewer numbers: the model was trained so that the first ones do (Matryoshka)
    sizes: tuple[int, ...] = ()  # … of these; empty: any


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the children need to know. Optional sizes are resolved by the worker, which sees model and memory."""

    model_path: str  # absolute: a GGUF file or a Hugging Face directory
    model_format: ModelFormat
    served_model_names: tuple[str, ...]
    device: Device = "auto"
    workers: int = 1
    tensor_parallel_size: int = 1
    hosts: tuple[str, ...] = ()  # over which the one worker extends, in the order of their ranks; empty: it is on this host alone
    host_rank: int = 0  # which of them this one is
    hosts_port: int = 8476  # first of three ports of the first of them, where the others meet it
    hosts_secret: str = ""  # what all of them know and nobody else; empty: their network is trusted
    queue_depth: int = 2
    max_model_len: int | None = None  # tokens of prompt and output together; None: the model's own limit
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 512
    block_size: int | None = None  # tokens of a KV block; None: what the worker's platform prefers
    kv_cache_memory: int | None = None  # bytes per worker; None: from the memory that is there
    gpu_memory_utilization: float | None = None  # of the memory of a device, or host: what weights and cache may fill it to
    seed: int | None = None  # draws the seeds of requests that have none; None: chance does
    enable_prefix_caching: bool = True
    quantization: Quantization = "auto"
    dtype: Dtype = "auto"
    kv_cache_dtype: KvCacheDtype = "auto"
    load_format: LoadFormat = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    ipc_path: str = ""
    tool_call_parser: str = "auto"  # which format the model's calls of tools have
    reasoning_parser: str = "auto"  # between which tags the model thinks; "none": thoughts are left in the text
    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()  # web pages that may read answers (CORS), as browsers write them; * for all
    allow_credentials: bool = False  # of browsers, from these pages
    allowed_hosts: tuple[str, ...] = ()  # Host headers besides local ones, for which an engine on loopback answers; * for all
    stream_keep_alive: float = 15.0  # seconds of silence in a stream before a comment; 0: none
    shared_prefix_cache: bool = False  # the holders of different keys find each other's prefixes
    sampling_defaults: SamplingDefaults = SamplingDefaults()
    embedding: EmbeddingSettings = EmbeddingSettings()
    strict_max_tokens: bool = False  # more than the context has room for is refused, not clipped
    scheduling_policy: SchedulingPolicy = "fcfs"
    frontends: int = 1  # processes that share the HTTP port
    ui: bool = True  # whether GET / shows a page for people
    step_timeout: float = 60.0  # seconds without progress: of a step, before its worker counts as hung, and of any main loop
    drain_timeout: float = 30.0  # seconds that running requests get after SIGTERM
    compilation_cache: str = ""  # directory; empty: no persistent cache
    compiled: str = ""  # directory of programs that were compiled ahead, for workers to load; empty: none
    save_compiled: str = ""  # directory in which workers put theirs; empty: none
    simulated: SimulatedTimes = SimulatedTimes()
    pulse_timeout: float = 10.0  # seconds that a process may be stopped by a signal; for half of them /health waits
    boot_timeout: float = 1800.0  # seconds without progress while loading or compiling: one program may take minutes
    max_restarts: int = DEFAULT_MAX_RESTARTS  # of scheduler or frontend within a minute; one more death ends the engine
    restart_delay: float = 1.0  # seconds before a worker that dies again is started again; doubles up to thirty times this

    log_format: LogFormat = "human"
    log_level: LogLevel = DEFAULT_LOG_LEVEL
    otlp_traces_endpoint: str = ""  # URL that takes spans of requests; empty: none are made
    log_prompts: bool = False  # whether the line of each request says what was asked

    @property
    def pulse_interval(self) -> float:
        """Seconds between two pulses of a process. No loop waits for longer: every limit is looked at often enough."""
        return pulse_interval(min(self.pulse_timeout, self.step_timeout))


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the launcher tells one child at birth, as the first frame of its supervision link."""

    role: Literal["frontend", "scheduler", "worker", "grammar", "follower"]
    index: int  # which worker or frontend, or the rank of this host; 0 for the others
    epoch: int  # rises with each replacement of this child
    run_dir: str  # private directory (mode 0700) that holds the sockets
    cpus: tuple[int, ...]  # processors that this child may run on; empty: all
    config: EngineConfig
    version: int = PROTOCOL_VERSION
    session: int = 0  # which life of the scheduler it is, as this child begins
    http_fd: int = -1  # a frontend's: descriptor of the socket that it is to listen on; -1: it takes the port itself
    http_outlives: bool = False  # the service manager holds that socket too: another engine will serve who waits there


CHILD_SPEC_DECODER: Decoder[ChildSpec] = Decoder(ChildSpec)


def encode_spec(spec: ChildSpec) -> bytes:
    """The blob that a child reads at start."""
    return encode(spec)
