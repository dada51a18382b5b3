"""Built-in data and data on disk."""

from kdlab.data.cifar import load_cifar100
from kdlab.data.digits import load_digits
from kdlab.data.folders import load_folders
from kdlab.data.images import Skipped, open_image
from kdlab.data.masks import IGNORE, load_segmentation
from kdlab.data.pair_folders import load_pairs
from kdlab.data.pairs import Pair, PairedImages, StratifiedBatches
from kdlab.data.photos import load_depth, load_photograph, load_photographs
from kdlab.data.scenes import Scenes, load_scenes
from kdlab.data.splits import ImageSplits
from kdlab.data.transforms import ImageTransform
from kdlab.data.unlabelled import add_unlabelled
from kdlab.data.weather_photos import load_haze, load_weather

__all__ = [
    "IGNORE",
    "ImageSplits",
    "ImageTransform",
    "Pair",
    "PairedImages",
    "Scenes",
    "Skipped",
    "StratifiedBatches",
    "add_unlabelled",
    "load_cifar100",
    "load_depth",
    "load_digits",
    "load_folders",
    "load_haze",
    "load_pairs",
    "load_photograph",
    "load_photographs",
    "load_scenes",
    "load_segmentation",
    "load_weather",
    "open_image",
]
