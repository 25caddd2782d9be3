"""Entry point of a rank behind the first: `python -m tpu_worker.hosts FD`, started by that host's launcher."""

import sys

from protocol.supervision import enter_child, leave, run_child


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "tpu_follower", die_with_launcher=True)

    def serve() -> None:
        from tpu_worker.hosts.follower import Follower  # brings JAX, which reads the affinity and environment set before this line

        Follower(spec, launcher).run()

    return run_child(launcher, serve)


if __name__ == "__main__":
    leave(main())
