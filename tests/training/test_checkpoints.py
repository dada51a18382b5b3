"""Models on disk: whole or not at all, and refused with the file's name where they cannot be used."""

import errno
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from states import same
from torch import nn

from kdlab import InputError
from kdlab.files import check_writable, load_tensors, save_tensors, write_whole
from kdlab.models import StudentCNN
from kdlab.training import ModelCard, load_model, load_weights, save_model


def test_a_tensor_that_stands_in_two_places_is_saved_twice(tmp_path):
    one = torch.arange(6.0).view(2, 3)
    save_tensors(tmp_path / "both", {"here": one, "there": one, "empty": torch.empty(0), "too": torch.empty(0)}, {})
    tensors, _ = load_tensors(tmp_path / "both")
    assert torch.equal(tensors["here"], one)
    assert torch.equal(tensors["there"], one)
    assert set(tensors) == {"here", "there", "empty", "too"}


def small(classes=3):
    return StudentCNN(classes, (4, 4, 4, 4))


CARD = ModelCard(
    architecture=small().architecture,
    classes=("ant", "bee", "Grashüpfer"),
    mean=(0.1, 0.2, 1 / 3),
    std=(0.5, 0.6, 0.7),
    size=16,
    weights="imagenet",
    recipe={"task": "distill", "lr": 1e-4, "widths": [4, 4, 4, 4], "patience": None},
    metrics={"accuracy": 0.9, "epoch": 7},
)


def randomised():
    """Weights and BatchNorm's statistics that no fresh model has."""
    model = small()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape).abs() * 10)
    return model


@pytest.fixture
def path(tmp_path):
    """A saved model."""
    save_model(tmp_path / "model.safetensors", randomised(), CARD)
    return tmp_path / "model.safetensors"


# --- what kdlab saves ------------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_its_card_and_needs_no_flag(tmp_path):
    model = randomised()
    save_model(tmp_path / "new folder" / "model.safetensors", model, CARD)
    loaded, card = load_model(tmp_path / "new folder" / "model.safetensors")
    assert same(loaded.state_dict(), model.state_dict())
    assert card == CARD
    assert not loaded.training
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model.eval()(images))


def test_a_path_may_be_text(tmp_path):
    saved, other = randomised(), small()
    save_model(f"{tmp_path}/model.safetensors", saved, CARD)
    load_weights(other, f"{tmp_path}/model.safetensors")
    for read in (load_model(f"{tmp_path}/model.safetensors")[0], other):
        assert same(read.state_dict(), saved.state_dict())


def test_a_folder_stands_for_its_best_checkpoint(tmp_path):
    models = {name: randomised() for name in ("best", "last")}
    for name, model in models.items():
        save_model(tmp_path / f"{name}.safetensors", model, replace(CARD, weights=name))
    loaded, card = load_model(tmp_path)
    assert card.weights == "best"
    assert same(loaded.state_dict(), models["best"].state_dict())


def test_a_model_of_any_memory_format_and_type_comes_back(tmp_path):
    model = randomised().to(memory_format=torch.channels_last)
    save_model(tmp_path / "model.safetensors", model, CARD)
    assert same(load_model(tmp_path / "model.safetensors")[0].state_dict(), model.state_dict())


def test_the_file_is_plain_safetensors_with_one_header_entry(path):
    tensors, meta = load_tensors(path)
    assert set(tensors) == set(small().state_dict())
    assert list(meta) == ["card"]


@pytest.mark.parametrize("length", [0, 4, 8, 100, 1000, -1])
def test_a_truncated_file_is_named(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        InputError, match=r"model\.safetensors cannot be read as safetensors.*Take another copy"
    ) as said:
        load_model(path)
    assert "delete" not in str(said.value)  # it may be the only one


def header_of(path, header):
    """The same tensors under another header."""
    tensors, _ = load_tensors(path)
    save_file(tensors, path, metadata=header)


