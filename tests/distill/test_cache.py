"""TeacherCache: computed once, refused where it does not fit."""

import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kdlab import InputError
from kdlab.distill import Distiller, Tap, TeacherCache, Term
from kdlab.files import save_tensors
from kdlab.losses import KDLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN

TAPS = ["classifier"]


@pytest.fixture
def teacher():
    return StudentCNN(3, (4, 4, 4, 4))


@pytest.fixture
def dataset():
    return TensorDataset(torch.randn(20, 3, 16, 16), torch.arange(20) % 3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "outputs.safetensors"


def test_the_outputs_are_the_teachers_in_eval_mode(teacher, dataset, path):
    teacher.train()
    cache = TeacherCache.build(teacher, TAPS, dataset, path=path, batch_size=7)
    assert teacher.training  # left as it was
    expected = teacher.eval()(dataset.tensors[0])
    torch.testing.assert_close(cache.outputs["classifier"], expected.detach())
    assert not cache.outputs["classifier"].requires_grad
    both = TeacherCache.build(teacher, ["features.3", "classifier"], dataset)
    assert both.only(TAPS).outputs.keys() == {"classifier"}


def test_outputs_that_are_not_finite_are_not_kept(teacher, dataset, path):
    nn.init.constant_(teacher.classifier[-1].bias, float("nan"))
    with pytest.raises(InputError, match="'classifier' of StudentCNN put out numbers that are not finite"):
        TeacherCache.build(teacher, TAPS, dataset, path=path)
    assert not path.exists()


def test_every_module_is_left_in_its_own_mode_even_after_an_error(teacher, dataset, path):
    teacher.train()
    teacher.features[0].eval()
    before = [module.training for module in teacher.modules()]
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    assert [module.training for module in teacher.modules()] == before
    with pytest.raises(InputError, match="no items"):
        TeacherCache.build(teacher, [Tap("classifier", item=0)], dataset)
    assert [module.training for module in teacher.modules()] == before


def test_the_second_time_the_teacher_does_not_run(teacher, dataset, path):
    first = TeacherCache.build(teacher, TAPS, dataset, path=path)
    teacher.forward = None
    second = TeacherCache.build(teacher, TAPS, dataset, path=path)
    assert torch.equal(first.outputs["classifier"], second.outputs["classifier"])


class Hidden(nn.Module):
    """Its settings are neither in its repr nor in its state."""

    def __init__(self, mean=0.0, **architecture):
        super().__init__()
        self.architecture = architecture
        self.register_buffer("mean", torch.tensor(mean), persistent=False)

    def forward(self, images):
        return images.mean((2, 3)) - self.mean


@pytest.mark.parametrize(
    "other",
    [Hidden(1.0), Hidden(normalise=True), nn.Sequential(Hidden(normalise=True))],
    ids=["buffer", "own", "inside"],
)
def test_settings_that_no_state_shows_make_another_teacher(other, dataset):
    plain = nn.Sequential(Hidden()) if isinstance(other, nn.Sequential) else Hidden()
    assert len({TeacherCache.build(net, [""], dataset).fingerprint for net in (plain, other)}) == 2


def test_it_loads_with_as_many_processes_as_asked_for(teacher, dataset, path, monkeypatch):
    asked = []
    monkeypatch.setattr("kdlab.distill.cache.loaded_by", lambda workers: asked.append(workers) or {})
    TeacherCache.build(teacher, TAPS, dataset, path=path, workers=3)
    assert asked == [3]


def test_by_default_it_finds_its_own_place(teacher, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path / "own"))
    TeacherCache.build(teacher, TAPS, dataset)
    assert len(list((tmp_path / "own" / "teacher").glob("*.safetensors"))) == 1


def test_outputs_travel_with_their_sample_and_give_the_same_losses(teacher, dataset, path):
    student = StudentCNN(3, (4, 4, 4, 4)).eval()
    kd = Term("kd", KDLoss(4.0), "classifier", "classifier")
    distiller = Distiller(student, teacher, [kd], LabelledCrossEntropy()).eval()
    attached = TeacherCache.build(teacher, TAPS, dataset, path=path).attach(dataset)
    for images, labels, observed in DataLoader(attached, batch_size=6, shuffle=True):
        cached, live = distiller(images, labels, observed), distiller(images, labels)
        torch.testing.assert_close(cached["total"], live["total"])


