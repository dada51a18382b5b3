"""The experiment of chapter 06 on a tiny budget: every method trains what was pruned, and nothing twice."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("ultralytics")

from kdlab import InputError, pruning, yolo
from kdlab.data.yolo_scenes import NAMES
from kdlab.detection import Distillation, YoloRun, YoloSettings
from kdlab.recipes import detection, few_boxes, zoo
from kdlab.recipes.detection import METHODS, UNTRAINED, DetectionRun
from kdlab.recipes.few_boxes import FewBoxes
from kdlab.training import save_model

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINED = [method for method in METHODS if method not in UNTRAINED]


@pytest.fixture(scope="module")
def data(scenes, a_step_for_each_batch):
    """The scenes, and the course's numbers made small."""
    small = {"WIDTH": 0.0625, "SIZE": 64, "EPOCHS": 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(detection, name, value)
        patch.setattr(detection, "SPARSE", YoloSettings(epochs=1, batch=3, imgsz=64, nominal_batch=3))
        yield scenes


@pytest.fixture(scope="module")
def dense(data):
    return detection.dense_detector(data, detection.SPARSE, device="cpu")[0]


@pytest.fixture(scope="module")
def pruned(data, dense):
    detector, none = run("pruned").run(data, dense, device="cpu")
    assert none.empty
    return detector


@pytest.fixture
def pruned_before(pruned, monkeypatch):
    """The cut takes longer than these trainings, and has been made."""
    monkeypatch.setattr(yolo, "prune_yolo", lambda dense, out, **_: yolo.save_model(out, pruned))


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(yolo.Trainer, "preprocess_batch", lambda *_: pytest.fail("a batch was trained on"))


def run(method):
    return DetectionRun(method, METHODS[method], seed=0, keep=0.7, epochs=0 if method in UNTRAINED else 1)


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


@pytest.mark.usefixtures("pruned_before")
@pytest.mark.parametrize("method", TRAINED)
def test_every_method_trains_the_pruned_detector(method, data, dense, pruned):
    before = weights(dense)
    student, history = run(method).run(data, dense, device="cpu")
    assert pruning.structure(student) == pruning.structure(pruned) != pruning.structure(dense)
    assert len(history) == 1
    assert not torch.equal(weights(student), weights(pruned))
    taught = {"CWD": "train/cwd_loss", "MGD": "train/mgd_loss", "ultralytics": "train/dis_loss"}
    assert [of for of in taught.values() if of in history] == [of for name, of in taught.items() if name == method]
    assert torch.equal(weights(dense), before)


@pytest.fixture
def given(pruned, dense, monkeypatch, tmp_path):
    """What each training is given; none is made: the best epoch is the dense detector and the last the pruned one."""
    seen, done = [], YoloRun(tmp_path / "best.pt", tmp_path / "last.pt", pd.DataFrame({"epoch": [1]}))
    yolo.save_model(done.best, dense)
    yolo.save_model(done.last, pruned)
    for name in ("sparse_train", "fine_tune", "distill", "distill_by_ultralytics"):
        monkeypatch.setattr(yolo, name, lambda *words, name=name, **how: seen.append((name, words, how)) or done)
    return seen


STEPS = {
    "from scratch": "fine_tune", "fine-tuned": "fine_tune", "CWD": "distill", "MGD": "distill",
    "ultralytics": "distill_by_ultralytics",
}  # fmt: skip


@pytest.mark.usefixtures("pruned_before")
@pytest.mark.parametrize("recipe", [DetectionRun, FewBoxes])
def test_each_step_has_the_weight_and_the_budget_of_the_run_and_ultralytics_own_rate(
    recipe, data, dense, pruned, given, monkeypatch
):
    monkeypatch.setattr(detection, "SPARSE", replace(detection.SPARSE, lr=2e-3))
    methods = METHODS if recipe is DetectionRun else few_boxes.METHODS
    for method in methods.keys() - UNTRAINED:
        more = {} if recipe is DetectionRun else {"boxes": 2, "unlabelled": False}
        detector, _ = recipe(method, 0.125, seed=7, epochs=3, **more).run(data, dense, device="cpu")
        ((name, words, how),) = given
        given.clear()
        assert name == STEPS[method]
        assert words[-1] == replace(detection.SPARSE, epochs=3, lr=None, seed=7)
        if name == "distill":
            assert words[-2] == Distillation(method.lower(), weight=0.125)
        assert how.get("weight") == (0.125 if method == "ultralytics" else None)
        assert torch.equal(weights(detector), weights(deepcopy(pruned).half().float()))  # of the last epoch


def test_the_dense_one_is_that_of_the_last_epoch_by_the_penalty_that_was_asked_for(data, pruned, given):
    detector, _ = detection.dense_detector(data, detection.SPARSE, strength=0.25, device="cpu")
    ((name, words, how),) = given
    assert (name, words[1:], how["strength"]) == ("sparse_train", (data, detection.SPARSE), 0.25)
    assert torch.equal(weights(detector), weights(deepcopy(pruned).half().float()))


@pytest.mark.parametrize("recipe", [DetectionRun, FewBoxes])
def test_as_many_channels_stay_as_the_run_says(recipe, data, dense, monkeypatch):
    def cut(model, out, **how):
        assert model is dense
        assert how == {"keep": 0.625, "imgsz": 64, "at_least": detection.AT_LEAST}
        raise KeyboardInterrupt

    monkeypatch.setattr(yolo, "prune_yolo", cut)
    with pytest.raises(KeyboardInterrupt):
        recipe("CWD", 1.0, seed=0, keep=0.625).run(data, dense, device="cpu")


@pytest.mark.usefixtures("pruned_before")
def test_what_is_kept_of_one_dense_detector_is_not_taken_for_anothers(data, dense, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(detection, "cached", lambda name, recipe: seen.append(recipe) or tmp_path / str(len(seen)))
    for one in (dense, dense, yolo.build_yolov8(0.0625, NAMES)):
        run("pruned").run(data, one, cache=True, device="cpu")
    first, again, other = seen
    assert first == again != other


@pytest.fixture
def few(monkeypatch):
    """The data sets and the images without labels that trainings were given, as they were read then."""
    seen, train = [], yolo._train

    def look(trainer, options, recipe, model, data, *rest, **more):
        described = yolo.read_data(data, "train", "val")
        seen.append((Path(described["train"]).read_text().split(), options.get("unlabelled")))
        return train(trainer, options, recipe, model, data, *rest, **more)

    monkeypatch.setattr(yolo, "_train", look)
    return seen


@pytest.mark.usefixtures("pruned_before")
@pytest.mark.parametrize("method", few_boxes.METHODS)
def test_few_scenes_with_boxes_come_again_and_again_and_the_teacher_speaks_of_all(method, data, dense, few, pruned):
    taught, folder = method != "fine-tuned", data / "images" / "train"
    one = FewBoxes(method, few_boxes.METHODS[method], seed=0, boxes=2, unlabelled=taught, epochs=1)
    before = weights(dense)
    student, history = one.run(data, dense, device="cpu")
    assert len(history) == 1
    assert pruning.structure(student) == pruning.structure(pruned)
    assert torch.equal(weights(dense), before)
    ((listed, unlabelled),) = few
    assert len(listed) == len(list(folder.iterdir())) == 6
    assert len(set(listed)) == 2
    assert unlabelled == (folder if taught else None)
    replace(one, seed=1).run(data, dense, device="cpu")
    assert set(few[1][0]) != set(listed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "CWDD"}, "unknown method 'CWDD'"),
        ({"weight": -1.0}, "weight is -1"),
        ({"boxes": 0}, "boxes is 0; wanted: from 1 to 500"),
        ({"boxes": 501}, "boxes is 501"),
        ({"method": "fine-tuned"}, "has no teacher"),
    ],
)
def test_impossible_runs_with_few_boxes(change, said):
    with pytest.raises(InputError, match=said):
        replace(FewBoxes("CWD", 1.0, seed=0), **change)


