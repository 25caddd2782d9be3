"""Every message between frontend, scheduler and workers: one tagged union per directed link.

Fields are appended with defaults and never reordered. `epoch` names the incarnation of the worker that a message belongs to:
a frame from a dead incarnation is refused. Fields of type `bytes` are packed integers (`protocol.codec`): `*_i32` little-endian
int32, `*_u64` uint64, `*_f32` float32.
"""

from typing import Literal

import msgspec

from protocol.codec import Decoder
from protocol.config import PROTOCOL_VERSION, LogLevel
from protocol.params import EngineParams

FinishReason = Literal["stop", "length", "abort", "error"]


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages: positional encoding, so that field names cost nothing on the wire."""


class Pulse(Message, frozen=True, tag="pulse"):
    """The sender's main loop came round: sent by that loop and by nothing else, about once a second. Goes to the launcher from
    every child, and from the scheduler to the frontend."""

    phase: str  # for people: "idle", "running"
    count: int  # steps or events that the loop has handled


# frontend -> scheduler


class AddRequest(Message, frozen=True, tag="add"):
    """One accepted request. `request_id` is the frontend's own (`protocol.request_ids`), rising, never a client's."""

    request_id: int
    token_ids_i32: bytes  # prompt, then the tokens already emitted when a request is resumed
    num_prompt_tokens: int
    params: EngineParams
    priority: int = 0  # lower runs first
    stream: bool = True  # False: the tokens come once, in `Finished`; not for requests that ask for log-probabilities
    cache_salt: str = ""  # requests share prefix-cache blocks only with the same salt
    name: str = ""  # what its client calls it, for people: an HTTP answer's x-request-id; several requests may share one
    again: bool = False  # the scheduler may know it: from now on, this is how it stands
    line: int = 0  # requests of the same number wait in one line, and lines take turns; 0: it is alone in its own


class AbortRequest(Message, frozen=True, tag="abort"):
    """The client left, timed out, or a stop string was found. Unknown ids are ignored."""

    request_id: int


class GetStats(Message, frozen=True, tag="stats"):
    """Asks for one EngineStats."""

    query_id: int


class GetTrace(Message, frozen=True, tag="trace"):
    """Asks for the step records that the ring buffer holds, as one TraceRecords. Who asks again and again names where it stands, so
    that each answer is as large as what is new."""

    query_id: int
    since: int = 0  # the first wanted, counted from the scheduler's start; beyond its count, which began anew then: all
    most: int = -1  # of the latest; below 0: as many as the ring holds


ANY_REQUEST = -1  # no request has this number


class GetStory(Message, frozen=True, tag="story"):
    """Asks how a request came to stand where it stands, as one Story: that of this number, or the latest of this name."""

    query_id: int
    request_id: int  # ANY_REQUEST: that of the name; without a name, the latest of all
    name: str = ""


class FrontendJoined(Message, frozen=True, tag="joined"):
    """The hello of an incarnation of a frontend, the first message of each session: answered with EngineReady, if not now then when
    the workers are there. Requests of earlier incarnations have lost their clients, and end. Those that it has accepted and that
    have not ended follow, with the tokens that they have by now."""

    frontend: int
    epoch: int
    version: int = PROTOCOL_VERSION


FrontendToScheduler = AddRequest | AbortRequest | GetStats | GetTrace | GetStory | FrontendJoined
FRONTEND_TO_SCHEDULER: Decoder[FrontendToScheduler] = Decoder(FrontendToScheduler)


# scheduler -> frontend


class EngineReady(Message, frozen=True, tag="ready"):
    """Sent when the last worker joined, and again whenever the number of live workers changes."""

    workers: int  # live now
    max_model_len: int
    vocab_size: int
    num_blocks: int  # summed over the workers
    block_size: int
    device: str  # what the workers run on, for people
    weights: str = ""  # how each of them keeps these, for people
    embedding_size: int = 0  # numbers of an embedding; 0: the model's family gives none
    kv_cache_tokens: int = 0  # of sequences as long as they may be, for which there are blocks; summed over the workers
    kv_cache_dtype: str = ""  # what keys and values are kept as, for people


class TopLogprobs(Message, frozen=True):
    """Log-probabilities of one emitted token: the token's own, and the most likely candidates in falling order."""

    logprob: float
    rank: int
    token_ids_i32: bytes
    logprobs_f32: bytes


