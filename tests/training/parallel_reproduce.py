"""``kdlab``, started by torchrun, with torchvision taking the images of the folder after ``--data`` for CIFAR-100's."""

import hashlib
import sys
from pathlib import Path

from torchvision import datasets

from kdlab.cli import main

folder = Path(sys.argv[sys.argv.index("--data") + 1]) / "cifar-100-python"
md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
datasets.CIFAR100.train_list, datasets.CIFAR100.test_list = [["train", md5["train"]]], [["test", md5["test"]]]
datasets.CIFAR100.meta = datasets.CIFAR100.meta | {"md5": md5["meta"]}
sys.exit(main(sys.argv[1:]))
