"""``evaluate`` and ``predict`` with a classifier's weights that have no card of kdlab's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from class_folder import grow
from command_line import done, refused
from safetensors.torch import save_file

from kdlab.commands.plain_weights import read_labels
from kdlab.errors import InputError
from kdlab.models import StudentCNN, densenet121
from kdlab.training import ModelCard, load_model, save_model

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
    ("--mean", "123,116,103", "wanted for pixels in 0 to 1. Divide what is for 0 to 255 by 255"),
    ("--std", "58,57,57", "wanted for pixels in 0 to 1"),
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
    assert "of a network that is not known (no 'features.0.0.weight'). Wanted: StudentCNN or densenet121" in said


def test_weights_that_are_cut_short(files, tmp_path):
    (tmp_path / "cut.pth").write_bytes((files / "student.pth").read_bytes()[:2000])
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "cut.pth", *TOLD)
    assert "cannot be read as plain weights" in said


def test_no_code_is_run_from_the_file(files, tmp_path):
    torch.save(StudentCNN(2), tmp_path / "whole.pth")
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "whole.pth", *TOLD)
    assert "it holds Python objects beside tensors" in said


def test_a_file_of_kdlabs_may_be_called_anything(files, tmp_path):
    shutil.copy(files / "own.safetensors", tmp_path / "kept")
    words = ("evaluate", files / "shapes", "--format", "json", "--model")
    assert done(*words, tmp_path / "kept") == done(*words, files / "own.safetensors")
    save_file(load_model(files / "own.safetensors")[0].state_dict(), tmp_path / "plain.bin")
    assert done(*words, tmp_path / "plain.bin", *TOLD) == done(*words, files / "own.safetensors")


def test_what_is_no_model_is_said_before_it_is_asked_about(files, tmp_path):
    (tmp_path / "history.csv").write_text("epoch,lr\n1,0.1\n")
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "history.csv")
    assert "cannot be read as plain weights" in said
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    assert "network that is not known" in refused("predict", files / "shapes", "--model", tmp_path / "other.pth")


def test_weights_that_are_not_finite(files, tmp_path):
    weights = load_model(files / "own.safetensors")[0].state_dict()
    weights["classifier.3.bias"][0] = torch.nan
    torch.save(weights, tmp_path / "nan.pth")
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "nan.pth", *TOLD)
    assert "classifier.3.bias in" in said
    assert "has numbers that are not finite" in said


def test_a_densenet_wants_images_of_its_least_size(files, tmp_path):
    torch.save(densenet121(2).state_dict(), tmp_path / "teacher.pt")
    told = ("--image-size", 28, *TOLD[2:])
    said = refused("evaluate", files / "shapes", "--model", tmp_path / "teacher.pt", *told)
    assert "--image-size is 28; wanted for DenseNet121: 32 at least" in said
    assert "shapes, val: 6 images" in done("evaluate", files / "shapes", "--model", files / "student.pth", *told)


def test_a_result_does_not_overwrite_what_it_was_made_of(files, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(files / "own.safetensors", run / "best.safetensors")
    (run / "history.csv").write_text("epoch,lr\n1,0.1\n")
    images = shutil.copytree(files / "shapes" / "val", tmp_path / "val")
    labels = shutil.copy(files / "classes.txt", tmp_path / "classes.txt")
    plain = ("--model", files / "student.pth", "--labels", labels, *TOLD)
    taken = {
        images / "circle" / "0.png": ("--model", run), run / "best.safetensors": ("--model", run),
        run / "history.csv": ("--model", run / "best.safetensors"), labels: plain,
    }  # fmt: skip
    for out, words in taken.items():
        before = Path(out).read_bytes()
        assert "is a file that is read here, or one of a training" in refused("predict", images, *words, "--out", out)
        assert Path(out).read_bytes() == before
    assert "written to" in done("predict", images, "--model", run, "--out", run / "answers.txt")
    assert "written to" in done("predict", images, "--model", run, "--out", run / "answers.txt")  # its own, again


@pytest.mark.parametrize("text", [
    "hot dog\ncat\n\n", "\n  hot dog \r\ncat", "0 hot dog\n1 cat", "1 cat\n0  hot dog\n", "0: hot dog\n1: cat",
    "\ufeffhot dog\ncat",
])  # fmt: skip
def test_labels_one_a_line_with_or_without_their_numbers(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ("hot dog", "cat")


def test_names_may_begin_with_numbers_where_not_all_do(tmp_path):
    (tmp_path / "labels.txt").write_text("1 franc\nnothing")
    assert read_labels(tmp_path / "labels.txt") == ("1 franc", "nothing")


@pytest.mark.parametrize("text", ["1 ant\n2 bee\n3 cow", "3 cow\n1 ant\n2 bee", "0 ant\n0 bee\n1 cow"])
def test_other_numbers_than_those_of_the_logits_are_refused(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError, match="numbers its 3 lines .*; wanted: 0 to 2, each once"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(("content", "said"), [
    (b"cat\ndog\ncat", "names cat more than once"), (b"\n\n", "is empty"), (b"\xff\xfe\x00", "cannot be read"),
])  # fmt: skip
def test_labels_that_cannot_be_used(tmp_path, content, said):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_labels(tmp_path / "labels.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "nowhere.txt")
