"""Get public sets of labelled images: CIFAR-10, CIFAR-100 and Imagenette.

    python data_scripts/get_classification.py --list
    python data_scripts/get_classification.py imagenette-160        # to data/imagenette2-160
    python data_scripts/get_classification.py cifar10 --check       # is it still as it was?
    kdlab teach data/imagenette2-160 --out runs/teacher

Downloads go on where they broke off and must have the hashes that torchvision knows. torchvision's own data sets read
the result, too; CIFAR is also written as class folders, data/cifar10/, which kdlab reads. `kdlab reproduce cifar100`
takes CIFAR-100 as torchvision does.
"""

from kdlab.commands.data_scripts import get_direct
from kdlab.data.catalogue import CLASSIFICATION

if __name__ == "__main__":
    get_direct("get_classification", __doc__, CLASSIFICATION)
