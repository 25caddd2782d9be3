"""Rank 0's device: every call goes to the other ranks, and then to this host's chips, so that all run the same programs."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from protocol.codec import UInt32Array
from protocol.config import ChildSpec
from protocol.errors import EngineError, ExitCode, describe
from protocol.host_messages import PlayPrepare, PlaySample
from protocol.messages import LauncherToChild
from protocol.supervision import SupervisionLink
from tpu_worker.device import Capacity, ReportProgress, StepPlan, StepResult
from tpu_worker.hosts.distributed import connect
from tpu_worker.hosts.lead import Lead
from tpu_worker.hosts.plans import pack_plan
from tpu_worker.runner import JaxDevice


class LeadingDevice:
    """Implements `tpu_worker.device.Device`. As a context it tells the other ranks of the end, whatever it is."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        self._config = spec.config
        self._lead = Lead(spec, launcher)
        self._device = JaxDevice(spec.config, least=self._lead.least)
        self._calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            code = error.exit_code if isinstance(error, EngineError) else ExitCode.CRASHED
            self._lead.end(code, f"rank 0 ({self._config.hosts[0]}): {describe(error)}")

    def load(self, report: ReportProgress) -> Capacity:
        """As the protocol says. Meets the other ranks first, and waits for them at the end."""
        self._lead.meet(report)
        with self._lead.ends_with_others():
            connect(self._config, self._lead.address)
            capacity = self._device.load(report)
        self._lead.await_loaded(loaded_facts(capacity))
        return capacity

    def forward(self, plan: StepPlan) -> object:
        """As the protocol says."""
        self._lead.tell(pack_plan(self._lead.epoch, self._next_call(), plan))
        with self._lead.ends_with_others():
            return self._device.forward(plan)

    def sample(self, handle: object, bits: UInt32Array) -> object:
        """As the protocol says."""
        self._lead.tell(PlaySample(self._lead.epoch, self._next_call(), len(bits), bits.tobytes()))
        with self._lead.ends_with_others():
            return self._device.sample(handle, bits)

    def collect(self, handle: object) -> StepResult:
        """As the protocol says."""
        with self._lead.ends_with_others():
            return self._device.collect(handle)

    def prepare_scores(self, ready: Callable[[str], None]) -> None:
        """As the protocol says: when all ranks are."""
        call = self._next_call()
        everybody = _Together(len(self._config.hosts), ready)
        self._lead.expect_scores(call, everybody.said)
        self._lead.tell(PlayPrepare(self._lead.epoch, call))
        self._device.prepare_scores(everybody.said)

    def close(self) -> None:
        """As the protocol says. The other ranks end."""
        self._lead.end(ExitCode.OK, "")

    def _next_call(self) -> int:
        self._calls += 1
        return self._calls - 1


class _Together:
    """Tells once what became of something that all ranks do. Any thread may say what became of it on one."""

    def __init__(self, ranks: int, told: Callable[[str], None]) -> None:
        self._left = ranks
        self._error = ""
        self._told = told
        self._lock = threading.Lock()

    def said(self, error: str) -> None:
        """One more rank is done."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            if self._left:
                return
        self._told(self._error)


def loaded_facts(capacity: Capacity) -> dict[str, str]:
    """What ranks must have loaded alike. `KV blocks` are, since all take the least."""
    return {
        "the number of KV blocks": str(capacity.num_blocks),
        "the size of KV blocks": str(capacity.block_size),
        "the longest context": str(capacity.max_model_len),
        "the size of the vocabulary": str(capacity.vocab_size),
        "the windows of KV cache groups": str(capacity.windows),
        "what weights are kept as": capacity.weights,
        "the devices": capacity.description,
    }
