"""``kdlab yolo``, from the data to a distilled detector that finds objects."""

import csv
import io
import json

import pandas as pd
import pytest
from command_line import done, refused, run

pytest.importorskip("ultralytics")

from kdlab import detection, pruning
from kdlab.commands import yolo_options
from kdlab.detection import Distillation, YoloSettings
from kdlab.yolo import load_model

SMALL = ("--image-size", 64, "--device", "cpu")
SHORT = ("--epochs", 1, "--batch-size", 3, *SMALL)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_from_a_yaml_to_a_distilled_student(tiny, scenes, tmp_path):
    sparse, pruned, out = tmp_path / "sparse", tmp_path / "pruned.pt", tmp_path / "student"
    words = ("--lr", 2e-3, "--nominal-batch", 6, *SHORT)
    text = done("yolo", "sparse-train", scenes, "--model", tiny, "--out", sparse, *words)
    assert json.loads((sparse / "recipe.json").read_text())["nominal_batch"] == 6
    assert "best epoch: 1 of 1" in text
    best = sparse / "weights" / "best.pt"
    text = done("yolo", "prune", "--model", best, "--out", pruned, "--keep", 0.7, "--at-least", 4)
    assert "model.22.cv2.0.0.conv" in text
    assert "parameters: " in text
    assert "GFLOPs at 640x640: " in text
    done("yolo", "distill", scenes, "--model", pruned, "--teacher", best, "--out", out, "--layers", 15, 18, *SHORT)
    assert pd.read_csv(out / "results.csv")["train/cwd_loss"].item() > 0
    student = out / "weights" / "best.pt"
    assert pruning.structure(load_model(student)) == pruning.structure(load_model(pruned))
    done("yolo", "export", "--model", student, "--out", tmp_path / "s.onnx", "--image-size", 64)
    assert (tmp_path / "s.onnx").is_file()


def test_results_as_table_csv_and_json(trained, pruned, scenes, tmp_path):
    judged = ("--batch-size", 3, *SMALL)
    table = done("yolo", "compare", scenes, "--models", trained.best, pruned, *judged)
    assert "gflops" in table
    rows = json.loads(done("yolo", "evaluate", scenes, "--model", trained.best, "--format", "json", *judged))
    assert rows[0]["class"] == "all"
    text = done("yolo", "prune", "--model", trained.best, "--out", tmp_path / "p.pt", "--keep", 1, "--format", "csv")
    assert {row["share"] for row in csv.DictReader(io.StringIO(text))} == {"1.0"}


def test_predict_writes_rows_and_images_with_boxes(trained, scenes, tmp_path):
    images = scenes / "images" / "test"
    words = ("--model", trained.best, "--confidence", 0, "--format", "csv", "--out", tmp_path / "found", *SMALL)
    rows = list(csv.DictReader(io.StringIO(done("yolo", "predict", images, *words))))
    assert {row["image"] for row in rows} == {str(path) for path in images.iterdir()}
    drawn = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert drawn == ["00000_boxes.png", "00001_boxes.png", "00002_boxes.png"]
    assert (tmp_path / "found" / drawn[0]).read_bytes() != (images / "00000.png").read_bytes()


def test_predict_names_what_it_skips_and_says_where_it_found_nothing(trained, scenes, tmp_path):
    images, cut = scenes / "images" / "test", tmp_path / "cut.png"
    cut.write_bytes((images / "00000.png").read_bytes()[:500])
    words = ("--model", trained.best, "--confidence", 1, *SMALL)
    said = run("yolo", "predict", cut, images, "--out", tmp_path / "found", *words)
    assert said.out == "no objects above confidence 1 in 3 images\n"
    assert f"kdlab: skipped {cut}: damaged" in said.err
    assert len(list((tmp_path / "found").iterdir())) == 3
    assert json.loads(done("yolo", "predict", images, *words, "--format", "json")) == []
    assert "not one of the 1 files could be used" in refused("yolo", "predict", cut, *words)


def test_a_number_that_the_method_has_no_use_for_is_refused(trained, scenes, tmp_path):
    words = ("yolo", "distill", scenes, "--model", trained.best, "--teacher", trained.best, "--out", tmp_path / "run")
    assert "cwd has no use for, only mgd" in refused(*words, "--mask-ratio", 0.5, *SHORT)
    assert "mgd has no use for, only cwd" in refused(*words, "--method", "mgd", "--temperature", 2, *SHORT)


def test_voc_is_the_folder_of_its_boxes(trained, scenes, tmp_path, monkeypatch):
    judged = ("--model", trained.best, "--format", "csv", "--batch-size", 3, *SMALL)
    direct = done("yolo", "evaluate", scenes, *judged)
    monkeypatch.chdir(tmp_path)
    said = refused("yolo", "evaluate", "voc", *judged)
    assert "Pascal VOC's boxes are not in data/voc-boxes." in said
    assert "get_segmentation.py voc, then python data_scripts/make_boxes.py data/voc-boxes" in said
    (tmp_path / "data").mkdir()
    (tmp_path / "data/voc-boxes").symlink_to(scenes)
    assert done("yolo", "evaluate", "voc", *judged) == direct


def test_what_cannot_be_used_is_one_message(scenes, trained, tmp_path):
    judged = ("yolo", "evaluate", scenes, "--model")
    assert "there are no weights yolov8n.pt" in refused(*judged, "yolov8n.pt")
    assert "a multiple of 32" in refused(*judged, trained.best, "--image-size", 100)
    prune = ("yolo", "prune", "--model", trained.best, "--out", tmp_path / "p.pt")
    assert "above 0 and at most 1" in refused(*prune, "--keep", 1.5)
    assert run(*prune).status == 2
    assert run(*prune, "--keep", 0.5, "--gflops", 1).status == 2


@pytest.mark.parametrize(
    "step", ["sparse-train", "prune", "fine-tune", "distill", "export", "compare", "predict", "evaluate"]
)
def test_every_step_explains_itself(step):
    text = done("yolo", step, "--help")
    assert f"kdlab yolo {step} " in text
    assert "example" in text


def test_the_options_say_what_the_library_does():
    assert yolo_options.LAYERS == detection.LAYERS
    assert set(yolo_options.METHODS) == set(detection.settings.WEIGHTS)
    assert (Distillation().temperature, Distillation().mask_ratio) == (1, 0.65)
    assert Distillation().start == 1
    assert Distillation("mgd").start == 2e-5
    assert YoloSettings().epochs == 50
