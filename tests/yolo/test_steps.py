"""Prune, export, compare, predict, evaluate; and what is refused before any work."""

import importlib.metadata
import os
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("ultralytics")

from ultralytics import YOLO
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.nn.tasks import ClassificationModel, SegmentationModel
from ultralytics.utils.metrics import Metric

from kdlab import InputError, detection, pruning, yolo
from kdlab.detection import Distillation, YoloSettings
from kdlab.detection.images import FORMATS
from kdlab.errors import GET_YOLO
from kdlab.yolo import load_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_training(monkeypatch):
    def reached(*_):
        raise AssertionError("a batch was trained on")

    monkeypatch.setattr(yolo.Trainer, "preprocess_batch", reached)


# --- the steps -------------------------------------------------------------------------------------------------------


def test_yolov8n_has_the_published_parameters():
    assert sum(p.numel() for p in load_model("yolov8n.yaml").parameters()) == 3_157_200


YOLOV8N = [  # kind, channels and stride of what each layer but the head puts out
    ("Conv", 16, 2), ("Conv", 32, 4), ("C2f", 32, 4), ("Conv", 64, 8), ("C2f", 64, 8), ("Conv", 128, 16),
    ("C2f", 128, 16), ("Conv", 256, 32), ("C2f", 256, 32), ("SPPF", 256, 32), ("Upsample", 256, 16),
    ("Concat", 384, 16), ("C2f", 128, 16), ("Upsample", 128, 8), ("Concat", 192, 8), ("C2f", 64, 8),
    ("Conv", 64, 16), ("Concat", 192, 16), ("C2f", 128, 16), ("Conv", 128, 32), ("Concat", 384, 32), ("C2f", 256, 32),
]  # fmt: skip