def test_the_dense_one_is_what_it_was_and_the_pruned_one_its_part(data, dense, pruned):
    same, none = run("dense").run(data, dense, device="cpu")
    assert none.empty
    assert torch.equal(weights(same), weights(dense))
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in dense.parameters())


@pytest.mark.usefixtures("pruned_before")
def test_a_random_start_is_drawn_by_the_seed(data, dense, monkeypatch):
    starts = []

    def begin(model, *_, **__):
        starts.append(model)
        raise RuntimeError("it begins")

    monkeypatch.setattr(yolo, "fine_tune", begin)
    for seed in (0, 0, 1):
        with pytest.raises(RuntimeError, match="it begins"):
            replace(run("from scratch"), seed=seed).run(data, dense, device="cpu")
    first, again, other = map(weights, starts)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("pruned_before")
def test_a_run_that_is_kept_is_not_made_again(data, dense, request):
    student, history = run("CWD").run(data, dense, cache=True, device="cpu")
    request.getfixturevalue("no_training")
    again, same = run("CWD").run(data, dense, cache=True, device="cpu")
    assert torch.equal(weights(student), weights(again))
    assert same.equals(history)
    detector, _ = detection.dense_detector(data, detection.SPARSE, device="cpu")
    assert torch.equal(weights(detector), weights(dense))


