"""Get public sets of images with masks: Oxford-IIIT Pet and Pascal VOC 2012.

    python data_scripts/get_segmentation.py --list
    python data_scripts/get_segmentation.py pets voc            # to data/oxford-iiit-pet and data/VOCdevkit
    python data_scripts/get_segmentation.py pets --check        # is it still as it was?
    kdlab teach pets --task segmentation --out runs/segmenter --lr 1e-4

Downloads go on where they broke off and must have the hashes that torchvision knows. torchvision's own data sets read
the result, too.
"""

from kdlab.commands.data_scripts import get_direct
from kdlab.data.catalogue import SEGMENTATION

if __name__ == "__main__":
    get_direct("get_segmentation", __doc__, SEGMENTATION)
