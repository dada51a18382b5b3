"""Detectors and data that do not fit as they are: other classes, grey images, coarser maps, options of ultralytics."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
import yaml
from PIL import Image
from states import same

pytest.importorskip("ultralytics")

from ultralytics import YOLO

from kdlab import InputError, yolo
from kdlab.detection import Distillation
from kdlab.yolo import DistillTrainer, Trainer, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = 1e-9  # a learning rate


@pytest.fixture
def copied(scenes, tmp_path):
    """The scenes once more, described otherwise."""

    def made(**changed):
        folder = shutil.copytree(scenes, tmp_path / "copy", ignore=shutil.ignore_patterns("*.cache"))
        described = yaml.safe_load((folder / "data.yaml").read_text())
        (folder / "data.yaml").write_text(yaml.safe_dump(described | changed, sort_keys=False))
        return folder

    return made


@pytest.fixture
def grey(copied):
    folder = copied(channels=1)
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    return folder


def last_layers(detector):
    return [branch[-1] for branch in detector.model[-1].cv3]


# --- other classes ---------------------------------------------------------------------------------------------------


def test_other_classes_get_a_new_last_layer_and_leave_the_rest(pruned):
    detector = load_model(pruned)
    kept = {name: value.clone() for name, value in detector.state_dict().items() if ".cv3." not in name}
    old = [layer.bias.clone() for layer in last_layers(detector)]
    yolo._adapt_classes(detector, {0: "cat", 1: "dog"}, by_name=True)
    assert same(kept, {name: detector.state_dict()[name] for name in kept})
    assert detector.yaml["nc"] == detector.model[-1].nc == 2
    for layer, bias in zip(last_layers(detector), old, strict=True):
        assert layer.bias.shape == (2,)
        assert not torch.isin(layer.bias, bias).any()


def test_new_classes_begin_where_ultralytics_begins_them_on_both_sides_of_yolov10():
    detector, fresh = load_model("yolov10n.yaml"), load_model("yolov10n.yaml", classes=2)
    yolo._adapt_classes(detector, {0: "cat", 1: "dog"}, by_name=True)
    for branches in ("cv3", "one2one_cv3"):
        begun, wanted = ([branch[-1].bias for branch in getattr(net.model[-1], branches)] for net in (detector, fresh))
        torch.testing.assert_close(begun, wanted)
    assert detector.eval()(torch.zeros(1, 3, 64, 64))[0].shape == fresh.eval()(torch.zeros(1, 3, 64, 64))[0].shape


@pytest.mark.parametrize(
    ("names", "by_name", "rows"),
    [
        (["disc", "cat", "Square "], True, [0, None, 1]),
        (["disc", "cat", "square"], False, [None, None, None]),
        (["square", "disc", "triangle", "star", "ring", "cross"], True, "same names"),
        (["disc", "a", "b", "c", "d", "e"], True, [0, None, None, None, None, None]),
        (["a", "b", "c", "d", "e", "f"], True, [0, 1, 2, 3, 4, 5]),
        (["0", "1", "2", "3", "4", "5"], True, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_class_that_the_detector_knows_by_name_keeps_its_row(pruned, names, by_name, rows):
    detector = load_model(pruned)
    known = list(detector.names.values())
    assert known[:2] == ["disc", "square"]
    assert len(known) == 6
    rows = [known.index(name) for name in names] if rows == "same names" else rows
    before = [(layer.weight.clone(), layer.bias.clone()) for layer in last_layers(detector)]
    yolo._adapt_classes(detector, dict(enumerate(names)), by_name=by_name)
    for layer, (weight, bias) in zip(last_layers(detector), before, strict=True):
        assert len(layer.weight) == len(names)
        for number, row in enumerate(rows):
            if row is None:
                assert not torch.isin(layer.bias[number], bias)
            else:
                assert torch.equal(layer.weight[number], weight[row])
                assert layer.bias[number] == bias[row]


def test_the_same_classes_in_another_order_are_trained_on_their_own_rows(trained, scenes, copied, settings, tmp_path):
    names = list(yaml.safe_load((scenes / "data.yaml").read_text())["names"].values())
    turned = copied(names=names[::-1])
    run = yolo.fine_tune(trained.best, turned, replace(settings, lr=STILL), out=tmp_path / "run", device="cpu")
    old, new = load_model(trained.best), load_model(run.last)
    assert list(new.names.values()) == names[::-1]
    for before, after in zip(last_layers(old), last_layers(new), strict=True):
        torch.testing.assert_close(after.bias, before.bias.flip(0), atol=1e-3, rtol=0)


def test_all_objects_as_one_class(pruned, scenes, tmp_path):
    YOLO(pruned).train(
        trainer=Trainer, single_cls=True, data=str(scenes / "data.yaml"), epochs=1, batch=3, imgsz=64, device="cpu",
        plots=False, save_dir=str(tmp_path / "run"), verbose=False,
    )  # fmt: skip
    assert load_model(tmp_path / "run/weights/last.pt").names == {0: "item"}


# --- grey images, and coarser maps -----------------------------------------------------------------------------------


def test_a_detector_of_grey_images_is_trained_measured_and_exported(tiny, grey, settings, tmp_path):
    run = yolo.fine_tune(tiny, grey, settings, out=tmp_path / "run", device="cpu")
    assert load_model(run.last).model[0].conv.in_channels == 1
    assert len(yolo.evaluate(run.last, grey, imgsz=64, device="cpu"))
    assert yolo.compare([run.last], grey, imgsz=64, device="cpu")["gflops"].item() > 0
    assert list(yolo.predict(run.last, [next(grey.rglob("*.png"))], imgsz=64, device="cpu").columns)
    assert yolo.export_onnx(run.last, tmp_path / "grey.onnx", imgsz=64).difference < yolo.ONNX_TOLERANCE


def test_a_detector_of_colour_is_refused_for_grey_images_before_any_work(trained, tiny, grey, settings, tmp_path):
    how = {"out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(InputError, match="the model takes images of 3 channels, and .*data.yaml says channels: 1"):
        yolo.fine_tune(trained.best, grey, settings, **how)
    with pytest.raises(InputError, match="the model takes images of 3 channels"):
        yolo.evaluate(trained.best, grey, imgsz=64, device="cpu")
    with pytest.raises(InputError, match="the teacher takes images of 3 channels"):
        yolo.distill(tiny, trained.best, grey, Distillation(), settings, **how)
    with pytest.raises(InputError, match="the model takes images of 3 channels"):
        YOLO(trained.best).train(
            trainer=Trainer,
            data=str(grey / "data.yaml"),
            epochs=1,
            imgsz=64,
            device="cpu",
            save_dir=str(tmp_path / "its"),
        )


def test_an_image_size_is_a_multiple_of_the_coarsest_maps_stride(scenes, tmp_path):
    coarse = load_model("yolov8n-p6.yaml", classes=6)
    for refused in (
        partial(yolo.evaluate, coarse, scenes), partial(yolo.predict, coarse, []),
        partial(yolo.export_onnx, coarse, tmp_path / "coarse.onnx"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="imgsz is 96; wanted: a multiple of 64"):
            refused(imgsz=96)


# --- what someone has who uses ultralytics ---------------------------------------------------------------------------


def test_a_yolo_object_stands_for_its_detector(trained):
    assert same(load_model(YOLO(trained.best)).state_dict(), load_model(trained.best).state_dict())


def test_the_packages_own_data_sets_are_known_by_name():
    with pytest.raises(InputError, match="coco8.yaml describes no data set that is here: .*images not found"):
        yolo.read_data("coco8.yaml", "train")
    with pytest.raises(InputError, match="there is no coco7.yaml"):
        yolo.read_data("coco7.yaml", "train")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trainer": Trainer, "pretrained": False}, "pretrained is False: .*pruned.pt would be built anew"),
        ({"compile": True}, "compile is on"),
        ({"unlabelled": "val"}, "are those that the student is judged by"),
    ],
)
def test_options_that_would_not_do_what_they_say(pruned, trained, scenes, options, said, tmp_path):
    options = options | {"save_dir": str(tmp_path / "run")}
    if "trainer" not in options:
        place = options.pop("unlabelled", None) and scenes / "images/val"
        options["trainer"] = partial(DistillTrainer, teacher=trained.best, unlabelled=place)
    with pytest.raises(InputError, match=said):
        YOLO(pruned).train(data=str(scenes / "data.yaml"), epochs=1, imgsz=64, device="cpu", plots=False, **options)