class PromptScores(Message, frozen=True):
    """What a step computed of a prompt besides: log-probabilities of some of its tokens, each given the tokens before it, and of
    the most likely candidates there; or, with its end, its embedding."""

    start: int  # position of the first token, at least 1
    logprobs_f32: bytes  # [tokens, 1 + candidates]: the token's own, then those of the candidates in falling order
    ranks_i32: bytes  # [tokens, 1 + candidates]: rank of the token from 1, then the ids of the candidates
    embedding_f32: bytes = b""  # [embedding size], as `EngineParams.pooling` has it, not normalised; then the others are empty


class Finished(Message, frozen=True):
    """The end of one request. `token_ids_i32` holds the whole output when the request asked not to stream."""

    request_id: int
    reason: FinishReason
    stop_token_id: int = -1  # the id that ended it, when `reason` is "stop"; the last token of the output is that id
    token_ids_i32: bytes = b""
    message: str = ""  # why, when `reason` is "error"
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache held
    queue_ns: int = 0  # from its arrival at the scheduler to its first slot
    prefill_ns: int = 0  # from there to its first token
    unsatisfiable: bool = False  # with reason "error": the request asks for what cannot be had, and the engine is well


class TokenBatch(Message, frozen=True, tag="tokens"):
    """What one returned step brings: token i belongs to request i. Then the requests that ended, last tokens included."""

    worker: int
    step_id: int
    request_ids_u64: bytes
    token_ids_i32: bytes
    finished: tuple[Finished, ...] = ()
    logprobs: dict[int, TopLogprobs] = {}  # request id -> of its token in this batch, where the request asked
    num_cached_tokens: dict[int, int] = {}  # request id -> prompt tokens that the prefix cache held; with its first token
    queue_ns: dict[int, int] = {}  # request id -> from its arrival at the scheduler to its first slot; with its first token
    prompt_scores: dict[int, PromptScores] = {}  # request id -> what this step computed of them; before its first token
    lengths_i32: bytes = b""  # of each token: how long its request is with it, prompt included


class WorkerStats(Message, frozen=True):
    """State of one worker's lane in the scheduler."""

    worker: int
    alive: bool
    running: int
    blocks: int
    blocks_free: int
    steps: int
    in_flight: int
    device_busy_ns: int = 0  # time that the device took for the steps of this incarnation


# Upper bounds of the sizes of steps, in tokens, by which EngineStats counts them; larger ones have a bucket of their own.
STEP_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

# Where the host's time of a step goes, in the order of its life: planning, the way to the worker, its inputs, their dispatch,
# fetching what the device made of them, and the way back.
STEP_STAGES = ("schedule", "send", "prepare", "dispatch", "collect", "answer")


class EngineStats(Message, frozen=True, tag="stats"):
    """Answers GetStats; comes unasked too, beside each pulse to the frontend. Counters count since the scheduler started."""

    query_id: int  # 0: unasked
    waiting: int
    workers: tuple[WorkerStats, ...]
    counters: dict[str, int]  # requests, tokens, preemptions, prefix cache queries and hits, refused frames by cause, …
    now_ns: int = 0  # when they were so, on the one clock
    steps_by_size: tuple[int, ...] = ()  # steps in each bucket of STEP_SIZES
    step_tokens: int = 0  # of all steps together
    stages_ns: tuple[int, ...] = ()  # of all steps together, in each of STEP_STAGES


class TraceRecords(Message, frozen=True, tag="trace"):
    """Answers GetTrace: rows of `scheduler_proc.trace.COLUMNS`, int64 little-endian, oldest first."""

    query_id: int
    columns: tuple[str, ...]
    rows_i64: bytes
    end: int = 0  # how many steps were recorded so far: `since` of who asks next


class Move(Message, frozen=True):
    """One change of a request's state. States are those of `scheduler_proc.request.RequestState`."""

    before: str
    after: str
    cause: str  # for people
    at_ns: int


class Story(Message, frozen=True, tag="story"):
    """Answers GetStory."""

    query_id: int
    request_id: int  # ANY_REQUEST: none was found
    moves: tuple[Move, ...]  # oldest first, as far back as the scheduler remembers
    now: str  # where it stands and what it waits for, for people
    name: str = ""  # what its client calls it
    request_ids: tuple[int, ...] = ()  # all of the name that was asked for, oldest first; the latest of all, if it was empty
    now_ns: int = 0  # when this was told, on the clock of the moves


