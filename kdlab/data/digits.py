"""Real handwriting that is on every machine: scikit-learn's digits."""

import numpy as np
import torch
from PIL import Image
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data.splits import ImageSplits
from kdlab.data.transforms import ImageTransform

TRAIN, VAL, TEST = 1200, 199, 398
SIZE = 32


class ImagesInMemory(Dataset):
    """Images (n, 3, h, w), normalised, and their labels."""

    def __init__(self, images: Tensor, targets: list[int]) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def load_digits(size: int = SIZE) -> ImageSplits:
    """1,797 digits, written by 13 people, 8x8 grey, as RGB at ``size`` x ``size``: 1,200 train, 199 val, 398 test.

    The split is stratified by class and always the same. It is by image, not by writer, so the same hands are in all
    three parts. Mean and standard deviation are the training part's.

    Source: scikit-learn's copy of the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and
    Kaynak, 1998).
    """
    data = datasets.load_digits()
    grey = [Image.fromarray(np.uint8(image * 15.9375)) for image in data.images]  # 0 to 16 becomes 0 to 255
    train, rest = train_test_split(range(len(grey)), train_size=TRAIN, stratify=data.target, random_state=0)
    val, test = train_test_split(rest, train_size=VAL, stratify=data.target[rest], random_state=0)
    raw = ImageTransform(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = torch.stack([raw(image.convert("RGB")) for image in grey])
    mean, std = images[train].mean().item(), images[train].std().item()
    images = (images - mean) / std

    def part(indices: list[int]) -> ImagesInMemory:
        return ImagesInMemory(images[indices], data.target[indices].tolist())

    return ImageSplits(
        train=part(train), val=part(val), test=part(test), classes=tuple("0123456789"),
        mean=(mean,) * 3, std=(std,) * 3, size=size, name="digits", deterministic=True,
    )  # fmt: skip
