"""The built-in digits: real handwriting, split once and for all."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch.utils.data import DataLoader

from kdlab import InputError
from kdlab.data import load_digits

SPLITS = ("train", "val", "test")
SIZES = {"train": 1200, "val": 199, "test": 398}


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def originals():
    """scikit-learn's images, 0 to 1, at 8x8, and their labels."""
    data = datasets.load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32), torch.tensor(data.target)


def pixels(digits, split):
    """The images as they were before the normalisation, 0 to 1."""
    return getattr(digits, split).images * digits.std[0] + digits.mean[0]


def test_what_it_says_about_itself(digits):
    assert {split: len(getattr(digits, split)) for split in SPLITS} == SIZES
    assert digits.classes == tuple("0123456789")
    assert (digits.size, digits.name, digits.deterministic, digits.test_is_val) == (32, "digits", True, False)
    assert digits.skipped == ()


def test_an_item_is_an_rgb_image_and_a_label(digits):
    image, label = digits.train[5]
    assert (image.shape, image.dtype, type(label)) == ((3, 32, 32), torch.float32, int)
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    images, labels = next(iter(DataLoader(digits.test, batch_size=4)))
    assert (images.shape, labels.dtype) == ((4, 3, 32, 32), torch.int64)


@pytest.mark.parametrize("split", SPLITS)
def test_each_class_has_its_share_of_each_split(digits, originals, split):
    share = np.bincount(originals[1]) / len(originals[1]) * SIZES[split]
    counts = np.bincount(getattr(digits, split).targets, minlength=10)
    assert np.abs(counts - share).max() <= 1


def test_the_splits_are_disjoint_and_complete_and_every_label_is_its_images(digits, originals):
    images, labels = originals
    enlarged = F.interpolate(images[:, None], size=32, mode="bilinear").flatten(1)
    used = []
    for split in SPLITS:
        nearest = torch.cdist(pixels(digits, split)[:, 0].flatten(1), enlarged).argmin(dim=1)
        assert labels[nearest].tolist() == getattr(digits, split).targets
        used += nearest.tolist()
    assert sorted(used) == list(range(1797))


def test_an_image_is_scikit_learns_own_enlarged(digits, originals):
    images, _ = originals
    enlarged = F.interpolate(images[:, None], size=32, mode="bilinear")
    for split in SPLITS:
        own = pixels(digits, split)[:50, :1]
        nearest = enlarged[torch.cdist(own.flatten(1), enlarged.flatten(1)).argmin(dim=1)]
        torch.testing.assert_close(own, nearest, rtol=0, atol=2 / 255)  # both roundings of pixels in 256 steps


def test_the_training_images_have_mean_0_and_deviation_1(digits):
    for channel in range(3):
        assert abs(digits.train.images[:, channel].mean()) < 1e-4
        assert abs(digits.train.images[:, channel].std() - 1) < 1e-3
    assert len(set(digits.mean)) == len(set(digits.std)) == 1


def test_the_other_splits_are_normalised_by_the_training_images(digits, originals):
    own = (originals[0].mean(), originals[0].std())
    assert abs(digits.mean[0] - own[0]) < 0.01
    assert abs(digits.val.images.mean()) > 1e-4  # its own mean is another
    assert pixels(digits, "val").min() == pytest.approx(0, abs=1e-5)
    assert pixels(digits, "val").max() == pytest.approx(1, abs=1e-5)


def test_it_is_the_same_each_time(digits):
    torch.manual_seed(5), np.random.seed(5)
    again = load_digits()
    for split in SPLITS:
        assert torch.equal(getattr(again, split).images, getattr(digits, split).images)
        assert getattr(again, split).targets == getattr(digits, split).targets


def test_mean_and_std_are_taken_as_given(digits):
    given = load_digits(mean=(0.1, 0.2, 0.3), std=[0.5, 1, 0.25])
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.5, 1.0, 0.25))
    raw = pixels(digits, "train")
    expected = (raw - torch.tensor(given.mean).view(3, 1, 1)) / torch.tensor(given.std).view(3, 1, 1)
    torch.testing.assert_close(given.train.images, expected)
    black = load_digits(mean=(0.0, 0.0, 0.0))  # a zero is a mean like any other
    assert black.mean == (0.0, 0.0, 0.0)
    assert black.std == digits.std


@pytest.mark.parametrize("size", [8, 20])
def test_another_size(size):
    digits = load_digits(size)
    assert digits.size == size
    assert digits.val.images.shape == (199, 3, size, size)


REFUSED = {
    "mean of one": ({"mean": [0.5]}, "mean has 1 value, 3 wanted"),
    "std of two": ({"std": (0.5, 0.5)}, "std has 2 values, 3 wanted"),
    "no numbers": ({"mean": ("a", "b", "c")}, "mean is .*wanted 3 numbers"),
    "not finite": ({"mean": (0.0, float("nan"), 0.0)}, "mean is .*3 finite numbers"),
    "std of zero": ({"std": (0.5, 0.0, 0.5)}, "std is .*above 0"),
    "empty mean": ({"mean": ()}, "mean has 0 values"),
    "size of zero": ({"size": 0}, "size is 0"),
    "half a pixel": ({"size": 8.5}, "size is 8.5"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_sense_is_refused(options, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        load_digits(**options)