FOREIGN = {
    "text": (lambda path: path.write_text("notes to myself\n" * 100), "cannot be read as safetensors"),
    "a pickle": (lambda path: torch.save(small().state_dict(), path), "is a PyTorch file, .* load_weights"),
    "an old pickle": (
        lambda path: torch.save(small().state_dict(), path, _use_new_zipfile_serialization=False),
        "is a PyTorch file, .* save_model",
    ),
    "of another program": (lambda path: header_of(path, {"format": "pt"}), "not one of kdlab's"),
    "without any header": (lambda path: header_of(path, None), "not one of kdlab's"),
    "a header that is no JSON": (lambda path: header_of(path, {"kdlab": "{'card':"}), "header"),
    "a header that is no dictionary": (lambda path: header_of(path, {"kdlab": "0.1"}), "header"),
    "no model": (lambda path: save_tensors(path, {"classifier": torch.zeros(3)}, {"rows": []}), "holds no model"),
    "a card without classes": (lambda path: card_of(path, lambda card: card.pop("classes")), "card"),
    "a card with more": (lambda path: card_of(path, lambda card: card.update(licence="MIT")), "card"),
    "an unknown architecture": (
        lambda path: card_of(path, lambda card: card["architecture"].update(name="CNN")),
        r"architecture 'CNN'.*The weights of a network of your own are read with load_weights\(model, path\)",
    ),
    "an argument that there is not": (
        lambda path: card_of(path, lambda card: card["architecture"].update(depth=3)),
        r"architecture 'StudentCNN' cannot be built.*Take another copy, or train again",
    ),
    "other classes than weights": (
        lambda path: card_of(path, lambda card: card["architecture"].update(classes=5)),
        r"the weights in .* do not fit StudentCNN: 2 of another shape \(classifier\.3\.weight is \(3, 2\)",
    ),
}


def card_of(path, change):
    tensors, meta = load_tensors(path)
    change(meta["card"])
    save_tensors(path, tensors, meta)


