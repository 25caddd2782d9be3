"""`engine-aot` with compiling processes that stand in: what they are told stands before `--`, the command's arguments behind it."""

import sys

from frontend.aot.__main__ import main

if __name__ == "__main__":
    cut = sys.argv.index("--")
    told = sys.argv[1:cut]
    del sys.argv[1 : cut + 1]
    sys.exit(main((sys.executable, "-m", "tests.frontend.aot.stand_in", *told)))
