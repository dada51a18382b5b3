"""Built-in data and data on disk."""

from kdlab.data.digits import load_digits
from kdlab.data.folders import load_folders
from kdlab.data.images import Skipped, open_image
from kdlab.data.splits import ImageSplits
from kdlab.data.transforms import ImageTransform

__all__ = ["ImageSplits", "ImageTransform", "Skipped", "load_digits", "load_folders", "open_image"]
