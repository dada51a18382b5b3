"""``python -m kdlab``: the command line where ``kdlab`` is not on the path."""

import sys

from kdlab.cli import main

sys.exit(main())
