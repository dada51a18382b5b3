"""The network that images are compared by: which weights it has, and that it says so."""

import pytest
import torch
from instead_of_training import SeenError
from torchvision.models import VGG19_Weights, vgg19

from kdlab import InputError
from kdlab.data import Scenes
from kdlab.data.splits import ImageSplits
from kdlab.models import VGGReader, vgg
from kdlab.recipes import perceptual
from kdlab.recipes.perceptual import WIDTH, feature_slices, scenes_reader
from kdlab.recipes.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def offline(monkeypatch):
    def refuse(**options):
        raise OSError("no network")

    monkeypatch.setattr(VGG19_Weights.IMAGENET1K_V1, "get_state_dict", refuse)


def width(slices):
    return next(slices.parameters()).shape[0]


def test_offline_the_default_has_learnt_features_and_says_which(offline):
    slices = feature_slices("auto")
    assert width(slices) == WIDTH
    assert slices.weights_used.startswith("scenes: a quarter of the width")
    assert slices.weights_used.endswith(", because the ImageNet weights could not be downloaded (no network)")
    assert [feature_slices("scenes", normalise).normalise for normalise in (True, False)] == [True, False]
    reader, _ = scenes_reader()
    for name, value in reader.slices.state_dict().items():
        assert torch.equal(slices.state_dict()[name], value)
    assert not any(p.requires_grad for p in slices.parameters())


def test_imagenets_weights_are_taken_where_they_can_be_had(monkeypatch):
    whole = vgg19(weights=None)
    monkeypatch.setattr(VGG19_Weights.IMAGENET1K_V1, "get_state_dict", lambda **options: whole.state_dict())
    for weights in ("auto", "imagenet"):
        slices = feature_slices(weights)
        assert (width(slices), slices.weights_used) == (64, "imagenet")


def test_images_are_normalised_or_not_whatever_the_weights(offline, monkeypatch):
    assert not feature_slices("auto", normalise=False).normalise
    with torch.device("meta"):
        maps = vgg19(weights=None)
        monkeypatch.setattr(vgg, "_imagenet", lambda *_: maps.features)
        kept = [feature_slices(weights, normalise=False) for weights in ("auto", "imagenet")]
    assert [(slices.weights_used, slices.normalise) for slices in kept] == [("imagenet", False)] * 2


def test_imagenets_weights_that_cannot_be_had_are_an_error_where_they_are_asked_for(offline):
    with pytest.raises(InputError, match="ImageNet weights of VGG19"):
        feature_slices("imagenet")


def test_a_random_start_is_as_narrow_and_says_so():
    slices = feature_slices("none", normalise=False)
    assert (width(slices), slices.normalise) == (WIDTH, False)
    assert "random start" in slices.weights_used
    torch.manual_seed(5)
    torch.testing.assert_close(feature_slices("none").state_dict(), slices.state_dict())  # always the same one


def test_a_random_start_takes_nothing_from_the_random_numbers_of_the_run():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    feature_slices("none")
    assert torch.equal(torch.rand(3), expected)


def test_unknown_weights_are_named(shapes_unchecked):
    with pytest.raises(InputError, match="'scene'. Did you mean 'scenes'"):
        feature_slices("scene")


def test_the_reader_is_on_the_device_that_is_asked_for():
    reader, _ = scenes_reader(torch.device("meta"))
    assert next(reader.parameters()).is_meta


def test_the_reader_starts_from_its_seed_and_learns_from_training_images_as_they_are(monkeypatch):
    splits, starts = [Scenes(split, samples=1, size=32) for split in ("train", "val", "test")], []

    def load(mean=None, std=None):
        return ImageSplits(*splits, splits[0].classes, mean, std, 32, "few", deterministic=True)

    def look(settings, objective, train, data, **options):
        assert train is splits[0]
        assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)
        assert options["monitor"] == "miou"
        starts.append(objective.student.state_dict())
        raise SeenError

    monkeypatch.setenv("KDLAB_RETRAIN", "1")
    monkeypatch.setattr(perceptual, "load_scenes", load)
    monkeypatch.setattr(perceptual, "fit_with", look)
    for _ in range(2):
        with pytest.raises(SeenError):
            scenes_reader()
    torch.testing.assert_close(*starts, rtol=0, atol=0)


def test_the_reader_is_trained_where_it_did_not_come_with_the_course(monkeypatch, tmp_path):
    few = [Scenes(split, samples=4, size=32) for split in ("train", "val", "test")]
    data = ImageSplits(*few, few[0].classes, (0.0,) * 3, (1.0,) * 3, 32, "few", deterministic=True)
    monkeypatch.setenv("KDLAB_RETRAIN", "1")
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(perceptual, "load_scenes", lambda **options: data)
    monkeypatch.setattr(perceptual, "TRAINING", Settings(epochs=1, lr=1e-3, batch_size=2))
    reader, card = scenes_reader()
    assert isinstance(reader, VGGReader)
    assert card.recipe["task"] == "reader"
    assert reader(torch.rand(1, 3, 20, 31)).shape == (1, len(data.classes), 20, 31)
    again, _ = scenes_reader()  # from the cache
    torch.testing.assert_close(again.state_dict(), reader.state_dict())
