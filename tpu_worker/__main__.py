"""Entry point of a worker process: `python -m tpu_worker FD`, started by the launcher."""

import sys

from protocol.config import EngineConfig
from protocol.model_files import check_length, read_model_facts
from protocol.supervision import enter_child, leave, run_child
from tpu_worker.device import Device
from tpu_worker.loop import WorkerLoop


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "tpu_worker", die_with_launcher=True)

    def serve() -> None:
        if not spec.config.hosts:
            WorkerLoop(spec, launcher, _make_device(spec.config)).run()
            return
        from tpu_worker.hosts.leading_device import LeadingDevice  # brings JAX, as the other one

        with LeadingDevice(spec, launcher) as device:
            WorkerLoop(spec, launcher, device).run()

    return run_child(launcher, serve)


def _make_device(config: EngineConfig) -> Device:
    if config.device == "sim":
        from tpu_worker.simulated_times import simulated_chip
        from tpu_worker.simulator import SimulatedDevice

        # Without JAX: it needs no more of a model.
        facts = read_model_facts(config.model_path, config.model_format, config.load_format)
        max_model_len = check_length(config.max_model_len, facts.context_length, facts.context_field)
        chip = simulated_chip(config, facts.sizes)
        return SimulatedDevice(config, vocab_size=facts.vocab_size, max_model_len=max_model_len, chip=chip)
    from tpu_worker.runner import (
        JaxDevice,  # brings JAX, which reads the affinity and environment set before this line
    )

    return JaxDevice(config)


if __name__ == "__main__":
    leave(main())
