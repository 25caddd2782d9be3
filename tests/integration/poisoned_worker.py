"""A worker whose device kills the process when it is given a poisoned prompt."""

import os
import resource
import signal

from tpu_worker.__main__ import main
from tpu_worker.device import StepPlan
from tpu_worker.simulator import SimulatedDevice, SimulatedStep

CRASHES, IS_KILLED = 31_001, 31_002  # tokens: the process crashes by itself, or is killed as if by the kernel


class FragileDevice(SimulatedDevice):
    def forward(self, plan: StepPlan) -> SimulatedStep:
        for admission in plan.admissions:
            for token, signum in ((CRASHES, signal.SIGSEGV), (IS_KILLED, signal.SIGKILL)):
                if token in admission.token_ids:
                    os.kill(os.getpid(), signum)
        return super().forward(plan)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import tpu_worker.simulator as simulator
    from protocol.supervision import leave

    simulator.SimulatedDevice = FragileDevice  # type: ignore[misc]
    leave(main())