SchedulerToFrontend = EngineReady | TokenBatch | EngineStats | TraceRecords | Pulse | Story
SCHEDULER_TO_FRONTEND: Decoder[SchedulerToFrontend] = Decoder(SchedulerToFrontend)


# scheduler -> worker


class NewRequest(Message, frozen=True):
    """A request takes a slot: all that the worker must know to run it."""

    slot: int
    token_ids_i32: bytes  # every token known: the prompt, and earlier output when a preempted request resumes
    num_prompt_tokens: int
    num_computed: int  # leading tokens whose keys and values the blocks already hold (prefix cache)
    block_ids_i32: bytes  # its block tables, one after the other; 0 where it needs no block
    params: EngineParams
    scores: bool = False  # its prompt is to be scored or pooled, from where it begins to compute
    block_counts_i32: bytes = b""  # how long the table of each KV cache group is; empty: there is one group


class SchedulerOutput(Message, frozen=True, tag="step"):
    """One step, as the changes against the step before. The worker applies them in the order of the fields.

    Decoding is a standing order: each slot of the decode set decodes one token in every step, until it leaves the set. So a
    steady step carries nothing but its id. Prefill chunks are named for this step alone.

    The rows of a step, and so of its answer, are: the decode set in its order, then the prefill slots in theirs. A decode row
    always samples; a prefill row samples when its chunk reaches the last known token.
    """

    epoch: int
    step_id: int  # 0, 1, 2, … within an epoch
    released_i32: bytes = b""  # slots given back; they leave the decode set too
    new: tuple[NewRequest, ...] = ()
    block_slots_i32: bytes = b""  # block_ids[i] is appended to the table of slot block_slots[i]
    block_ids_i32: bytes = b""
    leaves_i32: bytes = b""  # slots that stop decoding: everything they may generate is scheduled
    joins_i32: bytes = b""  # slots appended to the decode set, in this order
    prefill_slots_i32: bytes = b""
    prefill_counts_i32: bytes = b""  # tokens of each chunk
    num_decodes: int = 0  # size of the decode set after the changes: the worker refuses a step that disagrees
    scheduled_ns: int = 0
    # Slots of chunks whose tokens behind the first became known while the request decodes, and these tokens, one chunk after the
    # other. The first token of such a chunk is the one that an earlier step sampled; the chunk samples the token behind its last.
    extended_i32: bytes = b""
    extensions_i32: bytes = b""
    block_groups_i32: bytes = b""  # of which KV cache group block_ids[i] is; empty: all are of the first


class StepMasks(Message, frozen=True, tag="masks"):
    """Which tokens rows of a step may sample. From the grammar process, and from the scheduler for rows that are given up.

    Comes before or after its step, in one piece or several; of a row that comes twice, the first counts.
    """

    epoch: int  # of the worker
    step_id: int
    rows_i32: bytes  # indices among the rows of the step that sample
    bits: bytes  # [rows, ceil(V / 32)] little-endian uint32: bit b of word w is token 32 w + b


class PrepareScores(Message, frozen=True, tag="prepare_scores"):
    """Asks a worker to compile, while it serves, what steps with prompts to be scored or pooled need. Answered by ScoresReady."""

    epoch: int


SchedulerToWorker = SchedulerOutput | PrepareScores | StepMasks
SCHEDULER_TO_WORKER: Decoder[SchedulerToWorker] = Decoder(SchedulerToWorker)  # the grammar process writes to the same pipe


# worker -> scheduler


class WorkerReady(Message, frozen=True, tag="ready"):
    """The hello of a worker whose programs are compiled: its capacity.

    Layers whose keys and values share block tables are a KV cache group; see `protocol.cache_groups`.
    """

    version: int
    worker: int
    epoch: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    device: str
    saturating_tokens: int = 0  # tokens of a step that keep its arithmetic busy: more take in proportion longer; 0: not known
    scores_ready: bool = False  # it need not be asked to prepare for the scoring of prompts
    weights: str = ""  # how they are kept, for people
    embedding_size: int = 0  # numbers of an embedding; 0: the model's family gives none
    windows: tuple[int, ...] = (0,)  # of each KV cache group: how many tokens a token sees, itself included; 0: all before it
    kv_cache_dtype: str = ""  # what keys and values are kept as, for people


class RowLogprobs(Message, frozen=True):
    """Log-probabilities of one sampled row of a step."""

    row: int  # index of its token in the answer
    logprobs: TopLogprobs