@pytest.mark.parametrize(("spoil", "said"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_and_named(path, spoil, said):
    spoil(path)
    with pytest.raises(InputError, match=said) as refused:
        load_model(path)
    assert str(path) in str(refused.value)


def test_a_resume_file_is_no_model(path):
    save_tensors(path, {"objective.student.x": torch.zeros(3)}, {"recipe": {}, "rows": [], "scheduler": None})
    with pytest.raises(InputError, match=r"model\.safetensors holds no model.*wanted: .*best\.safetensors"):
        load_model(path)


@pytest.mark.parametrize("name", ["none.safetensors", "", "no/such/folder"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"{name or 'best.safetensors'} does not exist"):
        load_model(tmp_path / name)


def test_a_damaged_header_is_an_input_error_or_a_whole_model(path):
    """A flipped byte, here and there in the header: a file that still loads has the same tensors."""
    whole = path.read_bytes()
    weights = load_model(path)[0].state_dict()
    header = int.from_bytes(whole[:8], "little")
    for place in range(0, 8 + header, 11):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
        try:
            model, _ = load_model(path)
        except InputError:
            continue
        assert same(model.state_dict(), weights), f"byte {place}"


# --- whole or not at all ---------------------------------------------------------------------------------------------


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file_and_nothing_else(path, monkeypatch, call):
    before = path.read_bytes()
    if call == "write":
        original = Path.open

        def opened(self, *arguments):
            file = original(self, *arguments)
            return _Full(file)

        monkeypatch.setattr(Path, "open", opened)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"model\.safetensors could not be written: the disk is full.*MB needed.*make"):
        save_model(path, randomised(), CARD)
    monkeypatch.undo()
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == before


class _Full:
    """A file on a disk that has room for a hundred bytes more."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[:100])
        full()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        InputError, match=r"file/model\.safetensors could not be written: (Not a directory|File exists)"
    ):
        save_model(tmp_path / "file" / "model.safetensors", small(), CARD)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder could not be written"):
        write_whole(tmp_path / "folder", b"content")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_nowhere_is_no_folder_to_write_in(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="--out .*link/run cannot be made: No such file.*Name another folder"):
        check_writable(tmp_path / "link" / "run", "--out")


def test_the_name_is_given_last(tmp_path, monkeypatch):
    """The bytes are on the disk before the file has its name: else a power cut leaves an empty file."""
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: calls.append(name) or original(*a))
    write_whole(tmp_path / "file", b"content")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "file").read_bytes() == b"content"


# --- weights of any origin -------------------------------------------------------------------------------------------

WRAPPED = {
    "plain": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3, "lr": 0.1},
    "model": lambda weights: {"model": weights, "optimizer": {"state": {}}},
    "model in state_dict": lambda weights: {"state_dict": {"model": weights}},
    "data parallel": lambda weights: {f"module.{name}": value for name, value in weights.items()},
    "wrapped and data parallel": lambda weights: {"model": {f"module.{name}": v for name, v in weights.items()}},
    "without step counters": lambda weights: {n: v for n, v in weights.items() if "num_batches_tracked" not in n},
    "in half precision": lambda weights: {n: v.half() if v.is_floating_point() else v for n, v in weights.items()},
}


def filled_as_given(path, weights):
    model = small()
    load_weights(model, path)
    for name, value in model.state_dict().items():
        if "num_batches_tracked" not in name:
            torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-3)  # as exact as half precision is
    return True


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_state_dict_of_any_origin_loads(tmp_path, wrap, suffix):
    weights = randomised().state_dict()
    torch.save(wrap(weights), tmp_path / f"weights{suffix}")
    assert filled_as_given(tmp_path / f"weights{suffix}", weights)


@pytest.mark.parametrize("wrap", ["plain", "data parallel", "without step counters", "in half precision"])
def test_safetensors_of_any_origin_load(tmp_path, wrap):
    weights = randomised().state_dict()
    save_file(WRAPPED[wrap](weights), tmp_path / "weights.safetensors")
    assert filled_as_given(tmp_path / "weights.safetensors", weights)


def test_a_checkpoint_of_kdlabs_is_plain_weights_too(path):
    model = small()
    load_weights(model, path)
    assert same(model.state_dict(), load_model(path)[0].state_dict())


def without(weights, *names):
    return {name: value for name, value in weights.items() if name not in names}


MISFITS = {
    "missing": (
        lambda weights: without(weights, "features.0.0.bias", "classifier.3.weight"),
        r"2 missing \(features\.0\.0\.bias\)",
    ),
    "surplus": (lambda weights: weights | {"head.weight": torch.zeros(1)}, r"1 unknown \(head\.weight\)"),
    "of another shape": (
        lambda weights: weights | {"classifier.3.bias": torch.zeros(5)},
        r"1 of another shape \(classifier\.3\.bias is \(5,\), the model's \(3,\)\)",
    ),
    "of another model": (
        lambda weights: {"fc.weight": torch.zeros(2)},
        r"28 missing \(features\.0\.0\.weight\); 1 unknown \(fc\.weight\)",
    ),
    "empty": (lambda weights: {}, "28 missing"),
}


@pytest.mark.parametrize(("change", "said"), MISFITS.values(), ids=MISFITS)
def test_weights_that_do_not_fit_are_named_and_change_nothing(tmp_path, change, said):
    torch.save(change(dict(randomised().state_dict())), tmp_path / "weights.pt")
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=rf"weights\.pt do not fit StudentCNN: {said}.*Is it the right model"):
        load_weights(model, tmp_path / "weights.pt")
    assert same(model.state_dict(), before)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return Path.write_text, (self.victim, "the code has run")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["torch", "legacy torch", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, protocol):
    victim, path = tmp_path / "victim", tmp_path / "weights.pth"
    content = {"state_dict": small().state_dict(), "extra": Malicious(victim)}
    if protocol == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "torch")
    with pytest.raises(InputError, match=r"weights\.pth cannot be read as plain weights.*Wanted: a state_dict"):
        load_weights(small(), path)
    assert not victim.exists()
    torch.load(path, weights_only=False) if protocol != "pickle" else pickle.loads(path.read_bytes())
    assert victim.exists()  # it would have


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(small(), tmp_path / "model.pt")
    words = r"model\.pt cannot be read as plain weights \(it holds Python objects.*a whole pickled model is refused"
    with pytest.raises(InputError, match=words):
        load_weights(small(), tmp_path / "model.pt")


UNUSABLE = {
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "a list": lambda path: torch.save([torch.zeros(3)], path),
    "numbers": lambda path: torch.save({"lr": 0.1}, path),
    "an optimiser": lambda path: torch.save(torch.optim.Adam(small().parameters()).state_dict(), path),
    "tensors by number": lambda path: torch.save({0: torch.zeros(3)}, path),
    "text": lambda path: path.write_text("notes to myself"),
    "an archive": lambda path: zipfile.ZipFile(path, "w").writestr("a", "b"),
    "zero bytes": lambda path: path.write_bytes(b""),
    "JSON": lambda path: path.write_text(json.dumps({"weight": [1.0]})),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("write", UNUSABLE.values(), ids=UNUSABLE)
def test_what_is_no_state_dict_is_named(tmp_path, write, suffix):
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(InputError, match=rf"weights\{suffix} (cannot be read as plain weights|holds no state_dict)"):
        load_weights(small(), path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_of_weights_is_named(tmp_path, suffix, share):
    path = tmp_path / f"weights{suffix}"
    weights = randomised().state_dict()
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=rf"weights\{suffix} cannot be read as plain weights \("):
        load_weights(small(), path)


@pytest.mark.parametrize(("name", "said"), [("none.pt", "does not exist"), ("folder", "is a folder")])
def test_no_such_file_of_weights(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"{name} {said}; wanted: a file with the weights of Linear"):
        load_weights(nn.Linear(2, 2), tmp_path / name)


def test_a_network_of_ones_own_comes_back_as_the_card_says(tmp_path):
    save_model(tmp_path / "best.safetensors", nn.Linear(2, 2), replace(CARD, architecture={"name": "mine"}))
    with pytest.raises(InputError, match="load_weights"):
        load_model(tmp_path)
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match=r"best\.safetensors in it"):
        load_weights(model, tmp_path)
    load_weights(model, tmp_path / "best.safetensors")
    assert same(model.state_dict(), load_tensors(tmp_path / "best.safetensors")[0])


def test_a_compiled_network_is_saved_under_its_own_names(tmp_path):
    network = randomised()
    save_model(tmp_path / "model.safetensors", torch.compile(network), CARD)
    assert same(load_model(tmp_path / "model.safetensors")[0].state_dict(), network.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_names_that_wrappers_make_are_looked_through(tmp_path, prefix):
    network, other = randomised(), small()
    torch.save({prefix + name: value for name, value in network.state_dict().items()}, tmp_path / "weights.pth")
    load_weights(other, tmp_path / "weights.pth")
    assert same(other.state_dict(), network.state_dict())


def test_a_network_may_have_a_part_called_module(tmp_path):
    mean = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    torch.save(mean.state_dict(), tmp_path / "mean.pth")
    other = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    load_weights(other, tmp_path / "mean.pth")
    assert same(other.state_dict(), mean.state_dict())


def test_buffers_that_share_their_memory_are_saved_each_by_itself(tmp_path):
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "both", {"whole": whole, "tail": whole[2:]}, {})
    tensors, _ = load_tensors(tmp_path / "both")
    assert torch.equal(tensors["tail"], whole[2:])
    assert torch.equal(tensors["whole"], whole)


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    own, path = os.replace, tmp_path / "file"

    def after_the_other(source, target):
        monkeypatch.setattr(os, "replace", own)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        write_whole(path, b"the other's")
        own(source, target)

    monkeypatch.setattr(os, "replace", after_the_other)
    write_whole(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
