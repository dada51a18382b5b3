"""CIFAR-100 in its own files, as the published comparisons train on it."""

from pathlib import Path

from torchvision import datasets
from torchvision.transforms import v2

from kdlab.data.images import printable
from kdlab.data.splits import ImageSplits
from kdlab.data.transforms import ImageTransform
from kdlab.errors import InputError

SIZE = 32
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # of the training images, as the comparisons have them
PADDING = 4  # pixels on each side, black, from which the training images are cropped


def load_cifar100(data: Path) -> ImageSplits:
    """All training images, and the test images as validation and test split: the published comparisons hold none back.

    A training image is padded by 4 pixels, cropped at random and mirrored half of the time; `torch.manual_seed` makes
    that repeatable.

    Args:
        data: where ``data_scripts/get_classification.py`` has put ``cifar-100-python``, the files that torchvision
            reads.

    Raises:
        InputError: they are not there, or have another MD5 than torchvision knows.
    """
    as_it_is = ImageTransform(SIZE, MEAN, STD)
    varied = v2.Compose([v2.RandomCrop(SIZE, padding=PADDING), v2.RandomHorizontalFlip(), as_it_is])
    try:
        train = datasets.CIFAR100(data, train=True, transform=varied)
        test = datasets.CIFAR100(data, train=False, transform=as_it_is)
    except (RuntimeError, OSError) as error:
        folder = data / datasets.CIFAR100.base_folder
        get_it = f"get it with: python data_scripts/get_classification.py cifar100 --data {printable(data)}"
        if not folder.exists():
            raise InputError(f"CIFAR-100 is not in {printable(data)}; {get_it}") from error
        raise InputError(
            f"{printable(folder)} does not hold CIFAR-100's files, or not as they were published. Delete the folder, "
            f"and {get_it}"
        ) from error
    return ImageSplits(
        train, test, test, tuple(train.classes), MEAN, STD, SIZE, "cifar100", deterministic=False, test_is_val=True
    )
