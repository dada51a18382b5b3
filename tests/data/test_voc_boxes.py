"""Pascal VOC's boxes as a YOLO data set."""

import errno
import os
import shutil

import pytest
import yaml

from kdlab import InputError
from kdlab.data import voc_boxes, yolo_scenes
from kdlab.data.manifest import differences
from kdlab.data.voc_boxes import NAMES, write_voc_boxes
from kdlab.data.yolo_scenes import write_yolo_scenes

CAT = "<object><name>cat</name><difficult>0</difficult>{}</object>"
BOX = "<bndbox><xmin>11</xmin><ymin>1</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
SIZE = "<size><width>100</width><height>40</height><depth>3</depth></size>"


def put(data, annotations):
    """Annotations by split and name, each with an image of some bytes, as torchvision unpacks VOC."""
    voc = data / "VOCdevkit" / "VOC2012"
    for place in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / place).mkdir(parents=True)
    for split, named in annotations.items():
        (voc / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in named))
        for name, text in named.items():
            (voc / "Annotations" / f"{name}.xml").write_text(text)
            (voc / "JPEGImages" / f"{name}.jpg").write_bytes(name.encode())
    return data


def one(things, size=SIZE):
    """A set whose only training image shows these things."""
    return {"train": {"a": f"<annotation>{size}{things}</annotation>"}, "val": {}}


def test_the_scenes_annotations_become_the_scenes_labels(tmp_path, monkeypatch):
    scenes = tmp_path / "scenes"
    write_yolo_scenes(scenes, {"train": 4, "val": 2}, size=48)
    written = {
        split: {path.stem + split: path.read_text() for path in (scenes / "annotations" / split).iterdir()}
        for split in ("train", "val")
    }
    monkeypatch.setattr(voc_boxes, "NAMES", yolo_scenes.NAMES)
    write_voc_boxes(tmp_path / "boxes", put(tmp_path, written))
    for split, count in (("train", 4), ("val", 2)):
        labels = list((tmp_path / "boxes/labels" / split).iterdir())
        assert len(labels) == count
        for path in labels:
            same = scenes / "labels" / split / path.name.replace(split, "")
            assert path.read_text() == same.read_text()
            assert path.read_text()
    assert yaml.safe_load((tmp_path / "boxes/data.yaml").read_text()) == yaml.safe_load(
        (scenes / "data.yaml").read_text()
    )


def test_pixels_count_from_one_and_difficult_objects_are_left_out(tmp_path):
    hard = CAT.format(BOX).replace("<difficult>0", "<difficult>1")
    broken = BOX.replace(">11<", ">11.0<").replace("<bndbox>", "\n <bndbox>")
    data = put(tmp_path, one(CAT.format(BOX) + hard + CAT.replace("cat", "dog").format(broken)))
    write_voc_boxes(tmp_path / "boxes", data)
    # Pixels 11 to 30 of 100 are 0.10 to 0.30 of the width.
    assert (tmp_path / "boxes/labels/train/a.txt").read_text().splitlines() == [
        f"{NAMES.index(name)} 0.200000 0.500000 0.200000 1.000000" for name in ("cat", "dog")
    ]
    assert len(NAMES) == 20
    assert not any(differences(tmp_path / "boxes"))


@pytest.mark.parametrize("links", [True, False])
def test_images_are_linked_or_else_copied(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    data = put(tmp_path, one(""))
    write_voc_boxes(tmp_path / "boxes", data)
    image, source = tmp_path / "boxes/images/train/a.jpg", data / "VOCdevkit/VOC2012/JPEGImages/a.jpg"
    assert image.read_bytes() == b"a"
    assert image.samefile(source) == links
    assert (tmp_path / "boxes/labels/train/a.txt").read_text() == ""  # nothing is shown, and that is known


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        (one(CAT.replace("cat", "unicorn").format(BOX)), "'unicorn' is none of its classes"),
        (one(CAT.format("")), "it has no bndbox/xmin"),
        (one(CAT.format(BOX), size=""), "it has no size/width"),
        (one(CAT.format(BOX), size=SIZE.replace("100", "0")), "division by zero"),
        ({"train": {"a": "<annotation>"}, "val": {}}, "no element found"),
    ],
)
def test_an_annotation_that_cannot_be_read_is_named_and_nothing_is_left(tmp_path, annotations, said):
    data = put(tmp_path, annotations)
    with pytest.raises(InputError, match=r"a\.xml is no annotation of Pascal VOC") as refused:
        write_voc_boxes(tmp_path / "boxes", data)
    assert said in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["VOCdevkit"]


def test_without_voc_it_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"Pascal VOC 2012 is not in .*get_segmentation.py voc"):
        write_voc_boxes(tmp_path / "boxes", tmp_path)
    data = put(tmp_path, one(""))
    shutil.rmtree(data / "VOCdevkit/VOC2012/ImageSets")
    with pytest.raises(InputError, match="Pascal VOC 2012 is not in"):
        write_voc_boxes(tmp_path / "boxes", data)


def test_an_image_that_is_a_link_is_one_of_its_own_in_the_new_folder(tmp_path):
    image = put(tmp_path, one(CAT.format(BOX))) / "VOCdevkit/VOC2012/JPEGImages/a.jpg"
    image.rename(image.with_name("elsewhere.jpg"))
    image.symlink_to("elsewhere.jpg")  # from its own folder
    write_voc_boxes(tmp_path / "boxes", tmp_path)
    assert (tmp_path / "boxes/images/train/a.jpg").read_bytes() == b"a"
