"""Real handwriting that is on every machine: scikit-learn's digits."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data.splits import ImageSplits
from kdlab.data.transforms import ImageTransform, three_numbers

TRAIN, VAL = 1200, 199
SIZE = 32
CLASSES = tuple("0123456789")


class ImagesInMemory(Dataset):
    """Images (n, 3, h, w), normalised, and their labels."""

    def __init__(self, images: Tensor, targets: list[int]) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


def load_digits(
    size: int = SIZE, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> ImageSplits:
    """1,797 digits, written by 13 people, 8x8 grey, as RGB at ``size`` x ``size``: 1,200 train, 199 val, 398 test.

    The split is stratified by class and always the same. It is by image, not by writer, so the same hands are in all
    three parts. Mean and standard deviation (red, green, blue, of pixels in 0 to 1) are the training part's where they
    are not given.

    Raises:
        InputError: not three numbers in mean or std, a std that is not above 0, a size below 1.

    Source: scikit-learn's copy of the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and
    Kaynak, 1998).
    """
    splits = digit_images()
    raw = ImageTransform(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = {name: torch.stack([raw(image.convert("RGB")) for image, _ in split]) for name, split in splits.items()}
    mean = three_numbers("mean", [images["train"].mean().item()] * 3 if mean is None else mean)
    std = three_numbers("std", [images["train"].std().item()] * 3 if std is None else std)
    ImageTransform(size, mean, std)  # refuses a std of 0

    def part(name: str) -> ImagesInMemory:
        normalised = (images[name] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        return ImagesInMemory(normalised, [label for _, label in splits[name]])

    return ImageSplits(
        train=part("train"), val=part("val"), test=part("test"), classes=CLASSES,
        mean=mean, std=std, size=size, name="digits", deterministic=True,
    )  # fmt: skip


def digit_images() -> dict[str, list[tuple[Image.Image, int]]]:
    """The "train", "val" and "test" of :func:`load_digits` as they are: 8x8, grey, 0 to 255, and what each shows."""
    # Imported only now: it takes a second, also where the data are others.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    data = datasets.load_digits()
    grey = [Image.fromarray(np.uint8(image * 15.9375)) for image in data.images]  # 0 to 16 becomes 0 to 255
    train, rest = train_test_split(range(len(grey)), train_size=TRAIN, stratify=data.target, random_state=0)
    val, test = train_test_split(rest, train_size=VAL, stratify=data.target[rest], random_state=0)
    splits = {"train": train, "val": val, "test": test}
    return {name: [(grey[index], int(data.target[index])) for index in split] for name, split in splits.items()}
