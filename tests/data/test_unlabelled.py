"""Images without labels beside those with labels."""

import pytest
import torch
from class_folder import grow, picture
from torch.utils.data import TensorDataset

from kdlab import InputError
from kdlab.data import load_folders
from kdlab.data.unlabelled import add_unlabelled, all_images, half_labelled

NONE = -100


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "cache"))
    return load_folders(grow(tmp_path / "shapes"), size=32)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos" / "deeper"
    folder.mkdir(parents=True)
    for seed in range(3):
        picture("circle", seed).save(folder / f"{seed}.png")
    (folder / "1.txt").write_text("no image")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-40])
    return folder.parent


def test_they_come_behind_the_labelled_ones_and_are_cut_and_normalised_alike(data, photos):
    more = add_unlabelled(data, photos, NONE)
    assert [path.name for path in more.unlabelled.paths] == ["0.png", "1.png", "2.png"]
    assert [one.path.name for one in more.skipped] == ["1.txt", "cut.png"]
    together = all_images(more)
    assert [label for _, label in together] == data.train.targets + [NONE] * 3
    expected = data.train.transform(picture("circle", 2))
    assert torch.equal(together[len(data.train) + 2][0], expected)
    assert together.paths == data.train.paths + more.unlabelled.paths
    assert all_images(data) is data.train
    assert more.files["unlabelled"].startswith("3 files, ")
    assert {**more.files, "unlabelled": ""} == {**data.files, "unlabelled": ""}


def test_what_is_no_folder_of_images_is_refused(data, photos, tmp_path):
    (tmp_path / "cut").mkdir()
    (photos / "deeper" / "cut.png").rename(tmp_path / "cut" / "cut.png")
    (tmp_path / "empty").mkdir()
    for name, said in (("nowhere", "nowhere is no folder"), ("empty", "no usable image"), ("cut", "cut.png")):
        with pytest.raises(InputError, match=said):
            add_unlabelled(data, tmp_path / name, NONE)


@pytest.mark.parametrize("folder", ["", "val", "test"])
def test_images_that_the_student_is_judged_by_are_refused(data, tmp_path, folder):
    with pytest.raises(InputError, match=r"are those that the student is judged by, such as .*\.png\. Name a folder"):
        add_unlabelled(data, tmp_path / "shapes" / folder, NONE)
    assert len(add_unlabelled(data, tmp_path / "shapes" / "train", NONE).unlabelled) == len(data.train)


@pytest.mark.parametrize(
    ("images", "labelled", "drawn"), [(20, 2, 36), (20, 3, 32), (20, 15, 20), (20, 20, 20)]
)  # 18 without a label and 9 times 2 with one; 17 and 5 times 3
def test_about_half_of_what_is_drawn_has_a_label(images, labelled, drawn):
    indices = [int(index) for (index,) in half_labelled(TensorDataset(torch.arange(images)), range(labelled))]
    assert len(indices) == drawn
    assert set(indices) == set(range(images))
    if labelled <= images / 2:
        assert abs(sum(index < labelled for index in indices) - (images - labelled)) < labelled


def test_a_link_to_an_image_of_the_validation_is_refused(data, photos):
    (photos / "link.png").symlink_to(data.val.paths[0])
    with pytest.raises(InputError, match="1 of the 5 images in .* are those that the student is judged by.*link.png"):
        add_unlabelled(data, photos, NONE)


def test_beside_augmented_images_they_are_augmented_too(photos, tmp_path):
    for augment in (True, False):
        data = load_folders(grow(tmp_path / f"shapes {augment}"), size=32, augment=augment)
        image = add_unlabelled(data, photos, NONE).unlabelled
        assert torch.equal(image[0][0], image[0][0]) is not augment
