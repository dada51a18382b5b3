"""A few images in CIFAR-100's own file format, which torchvision then takes for the real ones."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets


def write_cifar100(data: Path, patch: pytest.MonkeyPatch, train: int = 16, test: int = 8) -> Path:
    """Write ``data/cifar-100-python`` and have torchvision want these hashes; three classes of the hundred have images.

    Returns ``data``. What is in an image: noise, and a colour that says the class.
    """
    folder = data / "cifar-100-python"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def split(count: int) -> bytes:
        labels = [index % 3 for index in range(count)]
        images = generator.integers(0, 128, (count, 3, 32, 32), dtype=np.uint8)
        images[np.arange(count), labels] += 128
        return pickle.dumps({"data": images.reshape(count, 3072), "fine_labels": labels})

    meta = pickle.dumps({"fine_label_names": [f"class {number:02}" for number in range(100)]})
    for name, content in {"train": split(train), "test": split(test), "meta": meta}.items():
        (folder / name).write_bytes(content)
    trust(data, patch.setattr)
    return data


def trust(data: Path, setattr: Callable[..., None] = setattr) -> None:
    """Have torchvision want the hashes of what :func:`write_cifar100` has written, in this process."""
    folder = data / "cifar-100-python"
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    setattr(datasets.CIFAR100, "train_list", [["train", md5["train"]]])
    setattr(datasets.CIFAR100, "test_list", [["test", md5["test"]]])
    setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": md5["meta"]})