def test_other_weights_other_images_or_other_taps_are_refused(teacher, dataset, path):
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    other_images = TensorDataset(dataset.tensors[0] + 1e-3, dataset.tensors[1])
    other_teacher = StudentCNN(3, (4, 4, 4, 4))
    running = StudentCNN(3, (4, 4, 4, 4))
    running.load_state_dict(teacher.state_dict())
    running.features[0][1].running_mean += 1e-3  # a buffer is a weight, too
    for arguments in ((other_teacher, TAPS, dataset), (running, TAPS, dataset), (teacher, TAPS, other_images),
                      (teacher, ["features.3"], dataset)):  # fmt: skip
        with pytest.raises(InputError, match="made from other weights, layers or images.*Delete the file"):
            TeacherCache.build(*arguments, path=path)


def test_any_image_in_memory_and_the_layers_without_weights_count(teacher, path):
    images, labels = torch.randn(200, 3, 16, 16), torch.zeros(200)
    TeacherCache.build(teacher, TAPS, TensorDataset(images, labels), path=path)
    one_changed, other_layers = images.clone(), StudentCNN(3, (4, 4, 4, 4))
    one_changed[1] += 1e-3
    other_layers.load_state_dict(teacher.state_dict())
    next(m for m in other_layers.modules() if isinstance(m, nn.Conv2d)).stride = (2, 2)
    for arguments in ((teacher, TAPS, TensorDataset(one_changed, labels)),
                      (other_layers, TAPS, TensorDataset(images, labels))):  # fmt: skip
        with pytest.raises(InputError, match="made from other"):
            TeacherCache.build(*arguments, path=path)


class Scaled(nn.Module):
    """What it is printed as has its address in it."""

    __repr__ = object.__repr__

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


def test_an_address_in_what_is_printed_does_not_count(dataset, path):
    first, second = Scaled(), Scaled()
    assert repr(first) != repr(second)
    TeacherCache.build(first, [""], dataset, path=path)
    TeacherCache.build(second, [""], dataset, path=path)


