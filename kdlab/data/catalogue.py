"""Which public data sets kdlab can get or take in, and what is known of each."""

from dataclasses import dataclass

UNSTATED = "none stated"


@dataclass(frozen=True)
class Archive:
    """A file to download, and its MD5 as torchvision has it."""

    url: str
    md5: str


@dataclass(frozen=True)
class DirectSet:
    """A set whose files have addresses, and that torchvision reads where it is unpacked.

    Attributes:
        folder: below the data folder, where torchvision looks for it.
        inside: the folder in the archives that becomes ``folder``; "" where they hold its contents.
        counts: how many images in each split.
    """

    name: str
    title: str
    task: str
    counts: dict[str, int]
    licence: str
    used: str
    folder: str
    archives: tuple[Archive, ...]
    inside: str = ""


@dataclass(frozen=True)
class Part:
    """A split of a restoration set: its folder below the set's, and the numbers of pairs that are known, with whose."""

    folder: str
    counts: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class RestorationSet:
    """A set of degraded and clean images that a person has to download, since it is behind a page, a form or a drive.

    Attributes:
        weather: what the lists of its pairs are called.
        page: where it is.
        parts: its splits. Where there is no "val", every tenth clean image of "train" makes it.
        pair: how its files are called: a degraded image and its clean one, from the folder of a split; None where
            ``halves``.
        shared: names of clean images of "train" that are the test's, too, and are left out of "train".
        one_each: of several degraded images of one clean one, the first alone is taken.
        halves: its files show two images side by side.
        note: what has to be known before it is used.
        folder: below the data folder; the name where not given.
    """

    name: str
    title: str
    weather: str
    page: str
    parts: dict[str, Part]
    pair: tuple[str, str] | None = None
    used: str = "kdlab teach and distill --task restoration"
    shared: frozenset[str] = frozenset()
    one_each: bool = False
    halves: bool = False
    note: str = ""
    folder: str = ""
    licence: str = UNSTATED


# --- what torchvision reads: the addresses and hashes are torchvision's -----------------------------------------------

TEACH = "kdlab teach and distill"
MASKS = "kdlab teach and distill --task segmentation"
FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas/"