class ModelRunnerOutput(Message, frozen=True, tag="output"):
    """The answer to one step: a token for each row that samples, in the order of the rows.

    A step with rows that wait for masks, and others that do not, is answered in two parts: first those that need none.
    """

    epoch: int
    step_id: int
    token_ids_i32: bytes
    failed_rows_i32: bytes = b""  # indices of tokens whose logits were not finite: they mean nothing
    logprobs: tuple[RowLogprobs, ...] = ()
    # received, prepared, dispatched, started and finished on the device, collected: nanoseconds, in `StepTimes`' order
    times_ns: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
    failed_programs: int = 0  # that the worker could not compile while it served, since its answer before
    rows_i32: bytes = b""  # of a part: indices among the rows that sample
    more: bool = False  # the rows that wait for masks are still to come
    prompt_scores: dict[int, PromptScores] = {}  # by row of the step, sampled or not


class MasksMissing(Message, frozen=True, tag="missing"):
    """A worker has computed all of its oldest step but the tokens of these rows, whose masks are not here: the step waits for the
    grammar process, and not for the device. Repeated with each pulse."""

    epoch: int
    step_id: int
    rows_i32: bytes  # indices among the rows that sample


class ScoresReady(Message, frozen=True, tag="scores"):
    """Answers PrepareScores: steps may score and pool prompts from now on, or cannot."""

    epoch: int
    error: str = ""


class WorkerFailed(Message, frozen=True, tag="failed"):
    """The last word of a worker that cannot go on: the device died, or the two sides disagree about the batch."""

    epoch: int
    message: str


WorkerToScheduler = WorkerReady | ScoresReady | ModelRunnerOutput | WorkerFailed | MasksMissing
WORKER_TO_SCHEDULER: Decoder[WorkerToScheduler] = Decoder(WorkerToScheduler)


# child -> launcher, over the supervision link


class Progress(Message, frozen=True, tag="progress"):
    """How far a child's start has come."""

    phase: str  # for people: "loading weights", "compiling"
    done: int
    total: int


class Ready(Message, frozen=True, tag="ready"):
    """The child serves. `facts` is what the launcher's ready line says."""

    facts: dict[str, str | int] = {}


class Failed(Message, frozen=True, tag="failed"):
    """The child is about to exit with `exit_code`; `message` names the cause and the way out."""

    exit_code: int
    message: str


class WorkerHung(Message, frozen=True, tag="hung"):
    """From the scheduler: this incarnation of a worker makes no progress and must be replaced."""

    worker: int
    epoch: int
    message: str


ChildToLauncher = Progress | Ready | Failed | WorkerHung | Pulse
CHILD_TO_LAUNCHER: Decoder[ChildToLauncher] = Decoder(ChildToLauncher)


# launcher -> child


class Drain(Message, frozen=True, tag="drain"):
    """Take nothing new, finish what runs, then exit."""

    grace: float = 2.0  # seconds that clients then get to read the end of their answers


class WorkerLost(Message, frozen=True, tag="lost"):
    """To the scheduler: a worker's process ended. Its requests go elsewhere or wait for its successor."""

    worker: int
    epoch: int
    returncode: int = -9  # of the process; negative: the signal that killed it; 0: it left in peace
    killed_for: str = ""  # why the launcher had it killed; empty: it did not


class SchedulerStarted(Message, frozen=True, tag="session"):
    """To whoever talks with the scheduler: another one begins in place of one that ended. Its sockets lie in a directory of
    their own (`protocol.endpoints.session_dir`); nothing of the session before is sent or believed any more."""

    session: int


class FrontendLost(Message, frozen=True, tag="frontend_lost"):
    """To the scheduler: one frontend of several ended. Its clients are gone, and so its requests end."""

    frontend: int
    epoch: int


class Stop(Message, frozen=True, tag="stop"):
    """To a frontend: finish nothing more. Open answers end with an error that says why, then exit."""

    reason: str
    grace: float = 0.5  # seconds that clients get to read it
    may_return: bool = False  # it is no operator's wish, so another engine may be started: who can wait for it is told nothing


class Reload(Message, frozen=True, tag="reload"):
    """To every child: the operator changed what may change while the engine runs."""

    api_keys: tuple[str, ...]
    log_level: LogLevel


LauncherToChild = Drain | WorkerLost | Stop | FrontendLost | SchedulerStarted | Reload
LAUNCHER_TO_CHILD: Decoder[LauncherToChild] = Decoder(LauncherToChild)