@pytest.mark.parametrize("what", ["size", "time", "name"])
def test_a_changed_file_is_noticed(what, teacher, dataset, path, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(b"one")
    dataset.paths = [file]
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    time = file.stat().st_mtime_ns
    if what == "size":
        file.write_bytes(b"other")
    os.utime(file, ns=(time, time + (what == "time")))
    if what == "name":
        dataset.paths = [file.rename(tmp_path / "other.png")]
    with pytest.raises(InputError, match="made from other"):
        TeacherCache.build(teacher, TAPS, dataset, path=path)


def test_of_a_data_set_with_files_another_transform_is_noticed(teacher, dataset, path, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(b"one")
    dataset.paths = [file] * 20
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    brighter = TensorDataset(dataset.tensors[0] + 1, dataset.tensors[1])
    brighter.paths = dataset.paths
    with pytest.raises(InputError, match="made from other"):
        TeacherCache.build(teacher, TAPS, brighter, path=path)


def test_of_a_data_set_with_files_only_some_images_are_looked_at(teacher, path, tmp_path):
    (tmp_path / "image.png").write_bytes(b"one")
    seen = set()

    class Watched(Always):
        paths = (tmp_path / "image.png",)

        def __getitem__(self, index):
            seen.add(index)
            return super().__getitem__(index)

    data = Watched((torch.zeros(3, 16, 16), 0), samples=200)
    TeacherCache.build(teacher, TAPS, data, path=path)
    seen.clear()
    TeacherCache.build(teacher, TAPS, data, path=path)
    assert 20 < len(seen) < 50


def test_files_may_be_named_by_texts(teacher, dataset, path, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(b"one")
    dataset.paths = [str(file)] * 20
    TeacherCache.build(teacher, TAPS, dataset, path=str(path))
    assert path.is_file()
    dataset.paths = [file] * 20
    TeacherCache.build(teacher, TAPS, dataset, path=path)  # the same files
    file.write_bytes(b"other")
    with pytest.raises(InputError, match="made from other"):
        TeacherCache.build(teacher, TAPS, dataset, path=path)


def test_torchvisions_list_of_files_will_do(teacher, dataset, path, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(b"one")
    dataset.samples = [(str(file), 0)] * 20
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    file.write_bytes(b"other")
    with pytest.raises(InputError, match="made from other"):
        TeacherCache.build(teacher, TAPS, dataset, path=path)


def test_a_loader_in_place_of_a_data_set_is_refused(teacher, dataset, path, shapes_unchecked):
    with pytest.raises(InputError, match="is a DataLoader; wanted: the data set itself, such as loader.dataset"):
        TeacherCache.build(teacher, TAPS, DataLoader(dataset), path=path)


@pytest.mark.parametrize(
    "paths", [[3, 4], ["within/a/folder.png"], [__file__, "within/a/folder.png"], {"root": "here"}, "here", None]
)
def test_paths_that_are_no_files_are_let_be_and_every_image_counts(paths, teacher, dataset, path):
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    dataset.paths = paths
    TeacherCache.build(teacher, TAPS, dataset, path=path)


def test_a_tap_that_the_cache_lacks_is_named(teacher, dataset, path):
    cache = TeacherCache.build(teacher, TAPS, dataset, path=path)
    with pytest.raises(InputError, match=r"unknown tap 'clasifier'\. Did you mean 'classifier'\?"):
        cache.only(["clasifier"])


ITEMS = {
    "a dictionary": ({"image": torch.zeros(3, 16, 16)}, "dict;"),
    "a tensor": (torch.zeros(3, 16, 16), "Tensor;"),
    "no image tensor": (["a.png", 0], r"list \(str, int\);"),
    "three parts": ((torch.zeros(3, 16, 16), 0, 0), r"tuple \(Tensor, int, int\);"),
}


class Always(Dataset):
    def __init__(self, item, samples=20):
        self.item, self.samples = item, samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return self.item


@pytest.mark.parametrize(("item", "said"), ITEMS.values(), ids=ITEMS)
def test_other_items_than_pairs_are_refused(item, said, teacher, dataset, path):
    others = Always(item)
    message = rf"item 0 of the data set is a {said} wanted: \(image tensor, label\)\. Wrap the data set"
    with pytest.raises(InputError, match=message):
        TeacherCache.build(teacher, TAPS, others, path=path)
    cache = TeacherCache.build(teacher, TAPS, dataset, path=path)
    with pytest.raises(InputError, match=message):
        cache.attach(others)


def test_an_empty_data_set_is_refused(teacher, path):
    with pytest.raises(InputError, match="the data set is empty"):
        TeacherCache.build(teacher, TAPS, Always(None, samples=0), path=path)


class Augmented(Dataset):
    def __init__(self, start, samples):
        self.start, self.samples = start, samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return (torch.randn if index >= self.start else torch.zeros)(3, 16, 16), 0


@pytest.mark.parametrize(("start", "samples"), [(0, 8), (5, 8), (192, 200)])
def test_a_random_pipeline_is_refused(start, samples, teacher, path):
    with pytest.raises(InputError, match=f"sample {start} of the data set is another image each time"):
        TeacherCache.build(teacher, TAPS, Augmented(start, samples), path=path)


def test_another_number_of_samples_is_refused(teacher, dataset, path):
    cache = TeacherCache.build(teacher, TAPS, dataset, path=path)
    with pytest.raises(InputError, match="holds 20 samples and the data set 5"):
        cache.attach(TensorDataset(torch.zeros(5, 3, 16, 16), torch.zeros(5)))


@pytest.mark.parametrize("how", ["computed", "from disk", "only"])
def test_images_of_another_data_set_or_transform_are_refused(how, teacher, dataset, path):
    cache = TeacherCache.build(teacher, TAPS, dataset, path=path)
    if how == "from disk":
        cache = TeacherCache.build(teacher, TAPS, dataset, path=path)
    if how == "only":
        cache = cache.only(TAPS)
    images, labels = dataset.tensors
    for others in (torch.randn_like(images), 2 * images, images.flip(0)):
        with pytest.raises(InputError, match="built of other images than those of the data set, or of another transf"):
            cache.attach(TensorDataset(others, labels))
    cache.attach(TensorDataset(images, labels + 1))  # the labels are no matter of the teacher's


def test_a_truncated_or_foreign_file_is_named_and_left_alone(teacher, dataset, path):
    TeacherCache.build(teacher, TAPS, dataset, path=path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"outputs\.safetensors cannot be read"):
        TeacherCache.build(teacher, TAPS, dataset, path=path)
    assert len(path.read_bytes()) == len(whole) // 2
    save_tensors(path, {"classifier": torch.zeros(20, 3)}, {"something": "else"})
    with pytest.raises(InputError, match="made from other"):
        TeacherCache.build(teacher, TAPS, dataset, path=path)


@pytest.mark.parametrize("rows", [2, 5])
def test_a_parameter_cannot_be_cached_even_with_as_many_rows_as_images(rows, path):
    data = TensorDataset(torch.randn(5, 3), torch.zeros(5))
    with pytest.raises(InputError, match="tap 'weight:parameter' is on a parameter, which is no output of a sample"):
        TeacherCache.build(nn.Linear(3, rows), [Tap("weight", "parameter")], data, path=path, batch_size=5)


def test_what_has_no_row_for_each_image_cannot_be_cached(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    teacher = nn.Sequential(nn.Linear(3, 2), Two())
    data = TensorDataset(torch.randn(5, 3), torch.zeros(5))
    with pytest.raises(InputError, match=r"for 5 images; wanted: a tensor with one row an image.*item="):
        TeacherCache.build(teacher, [Tap("1")], data, path=tmp_path / "cache.safetensors")
