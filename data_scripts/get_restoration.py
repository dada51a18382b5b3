"""Take in public sets of images with and without rain, haze or snow, and list their pairs for training.

    python data_scripts/get_restoration.py --list
    python data_scripts/get_restoration.py nh-haze                            # what to download, and where to put it
    python data_scripts/get_restoration.py nh-haze --from ~/Downloads/NH-HAZE.zip
    python data_scripts/get_restoration.py rain1400 --from train=train.zip test=test.zip
    python data_scripts/get_restoration.py reside-ots sots-outdoor rain1400 csd --lists data/three --sample 5000
    kdlab teach data/nh-haze --task restoration --weather haze --out runs/haze
    python data_scripts/get_restoration.py nh-haze --check                    # is it still as it was?

All of these are behind a page, a form or a drive, and none states a licence: download them yourself, for research, and
do not pass them on. What is on disk is then verified, counted and listed in data/NAME/meta/; pairs of the training
whose clean image is the test's or the validation's, of any set that --lists joins, are left out, and where a set has no
validation part, every tenth clean image makes it.

No hash of these files is published. The hashes of the first copy are recorded, and --check compares with those: it
finds what has changed since, and not what was wrong from the first.
"""

from kdlab.commands.data_scripts import get_restoration
from kdlab.data.catalogue import RESTORATION

if __name__ == "__main__":
    get_restoration("get_restoration", __doc__, RESTORATION)