CLASSIFICATION = (
    DirectSet(
        "cifar10", "CIFAR-10", "classification, 10 classes of 32x32", {"train": 50_000, "test": 10_000}, UNSTATED,
        TEACH, "cifar-10-batches-py",
        (Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
        inside="cifar-10-batches-py",
    ),
    DirectSet(
        "cifar100", "CIFAR-100", "classification, 100 classes of 32x32", {"train": 50_000, "test": 10_000}, UNSTATED,
        f"{TEACH}; kdlab reproduce cifar100", "cifar-100-python",
        (Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
        inside="cifar-100-python",
    ),
    DirectSet(
        "imagenette-160", "Imagenette, short side 160", "classification, 10 classes", {"train": 9_469, "val": 3_925},
        "Apache-2.0 for the selection; the images are ImageNet's", TEACH, "imagenette2-160",
        (Archive(f"{FASTAI}imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"),), inside="imagenette2-160",
    ),
    DirectSet(
        "imagenette-320", "Imagenette, short side 320", "classification, 10 classes", {"train": 9_469, "val": 3_925},
        "Apache-2.0 for the selection; the images are ImageNet's", TEACH, "imagenette2-320",
        (Archive(f"{FASTAI}imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3"),), inside="imagenette2-320",
    ),
)  # fmt: skip

PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/data/"

SEGMENTATION = (
    DirectSet(
        "pets", "Oxford-IIIT Pet", "segmentation, pet or background", {"trainval": 3_680, "test": 3_669},
        "CC BY-SA 4.0", f"{MASKS} (DATA: pets)", "oxford-iiit-pet",
        (
            Archive(f"{PETS}images.tar.gz", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            Archive(f"{PETS}annotations.tar.gz", "95a8c909bbe2e81eed6a22bccdf3f68f"),
        ),
    ),
    DirectSet(
        "voc", "Pascal VOC 2012", "segmentation, 20 classes and background", {"train": 1_464, "val": 1_449},
        "the terms of Flickr, where the images are from",
        f"{MASKS} (DATA: voc); kdlab yolo (DATA: voc), after make_boxes.py", "VOCdevkit",
        (
            Archive(
                "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "6cd6e144f989b92b3379bac3b3de84fd",
            ),
        ),
        inside="VOCdevkit",
    ),
)  # fmt: skip


# --- what a person has to download ------------------------------------------------------------------------------------

UNCONFIRMED = "as it is commonly given"
SETTING_1, SETTING_2 = (f"the weather student's published setting {number}" for number in (1, 2))
RESIDE = "https://sites.google.com/view/reside-dehaze-datasets"
NTIRE = "https://data.vision.ee.ethz.ch/cvl/"
DEHAZE = "kdlab teach and distill --task dehazing"

RESTORATION = (
    RestorationSet(
        "rain1400", "Rain1400", "rain", "https://xueyangfu.github.io/projects/cvpr2017.html",
        {"train": Part("train", ((12_600, "the lists'"),)), "test": Part("test", ((1_400, "the re-tests'"),))},
        pair=("rainy_image/901_1.jpg", "ground_truth/901.jpg"), used=SETTING_1,
        note="Also called Rain14000, Rain12600 and DDN. Each clean image has 14 rainy ones: a split is by clean image.",
    ),
    RestorationSet(
        "rain800", "Rain800", "rain", "https://github.com/hezhangsprinter/ID-CGAN",
        {"train": Part("train", ((700, UNCONFIRMED),)), "test": Part("test", ((100, UNCONFIRMED),))},
        halves=True,
        note="Each JPEG shows the clean and the rainy image side by side; public loaders disagree on which is "
        "where. That is measured here, and the halves are written to halves/."
    ),
    RestorationSet(
        "rain13k", "Rain13K", "rain", "https://github.com/swz30/MPRNet (Deraining/Datasets)",
        {"train": Part("train"), "test": Part("test")}, pair=("input/1.jpg", "target/1.jpg"),
        note="The test has a folder each for Test100, Rain100H, Rain100L, Test1200 and Test2800; all go into one list.",
    ),
    RestorationSet(
        "outdoor-rain", "Outdoor-Rain", "rain", "https://github.com/liruoteng/HeavyRainRemoval",
        {
            "train": Part("train", ((9_000, "all"), (8_250, "without the scenes of Test1"))),
            "test": Part("test", ((750, "Test1"),)),
        },
        pair=("input/im_0001_s80_a04.png", "gt/im_0001.png"), used=SETTING_2,
        shared=frozenset(f"im_{number:04}" for number in range(301, 351)),
        note="7 GB; rain and fog together; the original link to Test1 has expired. The scenes im_0301 to im_0350 are "
        "Test1's, too, and are left out of the training: 8,250 of 9,000 pairs stay.",
    ),
    RestorationSet(
        "raindrop", "RainDrop", "raindrop", "https://github.com/rui1996/DeRaindrop",
        {"train": Part("train", ((861, "the published"),)), "test": Part("test")},
        pair=("data/1_rain.png", "gt/1_clean.png"), used=SETTING_2, note="The usual test is test_a.",
    ),
    RestorationSet(
        "allweather", "AllWeather", "allweather", "https://github.com/jeya-maria-jose/TransWeather (README)",
        {"train": Part("train", ((18_069, "the published"),)), "test": Part("test")},
        pair=("input/im_0001_s80_a04.png", "gt/im_0001_s80_a04.png"),
        note="Taken from Snow100K, Outdoor-Rain and RainDrop. In some copies training and test are said to overlap: "
        "training pairs with a clean image of the test are left out.",
    ),
    RestorationSet(
        "snow100k", "Snow100K", "snow", "https://sites.google.com/view/yunfuliu/desnownet",
        {"train": Part("train", ((50_000, "the published"),)), "test": Part("test", ((50_000, UNCONFIRMED),))},
        pair=("synthetic/beautiful_smile_00001.jpg", "gt/beautiful_smile_00001.jpg"), used=SETTING_2,
        note="The test has the parts S, M and L; put one of them there to measure it alone: its number of pairs, which "
        "is not known here, is then told as another one. mask/ is not used.",
    ),
    RestorationSet(
        "csd", "CSD", "snow", "the Google Drive that the HDCWNet repository links",
        {
            "train": Part("train", ((8_000, UNCONFIRMED), (2_500, "the community's split"))),
            "test": Part("test", ((2_000, "the re-tests'"),)),
        },
        pair=("Snow/1.tif", "Gt/1.tif"), used=SETTING_1,
    ),
    RestorationSet(
        "srrs", "SRRS", "snow", "https://github.com/c-yn/FocalNet (Desnowing)",
        {
            "train": Part("train", ((2_500, "the community's split"),)),
            "test": Part("test", ((2_000, "the community's split"),)),
        },
        pair=("Snow/1.tif", "Gt/1.tif"),
    ),
    RestorationSet(
        "reside-its", "RESIDE ITS (indoor)", "haze", RESIDE,
        {
            "train": Part("train", ((100_000, "the download's"), (13_990, "the paper's"), (13_000, "its split"))),
            "val": Part("val", ((10_000, "the download's"), (990, "the paper's"))),
        },
        pair=("hazy/1401_1.png", "clear/1401.png"),
        note="The clean images have a margin that is cut when they are read. val/ may be left out.",
    ),
    RestorationSet(
        "reside-ots", "RESIDE OTS (outdoor)", "haze", RESIDE,
        {"train": Part(".", ((72_135, "the download's"), (313_950, "the paper's")))},
        pair=("hazy/0001_0.8_0.1.jpg", "clear/0001.jpg"), used=SETTING_1,
        note="2,061 clean images; the download has four parts with 18,200, 18,200, 18,200 and 17,535 hazy ones. "
        "They may stay folders of their own in hazy/.",
    ),
    RestorationSet(
        "sots-indoor", "SOTS indoor", "haze", RESIDE, {"test": Part(".", ((500, "all"),))},
        pair=("hazy/1401_1.png", "gt/1401.png"), folder="sots/indoor", note="50 clean images with 10 hazy ones each.",
    ),
    RestorationSet(
        "sots-outdoor", "SOTS outdoor, all 500", "haze", RESIDE, {"test": Part(".", ((500, "all"),))},
        pair=("hazy/0001_0.8_0.2.jpg", "gt/0001.png"), used=SETTING_1, folder="sots/outdoor",
        note="500 hazy images of 492 clean ones. Some papers measure 500 and some 492: say which.",
    ),
    RestorationSet(
        "sots-outdoor-492", "SOTS outdoor, one each", "haze", RESIDE,
        {"test": Part(".", ((492, "one for each clean image"),))}, pair=("hazy/0001_0.8_0.2.jpg", "gt/0001.png"),
        one_each=True, folder="sots/outdoor",
        note="The same files as sots-outdoor; of a clean image's hazy ones the first by name. Which ones the papers "
        "take is not known.",
    ),
    RestorationSet(
        "nh-haze", "NH-HAZE", "haze", f"{NTIRE}ntire20/nh-haze/", {"train": Part(".", ((55, "the published"),))},
        pair=("01_hazy.png", "01_GT.png"), used=DEHAZE,
    ),
    RestorationSet(
        "nh-haze2", "NH-HAZE2 (NTIRE 2021)", "haze", "https://competitions.codalab.org/competitions/28032",
        {"train": Part(".")}, pair=("hazy/01.png", "GT/01.png"), used=DEHAZE,
        note="Two folders, hazy/ and GT/, with equal file names.",
    ),
    RestorationSet(
        "i-haze", "I-HAZE", "haze", f"{NTIRE}ntire18/i-haze/", {"train": Part(".", ((35, "the published"),))},
        pair=("hazy/01_indoor_hazy.jpg", "GT/01_indoor_GT.jpg"),
    ),
    RestorationSet(
        "o-haze", "O-HAZE", "haze", f"{NTIRE}ntire18/o-haze/", {"train": Part(".", ((45, "the published"),))},
        pair=("hazy/01_outdoor_hazy.jpg", "GT/01_outdoor_GT.jpg"),
    ),
    RestorationSet(
        "dense-haze", "Dense-Haze", "haze", f"{NTIRE}ntire19/dense-haze/",
        {"train": Part(".", ((55, "the download's"), (33, "the paper's")))}, pair=("hazy/01_hazy.png", "GT/01_GT.png"),
    ),
)  # fmt: skip
