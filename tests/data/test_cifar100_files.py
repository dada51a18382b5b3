"""CIFAR-100 as the published comparisons have it: all training images, cropped and mirrored; the test images as is."""

import numpy as np
import pytest
import torch
from cifar_files import write_cifar100
from torchvision import datasets

from kdlab import InputError
from kdlab.data import load_cifar100
from kdlab.data.cifar import MEAN, STD


@pytest.fixture
def data(tmp_path, monkeypatch):
    return write_cifar100(tmp_path / "data", monkeypatch)


def normalised(image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_the_splits(data):
    splits = load_cifar100(data)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 8, 8)
    assert splits.test_is_val
    assert len(splits.classes) == 100
    assert not splits.deterministic


def test_a_test_image_is_as_it_is(data):
    splits, raw = load_cifar100(data), datasets.CIFAR100(data, train=False)
    for (image, label), (picture, known) in zip(splits.test, raw, strict=True):
        torch.testing.assert_close(image, normalised(picture))
        assert label == known


def test_a_training_image_is_a_part_of_the_padded_one_or_of_its_mirror_image(data):
    train, (picture, _) = load_cifar100(data).train, datasets.CIFAR100(data)[0]
    padded = normalised(np.pad(np.asarray(picture), ((4, 4), (4, 4), (0, 0))))
    parts = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)  # 81 places
    seen = set()
    for _ in range(200):
        drawn = train[0][0]
        found = [
            (mirrored, place)
            for mirrored, one in enumerate((drawn, drawn.flip(2)))
            for place in ((parts - one).abs().amax(dim=(1, 2, 3)) < 1e-5).nonzero().flatten().tolist()
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {mirrored for mirrored, _ in seen} == {0, 1}
    assert {place // 9 for _, place in seen} == {place % 9 for _, place in seen} == {*range(9)}


def test_the_seed_repeats_the_crops(data):
    train = load_cifar100(data).train
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(torch.stack([train[index][0] for index in range(8)]))
    assert torch.equal(*drawn)


def test_data_that_is_not_there_or_not_as_published_is_refused_with_the_command_that_gets_it(data, tmp_path):
    with pytest.raises(InputError, match="CIFAR-100 is not in .*nowhere; get it with: python data_scripts/get_class"):
        load_cifar100(tmp_path / "nowhere")
    (data / "cifar-100-python" / "train").write_bytes(b"other bytes")
    with pytest.raises(InputError, match=f"not as they were published. Delete .* cifar100 --data {data}"):
        load_cifar100(data)