def test_it_is_measured_on_the_test_scenes(data, dense, monkeypatch):
    asked, compare = [], yolo.compare
    monkeypatch.setattr(yolo, "compare", lambda *words, **how: asked.append(how) or compare(*words, **how))
    measured = detection.measure(dense, data, device="cpu")
    assert asked == [{"split": "test", "imgsz": 64, "device": "cpu"}]
    assert list(measured) == list(detection.METRICS)
    assert 0 <= measured["map50_95"] <= measured["map50"] <= 1
    assert measured["parameters"] < sum(p.numel() for p in dense.parameters())  # BatchNorm is folded


@pytest.mark.usefixtures("pruned_before")
def test_what_comes_with_the_course_is_loaded_and_not_trained(data, dense, monkeypatch, request, tmp_path):
    request.getfixturevalue("no_training")  # the dense one is there
    cut, card = detection.course_detector("pruned", data, "cpu")
    monkeypatch.setattr(zoo, "ZOO", tmp_path)
    save_model(tmp_path / "detector_fine_tuned.safetensors", cut.half(), card)
    loaded, same = detection.course_detector("fine-tuned", data, "cpu")
    assert same == card
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded(image)[0], cut.float()(image)[0])
    assert loaded.names == cut.names
    with pytest.raises(InputError, match="unknown method 'CWDD'"):
        detection.course_detector("CWDD", data, "cpu")


@pytest.mark.usefixtures("pruned_before")
def test_a_file_that_holds_no_detector_is_refused(data, dense, tmp_path):
    _, card = detection.course_detector("pruned", data, "cpu")
    foreign = tmp_path / "foreign.safetensors"
    save_model(foreign, torch.nn.Linear(2, 2), card)
    with pytest.raises(InputError, match="holds no detector"):
        detection.load_detector(foreign)
    with pytest.raises(InputError, match="does not exist"):
        detection.load_detector(tmp_path / "nothing.safetensors")


def test_the_scenes_are_written_once(monkeypatch):
    monkeypatch.setattr(detection, "SAMPLES", {"train": 2, "val": 1, "test": 1})
    folder = detection.detection_scenes()
    assert len(list((folder / "images" / "train").iterdir())) == 2
    monkeypatch.setattr(detection, "write_yolo_scenes", lambda *_: pytest.fail("written again"))
    assert detection.detection_scenes() == folder


def test_pretrained_weights_are_taken_where_they_are_and_never_fetched(data, dense, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert detection.pretrained() is None
    yolo.save_model(Path("yolov8n.pt"), dense)
    assert detection.pretrained().is_file()
    start = detection.pretrained()
    detector, done = detection.dense_detector(data, detection.SPARSE, start=start, device="cpu")
    assert pruning.structure(detector) == pruning.structure(dense)
    assert len(done.history) == 1