def test_yolov8n_has_the_published_layers():
    model, found = load_model("yolov8n.yaml").eval(), []
    for layer in model.model[:-1]:
        layer.register_forward_hook(lambda layer, _, out: found.append((type(layer).__name__, out.shape[1:])))
    model(torch.zeros(1, 3, 64, 96))
    assert found == [(kind, (channels, 64 // stride, 96 // stride)) for kind, channels, stride in YOLOV8N]
    head = model.model[-1]
    assert (len(model.model), type(head).__name__, head.f) == (23, "Detect", [15, 18, 21])


def test_pruning_says_what_it_left_and_saves_it(trained, tmp_path):
    plan = yolo.prune_yolo(trained.best, tmp_path / "p.pt", keep=0.7, at_least=4)
    left = load_model(tmp_path / "p.pt").eval()
    assert sum(p.numel() for p in left.parameters()) == plan.parameters.after < plan.parameters.before
    widths = {row["layer"]: row["kept"] for _, row in plan.table().iterrows()}
    assert {name: pruning.structure(left)[name]["outputs"] for name in widths} == widths
    assert left.names == load_model(trained.best).names
    assert left(torch.rand(1, 3, 64, 64))[0].shape == (1, 4 + 6, 84)
    for block in left.modules():
        if hasattr(block, "forward_split"):
            torch.testing.assert_close(block.forward_split(given := _input(block)), block(given))


def test_what_would_be_pruned_can_be_asked_before(trained, tmp_path):
    plan = yolo.plan_yolo(trained.best, keep=0.7, at_least=4, imgsz=64)
    assert plan == yolo.prune_yolo(trained.best, tmp_path / "p.pt", keep=0.7, at_least=4, imgsz=64)
    larger = yolo.prune_yolo(trained.best, tmp_path / "p.pt", keep=0.7, at_least=4, imgsz=128)
    assert larger.outputs == plan.outputs
    assert larger.macs.after == 4 * plan.macs.after
    with pytest.raises(InputError, match="a multiple of 32"):
        yolo.plan_yolo(trained.best, keep=0.7, imgsz=100)


def test_yolov8_is_built_at_any_width_and_to_the_structure_of_a_pruned_one(tmp_path):
    names = [str(number) for number in range(80)]
    assert sum(p.numel() for p in yolo.build_yolov8(0.25, names).parameters()) == 3_157_200
    dense = yolo.build_yolov8(0.0625, ["cat", "dog"])
    assert dense.names == {0: "cat", 1: "dog"}
    yolo.prune_yolo(dense, tmp_path / "p.pt", keep=0.7, at_least=4)
    pruned = load_model(tmp_path / "p.pt").eval()
    again = yolo.build_yolov8(0.0625, ["cat", "dog"], pruning.structure(pruned)).eval()
    again.load_state_dict(pruned.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(image)[0], pruned(image)[0])
    for block in again.modules():
        if hasattr(block, "forward_split"):
            torch.testing.assert_close(block.forward_split(given := _input(block)), block(given))
    for wrong, classes in ((0.0, ["cat"]), (0.25, [])):
        with pytest.raises(InputError, match="above 0, and at least one class"):
            yolo.build_yolov8(wrong, classes)
    with pytest.raises(InputError, match="structure is of another model"):
        yolo.build_yolov8(0.0625, ["cat"], pruning.structure(yolo.build_yolov8(0.125, ["cat"])))


def _input(block):
    return torch.rand(1, block.cv1.conv.in_channels, 4, 4)


def test_pruning_meets_a_number_of_parameters_or_of_operations(trained, scenes, tmp_path):
    dense = sum(p.numel() for p in load_model(trained.best).parameters())
    plan = yolo.prune_yolo(trained.best, tmp_path / "p.pt", parameters=int(0.8 * dense), imgsz=64, at_least=2)
    assert 0.7 * dense < plan.parameters.after <= 0.8 * dense
    target = 0.9 * 2e-9 * plan.macs.before
    plan = yolo.prune_yolo(trained.best, tmp_path / "o.pt", gflops=target, imgsz=64, at_least=2)
    assert 0.8 * target < 2e-9 * plan.macs.after <= target


def test_an_exported_detector_computes_the_same(pruned, tmp_path):
    exported = yolo.export_onnx(pruned, tmp_path / "p.onnx", imgsz=64)
    assert exported.path.is_file()
    assert exported.difference < 1e-4
    assert [file.name for file in tmp_path.iterdir()] == ["p.onnx"]


@pytest.mark.parametrize(("what", "more"), [(slice(4, None), 0.5), (slice(4), 0.5 * 64)], ids=["scores", "boxes"])
def test_an_export_that_computes_something_else_is_not_kept(what, more, pruned, tmp_path, monkeypatch):
    ready = yolo._ready
    monkeypatch.setattr(yolo, "_ready", lambda model: torch.nn.Sequential(ready(model), Plus(what, more)))
    with pytest.raises(RuntimeError, match="differ by 0.5"):
        yolo.export_onnx(pruned, tmp_path / "p.onnx", imgsz=64)
    assert not list(tmp_path.iterdir())


class Plus(torch.nn.Module):
    def __init__(self, what, more):
        super().__init__()
        self.what, self.more = what, more

    def forward(self, given):
        given[0][:, self.what] += self.more
        return given


def test_compare_puts_dense_and_pruned_in_one_table(trained, pruned, scenes):
    table = yolo.compare({"dense": trained.best, "pruned": pruned}, scenes, imgsz=64, device="cpu").set_index("model")
    columns = ["map50_95", "map50", "parameters", "gflops", "latency_ms", "file_mb"]
    assert table.columns.tolist() == columns
    dense, small = table.loc["dense"], table.loc["pruned"]
    assert (small[["parameters", "gflops", "file_mb"]] < dense[["parameters", "gflops", "file_mb"]]).all()
    assert (table["latency_ms"] > 0).all()
    assert table["map50_95"].between(0, 1).all()


def test_compare_has_what_its_columns_say(trained, scenes, monkeypatch):
    asked, found = [], pd.DataFrame({"class": ["all"], "map50_95": [0.25], "map50": [0.5]})
    monkeypatch.setattr(yolo, "evaluate", lambda model, data, **how: asked.append(how) or found)
    measured = SimpleNamespace(blocked_autorange=lambda **_: SimpleNamespace(median=0.002))
    monkeypatch.setattr(yolo, "Timer", lambda *_, **__: measured)
    how = {"split": "test", "imgsz": 64, "batch": 5, "device": "cpu"}
    row = yolo.compare([trained.best], scenes, **how).iloc[0]
    assert asked == [how]
    detector = load_model(trained.best).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        detector(torch.zeros(1, 3, 64, 64))
    wanted = [0.25, 0.5, 2, 1e-9 * counter.get_total_flops(), 1e-6 * trained.best.stat().st_size]
    assert row[["map50_95", "map50", "latency_ms", "gflops", "file_mb"]].tolist() == pytest.approx(wanted)
    assert row["parameters"] == sum(p.numel() for p in yolo._ready(detector).parameters())


def test_evaluate_has_a_row_for_all_and_one_for_each_class(trained, scenes):
    table = yolo.evaluate(trained.best, scenes, split="test", imgsz=64, device="cpu")
    assert table["class"].iloc[0] == "all"
    assert set(table["class"][1:]) <= {"disc", "square", "triangle", "star", "ring", "cross"}
    assert table["map50_95"].iloc[0] == pytest.approx(table["map50_95"][1:].mean())


def test_each_number_of_an_evaluation_is_what_its_column_says(trained, scenes, monkeypatch):
    box = Metric()
    ap = np.linspace([0.9, 0.5], [0.1, 0.3], 10, axis=1)
    box.update((np.array([0.8, 0.6]), np.array([0.2, 0.3]), None, ap, [1, 4], *[None] * 5))
    asked = []

    def validate(validator, model):
        validator.metrics.box = box
        asked.append((validator.args.split, validator.args.imgsz, validator.args.batch))

    monkeypatch.setattr(yolo.DetectionValidator, "__call__", validate)
    table = yolo.evaluate(trained.best, scenes, split="test", imgsz=64, batch=5, device="cpu")
    assert asked == [("test", 64, 5)]
    assert table.columns.tolist() == ["class", "map50_95", "map50", "precision", "recall"]
    assert table["class"].tolist() == ["all", "square", "ring"]
    rows = table.drop(columns="class").to_numpy()
    assert rows == pytest.approx(np.array([[0.45, 0.7, 0.7, 0.25], [0.5, 0.9, 0.8, 0.2], [0.4, 0.5, 0.6, 0.3]]))


def test_a_module_that_is_used_stays_as_it_is(trained, scenes):
    dense = load_model(trained.best).requires_grad_(True)
    before = pruning.structure(dense)
    yolo.evaluate(dense, scenes, imgsz=64, device="cpu")
    yolo.predict(dense, sorted((scenes / "images" / "test").glob("*.png"))[:1], imgsz=64, device="cpu")
    assert not dense.is_fused()
    assert pruning.structure(dense) == before
    assert all(parameter.requires_grad for parameter in dense.parameters())


def test_predict_has_a_row_for_each_object_in_pixels_of_the_image(trained, scenes):
    images = sorted((scenes / "images" / "test").glob("*.png"))
    table = yolo.predict(trained.best, images, imgsz=64, confidence=0.0, device="cpu")
    assert set(table["image"]) == set(map(str, images))
    assert table[["left", "top", "right", "bottom"]].to_numpy().min() >= 0
    assert table[["left", "top", "right", "bottom"]].to_numpy().max() <= 64
    none = yolo.predict(trained.best, images, imgsz=64, confidence=1.0, device="cpu")
    assert none.empty
    assert none.dtypes.iloc[2:].equals(table.dtypes.iloc[2:])


def test_predict_finds_what_ultralytics_finds_in_the_file(trained, scenes):
    image = sorted((scenes / "images" / "test").glob("*.png"))[0]
    ours = yolo.predict(trained.best, [image], imgsz=64, confidence=0.0, device="cpu")
    (theirs,) = YOLO(trained.best)(str(image), imgsz=64, conf=0.0, device="cpu", verbose=False)
    assert len(ours) == len(theirs) > 0
    numbers = torch.from_numpy(ours[["left", "top", "right", "bottom", "confidence"]].to_numpy()).float()
    torch.testing.assert_close(numbers, theirs.boxes.data[:, :5], rtol=1e-6, atol=1e-6)
    assert ours["class"].tolist() == [theirs.names[int(number)] for number in theirs.boxes.cls]


def test_predict_skips_what_is_no_image_where_it_may(trained, scenes, tmp_path):
    images, skipped = sorted((scenes / "images" / "test").glob("*.png")), []
    cut = tmp_path / "cut.png"
    cut.write_bytes(images[0].read_bytes()[:500])
    words = {"imgsz": 64, "confidence": 0.0, "device": "cpu"}
    table = yolo.predict(trained.best, [cut, *images], skipped=skipped, **words)
    assert table.equals(yolo.predict(trained.best, images, **words))
    assert [one.path for one in skipped] == [cut]
    with pytest.raises(InputError, match="cannot use .*cut.png"):
        yolo.predict(trained.best, [cut, *images], **words)


def test_classes_that_are_only_numbered_fit_any_of_their_number():
    numbered, named = (yolo.build_yolov8(0.0625, names) for names in (["0", "1"], ["cat", "dog"]))
    for model in (numbered, named):
        yolo.check_classes("model", model, {0: "cat", 1: "dog"})
    with pytest.raises(InputError, match="wanted: the same, in the same order"):
        yolo.check_classes("model", named, {0: "dog", 1: "cat"})


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5])
def test_keep_outside_0_to_1_is_refused(trained, tmp_path, keep):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        yolo.prune_yolo(trained.best, tmp_path / "p.pt", keep=keep)


def test_a_keep_that_would_empty_a_layer_is_refused(trained, tmp_path):
    with pytest.raises(InputError, match="smallest possible"):
        yolo.prune_yolo(trained.best, tmp_path / "p.pt", keep=0.01)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_architecture_are_refused(scenes, settings, tmp_path):
    other = tmp_path / "other.pt"
    torch.save({"model": ClassificationModel("yolov8n-cls.yaml", verbose=False)}, other)
    with pytest.raises(InputError, match="is a ClassificationModel; wanted: a detector"):
        yolo.evaluate(other, scenes)
    torch.save({"model": torch.nn.Linear(2, 2)}, other)
    with pytest.raises(InputError, match="other.pt"):
        yolo.fine_tune(other, scenes, settings, out=tmp_path / "run", device="cpu")
    torch.save({"model": SegmentationModel("yolov8n-seg.yaml", verbose=False)}, other)
    with pytest.raises(InputError, match="is a SegmentationModel with the head Segment; wanted: a detector"):
        yolo.evaluate(other, scenes)
    with pytest.raises(InputError, match="is a DetectionModel with the head Pose; wanted: a detector"):
        load_model("yolov8n-pose.yaml")
    other.write_bytes(b"no weights")
    with pytest.raises(InputError, match="holds no detector that can be loaded .* Wanted: weights as"):
        yolo.prune_yolo(other, tmp_path / "p.pt", keep=0.5)


def test_a_file_that_runs_code_is_refused(tmp_path):
    torch.save({"model": MakesFolder(tmp_path / "made")}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="holds no detector"):
        load_model(tmp_path / "bad.pt")
    assert not (tmp_path / "made").exists()


class MakesFolder:
    """When it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_that_are_missing_are_no_reason_to_download(no_network, scenes):
    before = list(no_network)
    with pytest.raises(InputError, match="there are no weights yolov8n.pt.*downloads none"):
        yolo.evaluate("yolov8n.pt", scenes)
    with pytest.raises(InputError, match="describes no detector"):
        load_model("yolov99n.yaml")
    assert no_network == before


def test_files_that_hold_no_detector_of_ultralytics_are_called_what_they_are(tmp_path):
    (tmp_path / "best.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"best.safetensors is no \.pt file; wanted"):
        load_model(tmp_path / "best.safetensors")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match="plain.pt holds no model; wanted.*not a state_dict"):
        load_model(tmp_path / "plain.pt")


def test_to_prune_overwrites_neither_the_model_nor_a_run(tmp_path, trained):
    model = shutil.copy(trained.best, tmp_path / "sparse.pt")
    for out in (model, trained.best):
        before = Path(out).read_bytes()
        with pytest.raises(InputError, match="which is what is to be pruned, or what a run has trained"):
            yolo.prune_yolo(model, out, keep=0.7, at_least=4, imgsz=64)
        assert Path(out).read_bytes() == before


@pytest.mark.usefixtures("no_training")
def test_a_teacher_of_other_classes_is_refused(tiny, trained, scenes, settings, tmp_path):
    teacher = load_model(trained.best)
    teacher.names = {**teacher.names, 5: "plus"}
    with pytest.raises(InputError, match="the teacher knows 6 classes .*plus.* and the data set has 6 .*cross"):
        yolo.distill(tiny, teacher, scenes, Distillation(), settings, out=tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="the teacher is yolov8n.yaml; wanted: weights"):
        yolo.distill_by_ultralytics(tiny, "yolov8n.yaml", scenes, settings, out=tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match="the teacher knows 80 classes"):
        yolo.distill(
            tiny, load_model(tiny), scenes, Distillation(), settings, out=tmp_path / "run", device="cpu"
        )  # fmt: skip


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("layer", [22, 99])
def test_layers_that_do_not_exist_are_refused(tiny, trained, scenes, settings, tmp_path, layer):
    with pytest.raises(InputError, match=f"the student has no layer {layer} to distil; wanted: 0 to 21"):
        yolo.distill(
            tiny, trained.best, scenes, Distillation(layers=[15, layer]), settings, out=tmp_path / "run", device="cpu"
        )


@pytest.mark.usefixtures("no_training")
def test_a_student_of_another_architecture_is_refused(trained, scenes, settings, tmp_path):
    with pytest.raises(InputError, match="layer 15 puts out .* networks of different architecture"):
        yolo.distill(
            "yolov3-tiny.yaml", trained.best, scenes, Distillation(layers=[15]), settings, out=tmp_path / "run",
            device="cpu",
        )  # fmt: skip


def test_the_default_layers_want_yolov8s_blocks():
    networks = {name: load_model(f"{name}n.yaml") for name in ("yolov8", "yolo11")}
    for pair, message in (
        (("yolov8", "yolo11"), "layer 6 is a C2f in the student and a C3k2 in the teacher"),
        (("yolo11", "yolo11"), "layer 12 is a Concat in the student and a Concat in the teacher"),
    ):
        with pytest.raises(InputError, match=message):
            detection.tapped_channels(*map(networks.get, pair), detection.LAYERS)
    assert detection.tapped_channels(networks["yolov8"], networks["yolo11"], [6]) == {6: (128, 128)}


def test_what_pruning_cannot_work_on_or_toward_is_refused(trained):
    with pytest.raises(InputError, match="head of yolo26n.yaml is one of two branches"):
        yolo.plan_yolo("yolo26n.yaml", keep=0.5)
    for gflops in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"gflops is {gflops}; wanted: above 0"):
            yolo.plan_yolo(trained.best, gflops=gflops)
    with pytest.raises(InputError, match=r"\(100 GFLOPs\); wanted: from .* GFLOPs\), the smallest .* GFLOPs\), the"):
        yolo.plan_yolo(trained.best, gflops=100, imgsz=64)


def test_data_without_images_is_refused(tiny, trained, scenes, settings, tmp_path):
    def refused(message, data):
        with pytest.raises(InputError, match=message):
            yolo.fine_tune(tiny, data, settings, out=tmp_path / "run", device="cpu")

    refused("there is no .*nowhere", tmp_path / "nowhere")
    copy = tmp_path / "scenes"
    shutil.copytree(scenes, copy)
    description = (copy / "data.yaml").read_text()
    (copy / "data.yaml").write_text(description.replace("val: images/val\n", ""))
    refused("'val:' key missing", copy)
    (copy / "data.yaml").write_text(description.replace("images/val", "images/none"))
    refused("images/none", copy)
    (copy / "data.yaml").write_text(description.replace("images/train", "images/none"))
    refused("images/none", copy)
    (copy / "data.yaml").write_text(description.replace("images/train", "labels/train"))
    refused("not one image", copy)
    (copy / "data.yaml").write_text(description)
    shutil.rmtree(copy / "labels" / "train")
    refused("not one of the 6 train images has labels", copy)
    (copy / "data.yaml").write_text("train: [")
    refused("describes no data set", copy)
    assert not (tmp_path / "run").exists()
    (copy / "data.yaml").write_text(description.replace("test: images/test\n", ""))
    with pytest.raises(InputError, match="names no images for 'test'"):
        yolo.evaluate(trained.best, copy, split="test")


def test_an_image_is_what_ultralytics_takes_for_one():
    assert set(IMG_FORMATS) == FORMATS


def test_a_split_may_be_a_list_of_images_in_a_folder_of_any_name(trained, scenes, tmp_path):
    folder = tmp_path / "my scenes"
    shutil.copytree(scenes, folder)
    description = (folder / "data.yaml").read_text()
    (folder / "data.yaml").write_text(description.replace("val: images/val", "val: val.txt"))
    lines = [f"./images/val/{path.name}" for path in sorted((folder / "images" / "val").iterdir())]
    for start in ("./", f"{folder}/"):
        (folder / "val.txt").write_text("\n".join(line.replace("./", start) for line in lines))
        listed = yolo.evaluate(trained.best, folder, imgsz=64, device="cpu")
        assert listed.equals(yolo.evaluate(trained.best, scenes, imgsz=64, device="cpu"))
    (folder / "val.txt").write_text("\n".join(line.removeprefix("./") for line in lines))
    with pytest.raises(InputError, match="not one of the 3 images that .*val.txt lists is there, such as images/val"):
        yolo.evaluate(trained.best, folder, imgsz=64, device="cpu")


def test_images_that_cannot_be_used_are_named_and_without_one_that_can_there_is_no_result(trained, scenes, tmp_path):
    folder = tmp_path / "scenes"
    shutil.copytree(scenes, folder, ignore=shutil.ignore_patterns("*.cache"))
    (folder / "labels" / "val" / "00000.txt").write_text("17 0.5 0.5 0.1 0.1")
    (folder / "images" / "val" / "00001.png").write_bytes(b"cut off")
    for _ in ("looked at", "remembered"):
        with pytest.warns(UserWarning, match="2 of the 3 images of .*val cannot be used") as said:
            yolo.evaluate(trained.best, folder, imgsz=64, device="cpu")
        first = next(str(one.message) for one in said if "cannot be used" in str(one.message)).splitlines()[1]
        assert first.startswith(f"  {folder}")
        assert "Label class 17 exceeds" in first
    (folder / "images" / "val" / "00002.png").write_bytes(b"cut off")
    with pytest.raises(InputError, match="(?s)3 of the 3 images of .* Label class 17 .*Correct these files"):
        yolo.evaluate(trained.best, folder, imgsz=64, device="cpu")
    (folder / "labels" / "train" / "00005.txt").write_text("17 0.5 0.5 0.1 0.1")
    shutil.copytree(scenes / "images" / "val", folder / "images" / "val", dirs_exist_ok=True)
    shutil.copytree(scenes / "labels" / "val", folder / "labels" / "val", dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="1 of the 6 images of .*train cannot be used"):
        yolo.fine_tune(trained.best, folder, YoloSettings(1, 3, 64), out=tmp_path / "run", device="cpu")


def test_labels_without_one_object_are_refused(trained, scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "scenes")
    for label in (tmp_path / "scenes" / "labels" / "val").iterdir():
        label.write_text("\n")
    with pytest.raises(InputError, match="not one of the 3 val images has labels"):
        yolo.evaluate(trained.best, tmp_path / "scenes", imgsz=64, device="cpu")


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 1}, "batch is 1"),
        ({"imgsz": 100}, "a multiple of 32"),
        ({"lr": 0.0}, "lr is 0"),
        ({"lr": float("inf")}, "lr is inf; wanted: above 0 and at most 1"),
        ({"workers": -1}, "workers is -1; wanted: 0 to 128"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**31}, "seed is 2147483648; wanted: 0 to 2147483647"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"nominal_batch": 0}, "nominal_batch is 0"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        YoloSettings(**wrong)


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "cwdd"}, "Did you mean 'cwd'"),
        ({"layers": []}, "at least one"),
        ({"layers": [15, 15]}, "each once"),
        ({"weight": -1.0}, "weight is -1"),
    ],
)
def test_impossible_distillations_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Distillation(**wrong)


def test_a_file_is_no_place_for_a_run(tiny, scenes, settings, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file, which is a file; wanted: a folder"):
        yolo.fine_tune(tiny, scenes, settings, out=tmp_path / "file", device="cpu")


def test_half_precision_wants_cuda(tiny, scenes, tmp_path):
    with pytest.raises(InputError, match="precision is 'fp16' on cpu"):
        yolo.fine_tune(tiny, scenes, YoloSettings(precision="fp16"), out=tmp_path / "run", device="cpu")


def test_the_licence_is_named_and_a_missing_extra_too(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InputError, match=f"not installed.*{re.escape(GET_YOLO)}"):
        runpy.run_path(yolo.__file__)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "8.3.253")
    with pytest.raises(InputError, match=f"8.3.253 is installed.*needs ultralytics 8.4.190; {re.escape(GET_YOLO)}"):
        runpy.run_path(yolo.__file__)
    monkeypatch.undo()
    runpy.run_path(yolo.__file__, run_name="kdlab.yolo")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "AGPL-3.0" in out
