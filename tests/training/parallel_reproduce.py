"""``kdlab``, as torchrun starts it; torchvision takes the images of the folder after ``--data`` for CIFAR-100's."""

import sys
from pathlib import Path

from cifar_files import trust

from kdlab.cli import main

trust(Path(sys.argv[sys.argv.index("--data") + 1]))
sys.exit(main(sys.argv[1:]))
