"""``evaluate`` and ``predict`` with a classifier's weights that have no card of kdlab's."""

import json

import pytest
import torch
from class_folder import grow
from command_line import done, refused

from kdlab.commands.plain_weights import read_labels
from kdlab.errors import InputError
from kdlab.models import StudentCNN, densenet121
from kdlab.training import ModelCard, save_model

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)
TOLD = ("--image-size", 32, "--mean", *MEAN, "--std", *STD)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network as kdlab saves it and as another program does, images, and the names of their classes."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    network = StudentCNN(2, widths=(4, 6, 8, 10)).eval()
    network(torch.rand(1, 3, 32, 32))
    card = ModelCard(network.architecture, ("circle", "square"), MEAN, STD, size=32)
    save_model(folder / "own.safetensors", network, card)
    torch.save({"state_dict": network.state_dict()}, folder / "student.pth")
    (folder / "classes.txt").write_text("circle\nsquare\n")
    grow(folder / "shapes", train=2, val=3)
    return folder


def test_predict_says_the_same_as_with_a_file_of_kdlabs(files):
    words = ("predict", files / "shapes" / "val", "--top-k", 2, "--format", "json", "--model")
    plain = done(*words, files / "student.pth", "--labels", files / "classes.txt", *TOLD)
    assert len(json.loads(plain)) == 12
    assert plain == done(*words, files / "own.safetensors")


def test_evaluate_says_the_same_and_takes_the_classes_of_the_data(files):
    words = ("evaluate", files / "shapes", "--format", "json", "--model")
    plain = done(*words, files / "student.pth", *TOLD)
    assert json.loads(plain)["images"] == 6
    assert plain == done(*words, files / "own.safetensors")
    assert plain == done(*words, files / "student.pth", *TOLD, "--labels", files / "classes.txt")


def test_a_densenet_is_known_by_its_names(files, tmp_path):
    torch.save(densenet121(2).state_dict(), tmp_path / "teacher.pt")
    words = ("predict", files / "shapes" / "val" / "circle", "--format", "json")
    told = ("--labels", files / "classes.txt", *TOLD)
    assert len(json.loads(done(*words, "--model", tmp_path / "teacher.pt", *told))) == 3


def test_all_that_is_lacking_is_said_at_once(files):
    said = refused("predict", files / "shapes", "--model", files / "student.pth", "--mean", *MEAN)
    assert "does not say what its images and classes are; wanted too: --labels, --image-size, --std" in said
    said = refused("evaluate", files / "shapes", "--model", files / "student.pth")
    assert "wanted too: --image-size, --mean, --std" in said


def test_what_a_file_of_kdlabs_says_itself_is_not_said_again(files):
    own = ("--model", files / "own.safetensors")
    assert "--image-size was given, which" in refused("predict", files / "shapes", *own, "--image-size", 32)
    assert "--labels was given" in refused("evaluate", files / "shapes", *own, "--labels", files / "classes.txt")


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--std", "0,1,1", "std is (0.0, 1.0, 1.0)"),
    ("--mean", "0.5", "mean has 1 value, 3 wanted"),
])  # fmt: skip
def test_a_normalisation_that_makes_no_sense(files, option, value, said):
    words = ("evaluate", files / "shapes", "--model", files / "student.pth", *TOLD)
    assert said in refused(*words, option, value)


def test_classes_that_do_not_fit(files, tmp_path):
    plain = ("--model", files / "student.pth", *TOLD)
    three = grow(tmp_path / "three", ("circle", "oval", "square"), train=1, val=1)
    assert "knows 2 classes, and" in refused("evaluate", three, *plain)
    (tmp_path / "one.txt").write_text("circle")
    assert "one.txt names 1. Wanted: as many" in refused(
        "predict", files / "shapes", *plain, "--labels", tmp_path / "one.txt"
    )
    (tmp_path / "other.txt").write_text("square\ncircle")
    said = refused("evaluate", files / "shapes", *plain, "--labels", tmp_path / "other.txt")
    assert "the model knows square, circle; shapes has circle, square" in said


def test_weights_of_a_network_that_is_not_known(files, tmp_path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "other.pth", *TOLD)
    assert "of a network that is not known: it has no 'features.0.0.weight'. Wanted: StudentCNN or densenet121" in said


def test_weights_that_are_cut_short(files, tmp_path):
    (tmp_path / "cut.pth").write_bytes((files / "student.pth").read_bytes()[:2000])
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "cut.pth", *TOLD)
    assert "cannot be read as plain weights" in said


def test_no_code_is_run_from_the_file(files, tmp_path):
    torch.save(StudentCNN(2), tmp_path / "whole.pth")
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "whole.pth", *TOLD)
    assert "it holds Python objects beside tensors" in said


@pytest.mark.parametrize("text", [
    "hot dog\ncat\n\n", "\n  hot dog \r\ncat", "0 hot dog\n1 cat", "1 cat\n0  hot dog\n", "0: hot dog\n1: cat",
    "\ufeffhot dog\ncat",
])  # fmt: skip
def test_labels_one_a_line_with_or_without_their_numbers(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("hot dog", "cat")


def test_names_that_begin_with_other_numbers_are_names(tmp_path):
    (tmp_path / "labels.txt").write_text("1 franc\n5 francs")
    assert read_labels(tmp_path / "labels.txt") == ("1 franc", "5 francs")


@pytest.mark.parametrize(("content", "said"), [
    (b"cat\ndog\ncat", "names cat more than once"), (b"\n\n", "is empty"), (b"\xff\xfe\x00", "cannot be read"),
])  # fmt: skip
def test_labels_that_cannot_be_used(tmp_path, content, said):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_labels(tmp_path / "labels.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "nowhere.txt")
