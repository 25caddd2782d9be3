"""engine-launch with real children, but the simulated device does not survive a prompt that holds a certain token."""

import sys
from pathlib import Path

from frontend.launcher import child, engine
from frontend.launcher.__main__ import main

if __name__ == "__main__":
    worker = (sys.executable, "-P", str(Path(__file__).with_name("poisoned_worker.py")))
    engine.Engine.__init__.__kwdefaults__["programs"] = {**child.PROGRAMS, "worker": worker}  # type: ignore[index]
    sys.exit(main())
