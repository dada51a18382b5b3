"""``kdlab``, as torchrun starts it, several commands after each other: ``teach DATA ... then distill DATA ...``.

It fails if a thread of a command's group outlives it: one that does aborts now and then a process that ends, with
status -6, after all is done.
"""

import os
import sys
from itertools import groupby
from pathlib import Path

from kdlab.cli import main

commands = [list(words) for is_then, words in groupby(sys.argv[1:], "then".__eq__) if not is_then]
# At one port the second group would find the addresses of the first.
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for port, words in zip(os.environ["PORTS"].split(), commands, strict=True):
    os.environ["MASTER_PORT"] = port
    status = main(words)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # none if this is not Linux
    status = status or ", ".join(name for name in names if "gloo" in name)
    if status:
        sys.exit(status)
