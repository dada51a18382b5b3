"""Sets with addresses, small ones of the same layout from a server on this machine."""

import hashlib
import io
import pickle
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cifar_files import write_cifar100
from PIL import Image
from torchvision import datasets
from torchvision.datasets.voc import DATASET_YEAR_DICT

from kdlab import InputError
from kdlab.commands.data_scripts import get_direct
from kdlab.commands.inputs import load_data
from kdlab.data import direct_sets, load_folders, load_segmentation
from kdlab.data.catalogue import CLASSIFICATION, SEGMENTATION, Archive
from kdlab.data.direct_sets import check, get

SETS = {one.name: one for one in CLASSIFICATION + SEGMENTATION}


def picture(seed=0, kind="JPEG", mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image = Image.fromarray(values) if mode == "RGB" else Image.fromarray(values[..., 0] % 3 + 1)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def packed(files, mode="w:gz"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def offer(server):
    """Puts archives on the server and gives the set back with their hashes and the server's address."""

    def offer(name, counts, *archives):
        known = []
        for archive, content in zip(SETS[name].archives, archives, strict=True):
            file = archive.url.rsplit("/", 1)[1]
            server.files[file] = content
            known.append(Archive(server.url + file, hashlib.md5(content).hexdigest()))
        return replace(SETS[name], archives=tuple(known), counts=counts)

    return offer


@pytest.fixture
def imagenette(offer):
    wnids = list(datasets.Imagenette._WNID_TO_CLASS)
    files = {
        f"imagenette2-160/{split}/{wnid}/{number}.JPEG": picture()
        for split, each in (("train", 2), ("val", 1))
        for wnid in wnids
        for number in range(each)
    }
    return offer("imagenette-160", {"train": 20, "val": 10}, packed(files))


def pets_files():
    images = {f"images/cat_{i}.jpg": picture(i) for i in range(12)}
    lists = {
        "annotations/trainval.txt": "".join(f"cat_{i} 1 1 1\n" for i in range(10)).encode(),
        "annotations/test.txt": b"cat_10 1 1 1\ncat_11 1 1 1\n",
    }
    masks = {f"annotations/trimaps/cat_{i}.png": picture(i, "PNG", "L") for i in range(12)}
    return packed(images), packed(lists | masks)


def test_addresses_and_hashes_are_torchvisions():
    cifar = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    theirs = {name: [(one.url, one.tgz_md5)] for name, one in cifar.items()}
    theirs |= {f"imagenette-{size}": [datasets.Imagenette._ARCHIVES[f"{size}px"]] for size in (160, 320)}
    theirs["pets"] = list(datasets.OxfordIIITPet._RESOURCES)
    theirs["voc"] = [(DATASET_YEAR_DICT["2012"]["url"], DATASET_YEAR_DICT["2012"]["md5"])]
    assert theirs == {name: [(one.url, one.md5) for one in known.archives] for name, known in SETS.items()}


def test_a_set_is_downloaded_unpacked_and_read(imagenette, tmp_path, server):
    folder = get(imagenette, tmp_path)
    assert folder == tmp_path / "imagenette2-160"
    assert len(load_folders(folder, size=16).train) == 20
    assert list((tmp_path / "archives").iterdir()) == []
    assert check(imagenette, tmp_path) == "Imagenette, short side 160: 20 train, 10 val, as they were"
    server.requests.clear()
    get(imagenette, tmp_path)
    assert server.requests == [], "what is there is not asked for again"


def test_a_download_that_broke_off_goes_on_at_the_next_call(imagenette, tmp_path, server, monkeypatch):
    server.faults = ["drop", 404]
    with pytest.raises(InputError, match="404"):
        get(imagenette, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["archives"]
    get(imagenette, tmp_path)
    assert server.ranges[-1] is not None


def test_wrong_bytes_are_refused_and_nothing_is_unpacked(imagenette, tmp_path, server):
    server.always = "wrong bytes"
    with pytest.raises(InputError, match="has the md5 .*What had arrived is deleted"):
        get(imagenette, tmp_path)
    assert list((tmp_path / "archives").iterdir()) == []
    assert not (tmp_path / "imagenette2-160").exists()


def test_another_address_may_have_the_same_files(imagenette, tmp_path, server):
    elsewhere = [Archive(f"http://127.0.0.1:9/{one.url.rsplit('/', 1)[1]}", one.md5) for one in imagenette.archives]
    get(replace(imagenette, archives=tuple(elsewhere)), tmp_path, server.url)
    assert check(imagenette, tmp_path)


def test_two_archives_make_one_set_that_kdlab_reads_by_name(offer, tmp_path):
    pets = offer("pets", {"trainval": 10, "test": 2}, *pets_files())
    assert get(pets, tmp_path) == tmp_path / "oxford-iiit-pet"
    assert check(pets, tmp_path)
    splits = load_segmentation("pets", size=16, data=tmp_path)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [9, 1, 2]


def test_voc_is_read_by_name(offer, tmp_path):
    base = "VOCdevkit/VOC2012"
    files = {f"{base}/ImageSets/Segmentation/{split}.txt": f"{split}_1\n".encode() for split in ("train", "val")}
    for split in ("train", "val"):
        files |= {f"{base}/JPEGImages/{split}_1.jpg": picture()}
        files |= {f"{base}/SegmentationClass/{split}_1.png": picture(0, "PNG", "L")}
    voc = offer("voc", {"train": 1, "val": 1}, packed(files, "w"))
    get(voc, tmp_path)
    assert check(voc, tmp_path)
    assert len(load_segmentation("voc", size=16, data=tmp_path).train) == 1


def test_cifar_is_written_as_class_folders_with_every_tenth_image_of_a_class_for_validation(
    offer, tmp_path, monkeypatch
):
    base = "cifar-10-batches-py"
    generator = np.random.default_rng(0)

    def batch(count):
        values = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return pickle.dumps({"data": values, "labels": [index % 2 for index in range(count)]})

    files = {f"{base}/data_batch_1": batch(40), f"{base}/test_batch": batch(6)}
    files[f"{base}/batches.meta"] = pickle.dumps({"label_names": ["cat", "ship"]})
    md5 = {name.split("/")[1]: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": md5["batches.meta"]})
    cifar = offer("cifar10", {"train": 40, "test": 6}, packed(files))
    folder = get(cifar, tmp_path)
    splits = load_folders(folder, size=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert splits.classes == ("cat", "ship")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [36, 4, 6]
    assert splits.val.targets == [0, 0, 1, 1]
    theirs = datasets.CIFAR10(tmp_path, train=False)
    written = np.asarray(Image.open(folder / "test" / "ship" / "00001.png"))
    assert np.array_equal(written, np.asarray(theirs[1][0]))
    assert check(cifar, tmp_path)
    next((folder / "val" / "cat").iterdir()).unlink()
    with pytest.raises(InputError, match=r"1 missing: val/cat/.*\.png. Delete that folder and get it again"):
        check(cifar, tmp_path)


def test_cifar100_is_got_checked_and_read_by_its_name(offer, tmp_path, monkeypatch, capsys):
    """All of it as a person does it: with the script, and then a command."""
    source = write_cifar100(tmp_path / "source", monkeypatch, train=60, test=6)
    files = {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    cifar = offer("cifar100", {"train": 60, "test": 6}, packed(files))
    monkeypatch.chdir(tmp_path)

    def script(*words):
        monkeypatch.setattr(sys, "argv", ["get_classification.py", "cifar100", *words])
        with pytest.raises(SystemExit) as end:
            get_direct("get_classification", None, [cifar])
        return end.value.code, "".join(capsys.readouterr())

    assert script() == (False, "CIFAR-100 is in data/cifar100\n")
    assert script("--check") == (False, "CIFAR-100: 60 train, 6 test, as they were\n")
    splits = load_data("cifar100", 32, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert splits.classes == ("class 00", "class 01", "class 02"), "of the hundred, those that have images here"
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [54, 6, 6]
    for part in (splits.train, splits.val, splits.test):
        assert all(image.mean(dim=(1, 2)).argmax() == label for image, label in part), "its colour says the class"
    (tmp_path / "data/cifar-100-python/test").write_bytes(b"changed")
    status, said = script("--check")
    assert status
    assert "CIFAR-100 in data/cifar-100-python: 1 with other bytes: test. Delete that folder and get it again" in said


# --- what is on disk and not as it should be --------------------------------------------------------------------------


def test_check_finds_what_is_not_there_missing_or_changed(imagenette, tmp_path):
    with pytest.raises(InputError, match="is not in .*: get it first"):
        check(imagenette, tmp_path)
    folder = get(imagenette, tmp_path)
    (folder / "train" / "n01440764" / "0.JPEG").write_bytes(b"changed")
    with pytest.raises(InputError, match=r"1 with other bytes: train/n01440764/0\.JPEG"):
        check(imagenette, tmp_path)


def test_another_number_of_images_is_told(imagenette, tmp_path):
    more = replace(imagenette, counts={"train": 21, "val": 10})
    with pytest.raises(InputError, match="has 20 images in train; wanted: 21. Delete"):
        get(more, tmp_path)


def test_what_torchvision_cannot_read_is_told(offer, tmp_path):
    pets = offer("pets", {"trainval": 10, "test": 2}, *pets_files())
    folder = get(pets, tmp_path)
    (folder / "annotations" / "trainval.txt").unlink()
    with pytest.raises(InputError, match="torchvision cannot read Oxford-IIIT Pet in .*get it again"):
        get(pets, tmp_path)


def test_every_set_can_be_opened():
    for one in SETS.values():
        with pytest.raises((RuntimeError, OSError), match="not found|No such file"):
            direct_sets._open(one, Path("/nowhere"), next(iter(one.counts)))
