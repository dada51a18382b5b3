"""Training through ultralytics' trainer: what is trained, saved, resumed and delivered."""

import shutil
import warnings
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from states import same
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

pytest.importorskip("ultralytics")

from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Compose, Mosaic
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import DEFAULT_CFG

from kdlab import InputError, detection, pruning, yolo
from kdlab.detection import Distillation, YoloSettings
from kdlab.yolo import DistillTrainer, SparseTrainer, Trainer, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

TWO = YoloSettings(epochs=2, batch=3, imgsz=64)


class Killed(BaseException):
    """As a signal would end the program."""


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that were used, as they were left."""
    seen = []
    progress = yolo._progress
    monkeypatch.setattr(yolo, "_progress", lambda trainer: seen.append(trainer) or progress(trainer))
    return seen


@pytest.fixture
def killed_while_saving(monkeypatch):
    """The second epoch's file is cut off half-way, and the program with it."""
    write_bytes, save_model = Path.write_bytes, BaseTrainer.save_model

    def cut_off(path, content):
        write_bytes(path, content[: len(content) // 2])
        raise Killed

    def save(trainer):
        with pytest.MonkeyPatch.context() as patch:
            if trainer.epoch == 1:
                patch.setattr(Path, "write_bytes", cut_off)
            return save_model(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseTrainer, "save_model", save)
        yield patch


def weights(path):
    return load_model(path).state_dict()


def names_of_classes(path):
    return torch.serialization.get_unsafe_globals_in_checkpoint(path)


# --- the network that is given ---------------------------------------------------------------------------------------


def test_a_pruned_detector_stays_pruned_when_it_is_trained_and_saved(pruned, scenes, settings, tmp_path):
    before = pruning.structure(load_model(pruned))
    run = yolo.fine_tune(pruned, scenes, settings, out=tmp_path / "run", device="cpu")
    for path in (run.best, run.last):
        assert pruning.structure(load_model(path)) == before
    assert not same(weights(run.last), weights(pruned))


def test_it_also_stays_pruned_for_someone_who_calls_ultralytics(pruned, scenes, tmp_path):
    before = pruning.structure(load_model(pruned))
    detector = YOLO(pruned)
    detector.train(
        trainer=Trainer, data=str(scenes / "data.yaml"), epochs=1, batch=3, imgsz=64, device="cpu", plots=False,
        save_dir=str(tmp_path / "run"), verbose=False,
    )  # fmt: skip
    assert pruning.structure(load_model(tmp_path / "run" / "weights" / "best.pt")) == before
    assert not detector.trainer.amp  # there is no half precision on a CPU


@pytest.mark.filterwarnings("ignore:the steps of this run")
@pytest.mark.parametrize("kind", ["distil", "sparse"])
def test_the_other_trainers_serve_them_too(kind, pruned, trained, scenes, tmp_path):
    trainer = partial(DistillTrainer, teacher=trained.best) if kind == "distil" else SparseTrainer
    YOLO(pruned).train(
        trainer=trainer, data=str(scenes / "data.yaml"), epochs=1, batch=3, imgsz=64, device="cpu", plots=False,
        save_dir=str(tmp_path / "run"), verbose=False,
    )  # fmt: skip
    assert pruning.structure(load_model(tmp_path / "run/weights/best.pt")) == pruning.structure(load_model(pruned))
    assert ("train/cwd_loss" in (tmp_path / "run/results.csv").read_text()) == (kind == "distil")


def test_a_batch_without_room_is_not_halved_in_silence(pruned, scenes, tmp_path, monkeypatch):
    def lacks_room(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "preprocess_batch", lacks_room)
    with pytest.raises(InputError, match="cpu is out of memory; wanted: a smaller batch"):
        yolo.fine_tune(pruned, scenes, TWO, out=tmp_path / "run", device="cpu")
    monkeypatch.undo()
    smaller = yolo.fine_tune(pruned, scenes, replace(TWO, batch=2), out=tmp_path / "run", device="cpu")
    assert len(smaller.history) == 2


def test_a_killed_run_goes_on_after_its_last_whole_epoch(pruned, scenes, killed_while_saving, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Killed):
        yolo.fine_tune(pruned, scenes, TWO, out=out, device="cpu")
    assert len(pd.read_csv(out / "results.csv")) == 2  # the second was recorded, and not saved
    killed_while_saving.undo()
    assert yolo.finished(out) is None
    with pytest.raises(InputError, match="holds an earlier run"):
        yolo.fine_tune(pruned, scenes, TWO, out=out, device="cpu")
    with pytest.raises(InputError, match="epochs was 2, now 3"):
        yolo.fine_tune(pruned, scenes, replace(TWO, epochs=3), out=out, resume=True, device="cpu")
    run = yolo.fine_tune(pruned, scenes, TWO, out=out, resume=True, device="cpu")
    assert run.history["epoch"].tolist() == [1, 2]
    assert pruning.structure(load_model(run.last)) == pruning.structure(load_model(pruned))
    assert not list(out.rglob("*.partial"))
    assert yolo.finished(out).last == run.last
    assert yolo.finished(out).history.equals(run.history)
    assert yolo.finished(tmp_path / "nothing") is None
    again = yolo.fine_tune(pruned, scenes, TWO, out=out, resume=True, device="cpu")
    assert again.history.equals(run.history)


def test_a_module_stays_as_it_is_so_the_same_call_goes_on(pruned, scenes, killed_while_saving, tmp_path):
    detector = load_model(pruned)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    call = partial(yolo.fine_tune, detector, scenes, TWO, out=tmp_path / "run", device="cpu")
    with pytest.raises(Killed):
        call()
    killed_while_saving.undo()
    assert same(before, detector.state_dict())
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    run = call(resume=True)
    assert run.history["epoch"].tolist() == [1, 2]
    assert not same(weights(run.last), before)
    assert same(before, detector.state_dict())


def test_a_run_that_another_process_ended_while_this_one_waited_is_found_done(
    pruned, scenes, settings, tmp_path, monkeypatch, trainers
):
    ours = partial(yolo.fine_tune, pruned, scenes, settings, out=tmp_path / "run", resume=True, device="cpu")
    alone_in = yolo.alone_in

    @contextmanager
    def after_the_other(out):
        monkeypatch.setattr(yolo, "alone_in", alone_in)
        ours()
        with alone_in(out):
            yield

    monkeypatch.setattr(yolo, "alone_in", after_the_other)
    assert ours().history["epoch"].tolist() == [1]
    assert len(trainers) == 1


def test_only_the_run_that_is_asked_for_is_gone_on_with(pruned, trained, scenes, settings, tmp_path):
    out, detector = tmp_path / "run", load_model(pruned)
    yolo.sparse_train(detector, scenes, settings, out=out, strength=0.01, device="cpu")
    shutil.copytree(scenes, tmp_path / "other")
    moved = shutil.copytree(scenes, tmp_path / "elsewhere" / scenes.name)
    assert "path" not in (moved / "data.yaml").read_text()  # so that the copy's images are its own

    def refused(message, step, *words, model=pruned, data=scenes, **options):
        with pytest.raises(InputError, match=message):
            step(model, *words, data, *options.pop("more", ()), settings, out=out, resume=True, device="cpu", **options)

    refused("strength was 0.01, now 0.1", yolo.sparse_train, strength=0.1)
    refused("model was '.*', now '", yolo.sparse_train, model=trained.best)
    again = yolo.sparse_train(detector, scenes, settings, out=out, strength=0.01, resume=True, device="cpu")
    assert again.history["epoch"].tolist() == [1]
    yolo.sparse_train(
        detector, scenes, replace(settings, workers=2), out=out, strength=0.01, resume=True, device="cpu"
    )  # fmt: skip
    refused("data was 'scenes', now 'other'", yolo.sparse_train, data=tmp_path / "other")
    again = yolo.sparse_train(detector, moved, settings, out=out, strength=0.01, resume=True, device="cpu")
    assert again.history["epoch"].tolist() == [1]
    label, image = (next((moved / kind / "train").iterdir()) for kind in ("labels", "images"))
    label.write_text("0 0.5 0.5 0.25 0.25")
    refused("train was '6 images, .*', now '6 images, ", yolo.sparse_train, data=moved)
    image.unlink()
    refused("train was '6 images, .*', now '5 images, ", yolo.sparse_train, data=moved)
    refused("step was 'sparse-train', now 'fine-tune'; strength was 0.01, now None", yolo.fine_tune)
    refused("step was 'sparse-train', now 'distill'", yolo.distill, trained.best, more=(Distillation(),))
    assert (out / "recipe.json").exists()
    (out / "recipe.json").unlink()
    refused("without recipe.json", yolo.sparse_train)


@pytest.mark.parametrize(("nominal_batch", "steps"), [(3, 2), (6, 1)])
def test_the_nominal_batch_says_how_many_images_make_a_step(tiny, scenes, settings, nominal_batch, steps, tmp_path):
    seen = []
    hook = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    try:
        chosen = replace(settings, nominal_batch=nominal_batch)
        yolo.fine_tune(tiny, scenes, chosen, out=tmp_path / "run", device="cpu")
    finally:
        hook.remove()
    assert len(seen) == steps


def test_a_rate_of_ones_own_is_adamws_and_biases_warm_up_like_the_rest(tiny, scenes, settings, trainers, tmp_path):
    yolo.fine_tune(tiny, scenes, replace(settings, lr=5e-4), out=tmp_path / "run", device="cpu")
    (trainer,) = trainers
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {5e-4}
    assert trainer.args.warmup_bias_lr == 0


@pytest.fixture
def before_training(monkeypatch, trainers):
    """The trainer of a call, as it is when the training begins, which it does not."""

    def begin(call, **options):
        monkeypatch.setattr(Trainer, "train", lambda trainer: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            call(device="cpu", **options)
        return trainers[-1]

    return begin


def test_a_seed_is_that_of_the_start_and_of_the_training(tiny, scenes, before_training, tmp_path):
    begun = [
        before_training(partial(yolo.fine_tune, tiny, scenes, replace(TWO, seed=seed)), out=tmp_path / name)
        for name, seed in (("one", 3), ("again", 3), ("other", 4))
    ]
    assert [trainer.args.seed for trainer in begun] == [3, 3, 4]
    one, again, other = (trainer.model.state_dict() for trainer in begun)
    assert same(one, again)
    assert not same(one, other)


def test_no_run_ends_before_its_last_epoch(tiny, scenes, before_training, tmp_path):
    trainer = before_training(partial(yolo.fine_tune, tiny, scenes, TWO), out=tmp_path / "run")
    assert (trainer.args.epochs, trainer.args.patience) == (2, 0)  # which is endless


# --- sparse training -------------------------------------------------------------------------------------------------


def test_the_penalty_comes_after_the_clip_and_before_the_step_and_falls_by_epoch(tiny, scenes, monkeypatch, tmp_path):
    events = []
    clip, add = torch.nn.utils.clip_grad_norm_, pruning.add_gamma_l1
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *args, **options: events.append("clip") or clip(*args, **options)
    )
    monkeypatch.setattr(pruning, "add_gamma_l1", lambda model, weight: events.append(weight) or add(model, weight))
    hook = register_optimizer_step_post_hook(lambda *_: events.append("step"))
    try:
        with pytest.warns(UserWarning, match="the steps of this run move a gamma by"):
            yolo.sparse_train(tiny, scenes, TWO, out=tmp_path / "run", strength=0.02, device="cpu")
    finally:
        hook.remove()
    steps = [tuple(events[place : place + 3]) for place in range(0, len(events), 3)]
    assert {step[0] for step in steps} == {"clip"}
    assert {step[2] for step in steps} == {"step"}
    assert [step[1] for step in steps] == sorted((step[1] for step in steps), reverse=True)
    assert {step[1] for step in steps} == {0.02, 0.02 * (1 - 0.9 * 1 / 2)}


def test_the_penalty_shrinks_gammas(tiny, scenes, settings, trained, tmp_path):
    run = yolo.sparse_train(tiny, scenes, settings, out=tmp_path / "run", strength=1e3, device="cpu")

    def mean(path):
        return torch.cat(list(pruning.gammas(load_model(path)).values())).mean()

    assert mean(run.last) < mean(trained.last)


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        # from rate 1 down to 0.01 over ten epochs of two steps
        (torch.optim.AdamW([torch.zeros(1)]), 2 * 10 * 0.5545),
        # times a strength that falls from 0.01 to 0.0019, and ten times by momentum
        (torch.optim.SGD([torch.zeros(1)], momentum=0.9), 2 * 10 * 0.0403435),
    ],
)
def test_it_warns_where_the_steps_do_not_lead_to_zero(tiny, optimizer, rates, monkeypatch):
    trainer = object.__new__(SparseTrainer)
    vars(trainer).update(
        model=load_model(tiny), strength=0.01, epochs=10, start_epoch=0, train_loader=range(4), accumulate=2,
        args=SimpleNamespace(nbs=6), optimizer=optimizer, lf=lambda epoch: 1 - 0.99 * epoch / 10,
    )  # fmt: skip
    (group,) = optimizer.param_groups
    group |= {"param_group": "bn", "initial_lr": 0.9 / rates}
    with pytest.warns(UserWarning, match=r"move a gamma by about 0.9, .* are at 1 or more.* nominal batch \(now 6\)"):
        trainer._warn_of_short_way()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group["initial_lr"] = 1.1 / rates
        trainer._warn_of_short_way()
        group["initial_lr"], trainer.strength = 0.9 / rates, 0
        trainer._warn_of_short_way()


# --- distillation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(wide, scenes, settings, tmp_path_factory):
    """Of other channels than the student."""
    return yolo.fine_tune(wide, scenes, settings, out=tmp_path_factory.mktemp("wide") / "run", device="cpu").best


@pytest.mark.parametrize("method", ["cwd", "mgd"])
def test_a_pruned_student_is_distilled_and_delivered_alone(method, pruned, teacher, scenes, trainers, tmp_path):
    known = load_model(teacher)
    before = {name: value.clone() for name, value in known.state_dict().items()}
    calls = {"first": 0, "head": 0}
    for name, layer in (("first", 0), ("head", 22)):
        known.model[layer].register_forward_pre_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})
        )  # fmt: skip
    known = known.requires_grad_(True)
    known.model[1].train()
    training = [module.training for module in known.modules()]
    hooks = sum(len(module._forward_pre_hooks) for module in known.modules())
    run = yolo.distill(pruned, known, scenes, Distillation(method), TWO, out=tmp_path / "run", device="cpu")

    column = run.history[f"train/{method}_loss"]
    assert (column > 0).all()
    assert not [name for name in run.history if name.startswith("val/") and method in name]
    (trainer,) = trainers
    assert f"{method}_loss" in trainer.progress_string()

    assert calls == {"first": 2 * 2 + 1, "head": 2}  # the look at the channels, and the first batch, go to the end
    assert [module.training for module in known.modules()] == training
    assert all(parameter.requires_grad for parameter in known.parameters())
    assert same(before, known.state_dict())
    used = trainer.teacher
    assert not any(module.training for module in used.modules())
    assert not any(parameter.requires_grad for parameter in used.parameters())
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(used(image)[0], deepcopy(known).eval()(image)[0], rtol=1e-4, atol=1e-3)
    assert not [module for module in used.modules() if isinstance(module, nn.BatchNorm2d)]
    assert used.model[1].conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert [group.get("fused") for group in trainer.optimizer.param_groups][3:] == [True]

    for path in (run.best, run.last):
        assert pruning.structure(load_model(path)) == pruning.structure(load_model(pruned))
        assert not [name for name in names_of_classes(path) if name.startswith("kdlab")]
    assert weights(run.last).keys() == weights(pruned).keys()
    assert trainer.ema.ema.state_dict().keys() == weights(pruned).keys()

    assert trainer.model is trainer.distiller.student
    modules = [*used.modules(), *trainer.distiller.modules()]
    assert not any(module._forward_hooks for module in modules)
    assert sum(len(module._forward_pre_hooks) for module in modules) == hooks


@pytest.fixture(params=["folder", "list"])
def photos(request, scenes, tmp_path):
    """Five images without labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for image in sorted((scenes / "images" / "train").iterdir())[:5]:
        shutil.copy(image, folder)
    (folder / image.with_suffix(".txt").name).write_text("no label")  # which is not looked at
    if request.param == "folder":
        return folder
    (tmp_path / "photos.txt").write_text("".join(f"./photos/{image.name}\n" for image in folder.iterdir()))
    return tmp_path / "photos.txt"


def mosaics(transforms):
    """How often four images are made one."""
    for transform in transforms.transforms:
        if isinstance(transform, Compose):
            yield from mosaics(transform)
        elif isinstance(transform, Mosaic):
            yield transform.p


def test_images_without_labels_join_each_batch_and_mosaics_end_for_them_too(
    pruned, teacher, scenes, photos, trainers, monkeypatch, tmp_path
):
    seen, forward = [], detection.DetectionDistiller.forward
    monkeypatch.setattr(
        detection.DetectionDistiller, "forward",
        lambda self, batch: seen.append((batch["labelled"], len(batch["img"]))) or forward(self, batch),
    )  # fmt: skip
    monkeypatch.setattr(DEFAULT_CFG, "close_mosaic", 1)
    reset = []
    monkeypatch.setattr(InfiniteDataLoader, "reset", lambda loader: reset.append(loader))
    how = {"out": tmp_path / "run", "unlabelled": photos, "device": "cpu"}
    run = yolo.distill(pruned, teacher, scenes, Distillation(), TWO, **how)
    assert seen[:2] == [(3, 6), (3, 5)]  # of five images the second batch has two
    assert len(seen) == 4
    assert run.history["epoch"].tolist() == [1, 2]
    (trainer,) = trainers
    for loader in (trainer.train_loader, trainer.more):
        assert list(mosaics(loader.dataset.transforms)) == [0]
    assert reset.count(trainer.more) == 1  # so that its workers know
    assert {file.suffix for file in tmp_path.rglob("photos*")} == {photos.suffix, ""}  # no list of labels is kept there
    with pytest.raises(InputError, match="unlabelled was 'photos.*', now None"):
        yolo.distill(pruned, teacher, scenes, Distillation(), TWO, **how | {"unlabelled": None, "resume": True})


def test_images_that_the_student_is_judged_by_are_not_for_the_teacher(pruned, teacher, scenes, tmp_path):
    how = {"out": tmp_path / "run", "device": "cpu"}
    for folder in ("", "val", "test"):
        with pytest.raises(
            InputError, match="are those that the student is judged by, such as .*Name a folder without"
        ):
            yolo.distill(
                pruned, teacher, scenes, Distillation(), TWO, unlabelled=scenes / "images" / folder, **how
            )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_labelled_images_may_be_among_those_without_and_keep_their_labels(
    pruned, teacher, scenes, trainers, tmp_path
):
    how = {"out": tmp_path / "run", "unlabelled": scenes / "images" / "train", "device": "cpu"}
    yolo.distill(pruned, teacher, scenes, Distillation(), replace(TWO, epochs=1), **how)
    (trainer,) = trainers
    boxes = [sum(len(one["cls"]) for one in loader.dataset.labels) for loader in (trainer.train_loader, trainer.more)]
    assert boxes[0] > boxes[1] == 0


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere", "nowhere, which is not there"), ("empty", "not one image in .*empty")]
)
def test_images_without_labels_that_are_not_there(pruned, teacher, scenes, name, said, tmp_path):
    (tmp_path / "empty").mkdir()
    how = {"out": tmp_path / "run", "unlabelled": tmp_path / name, "device": "cpu"}
    with pytest.raises(InputError, match=said):
        yolo.distill(pruned, teacher, scenes, Distillation(), TWO, **how)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("shapes_unchecked")  # the checks draw random numbers of their own
def test_a_weight_of_zero_is_a_plain_run_to_the_bit(tiny, teacher, scenes, settings, tmp_path):
    plain = yolo.fine_tune(tiny, scenes, settings, out=tmp_path / "plain", device="cpu")
    nothing = Distillation("mgd", weight=0.0)
    run = yolo.distill(tiny, teacher, scenes, nothing, settings, out=tmp_path / "run", device="cpu")
    assert same(weights(run.last), weights(plain.last))
    columns = ["train/box_loss", "train/cls_loss", "train/dfl_loss", "val/box_loss"]
    assert run.history[columns].equals(plain.history[columns])
    assert run.history["train/mgd_loss"].tolist() == [0]
    weighted = yolo.distill(tiny, teacher, scenes, Distillation(), settings, out=tmp_path / "weighted", device="cpu")
    assert not same(weights(weighted.last), weights(plain.last))


def test_a_killed_distillation_goes_on_with_the_connectors_it_had(
    pruned, teacher, scenes, killed_while_saving, trainers, tmp_path
):
    out, mgd = tmp_path / "run", Distillation("mgd", layers=[15, 18])
    with pytest.raises(Killed):
        yolo.distill(pruned, teacher, scenes, mgd, TWO, out=out, device="cpu")
    killed_while_saving.undo()
    saved = yolo._load_checkpoint(out / "weights" / "last.pt")["optimizer"]["learnt"]
    assert saved
    with pytest.raises(InputError, match=r"layers was \[15, 18\], now \[6, 8"):
        yolo.distill(pruned, teacher, scenes, Distillation("mgd"), TWO, out=out, resume=True, device="cpu")
    with pytest.raises(InputError, match="teacher was '.*', now '"):
        yolo.distill(pruned, pruned, scenes, mgd, TWO, out=out, resume=True, device="cpu")
    foreign = SimpleNamespace(distillation=Distillation("mgd"), save_dir=out)
    with pytest.raises(InputError, match="other settings of the distillation"):
        DistillTrainer._load_checkpoint_state(foreign, yolo._load_checkpoint(out / "weights" / "last.pt"))

    restored, resume_training = [], DistillTrainer.resume_training

    def resume(trainer, checkpoint):
        first = [parameter.clone() for parameter in trainer.distiller.learnt]
        resume_training(trainer, checkpoint)
        restored.extend(zip(first, map(torch.clone, trainer.distiller.learnt), strict=True))

    killed_while_saving.setattr(DistillTrainer, "resume_training", resume)
    run = yolo.distill(pruned, teacher, scenes, mgd, TWO, out=out, resume=True, device="cpu")
    assert run.history["epoch"].tolist() == [1, 2]
    assert not any(torch.equal(first, then) for first, then in restored)  # they had been trained
    assert all(torch.equal(one, then) for one, (_, then) in zip(saved, restored, strict=True))
    assert pruning.structure(load_model(run.last)) == pruning.structure(load_model(pruned))
    end = [parameter.detach() for parameter in trainers[-1].distiller.learnt]
    assert not any(torch.equal(then, last) for (_, then), last in zip(restored, end, strict=True))


def test_a_pruned_student_is_distilled_by_ultralytics_too(pruned, teacher, scenes, tmp_path):
    run = yolo.distill_by_ultralytics(pruned, teacher, scenes, TWO, out=tmp_path / "run", device="cpu")
    assert (run.history["train/dis_loss"] > 0).all()
    for path in (run.best, run.last):
        assert pruning.structure(load_model(path)) == pruning.structure(load_model(pruned))
        assert not [name for name in names_of_classes(path) if "Distillation" in name]
    assert not same(weights(run.last), weights(pruned))


def test_a_killed_distillation_by_ultralytics_goes_on(pruned, teacher, scenes, killed_while_saving, tmp_path):
    words, out = (pruned, teacher, scenes, TWO), tmp_path / "run"
    with pytest.raises(Killed):
        yolo.distill_by_ultralytics(*words, out=out, device="cpu")
    killed_while_saving.undo()
    with pytest.raises(InputError, match="weight was 6.0, now 2.0"):
        yolo.distill_by_ultralytics(*words, out=out, weight=2.0, resume=True, device="cpu")
    run = yolo.distill_by_ultralytics(*words, out=out, resume=True, device="cpu")
    assert run.history["epoch"].tolist() == [1, 2]
    assert pruning.structure(load_model(run.last)) == pruning.structure(load_model(pruned))


def test_the_weight_falls_once_over_the_whole_run(tiny, trained, scenes, monkeypatch, tmp_path):
    told, set_epoch = [], detection.DetectionDistiller.set_epoch
    monkeypatch.setattr(
        detection.DetectionDistiller, "set_epoch", lambda self, *now: told.append(now) or set_epoch(self, *now)
    )
    plain = Distillation(layers=[15])
    yolo.distill(tiny, trained.best, scenes, plain, TWO, out=tmp_path / "run", device="cpu")
    assert told == [(0.0, 2), (0.5, 2), (1.0, 2), (1.5, 2)]
    assert [plain.schedule(epoch, 2) for epoch in (0, 1, 2)] == pytest.approx([1, 0.55, 0.1])


# --- the loss --------------------------------------------------------------------------------------------------------


def a_batch(images, targets):
    return {
        "img": images,
        "batch_idx": torch.arange(len(targets)).float(),
        "cls": torch.zeros(len(targets), 1),
        "bboxes": targets,
    }


@pytest.fixture
def distiller(trained, teacher):
    """From a batch to its loss, with connectors, before any step."""

    def build(method):
        student, known = load_model(trained.best).requires_grad_(True), load_model(teacher)
        student.args = YOLO_ARGUMENTS
        channels = detection.tapped_channels(student, known, detection.LAYERS)
        built = detection.DetectionDistiller(student, known, Distillation(method), channels, torch.device("cpu"))
        built.set_epoch(0, 1)
        return built

    return build


YOLO_ARGUMENTS = get_cfg()
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.3, 0.6, 0.3, 0.5]])


def test_the_total_is_the_batch_size_times_the_reported_losses_so_the_weight_means_the_same_for_every_batch(distiller):
    built = distiller("cwd")
    once, parts = built(a_batch(IMAGES, BOXES))
    assert set(parts) == {"box_loss", "cls_loss", "dfl_loss", "cwd_loss"}
    torch.testing.assert_close(once, 2 * sum(parts.values()), rtol=1e-4, atol=0)
    twice, same_parts = built(a_batch(IMAGES.repeat(2, 1, 1, 1), BOXES.repeat(2, 1)))
    torch.testing.assert_close(twice, 4 * sum(same_parts.values()), rtol=1e-4, atol=0)
    torch.testing.assert_close(same_parts["cwd_loss"], parts["cwd_loss"], rtol=1e-3, atol=0)


def test_only_the_teacher_speaks_of_images_without_labels(distiller):
    built = distiller("cwd")
    total, parts = built(a_batch(IMAGES, BOXES))
    twice, same_parts = built(a_batch(IMAGES.repeat(2, 1, 1, 1), BOXES) | {"labelled": 2})
    for name in parts:  # the cwd_loss as an image's mean
        torch.testing.assert_close(same_parts[name], parts[name], rtol=1e-3, atol=0)
    torch.testing.assert_close(twice - total, 2 * parts["cwd_loss"], rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", ["cwd", "mgd"])
def test_it_works_under_autocast(distiller, method):
    built = distiller(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = built(a_batch(IMAGES, BOXES))
    total.backward()
    assert parts[f"{method}_loss"].dtype == torch.float32
    assert total.isfinite()
    assert built.learnt
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in built.learnt)
    assert built.student.model[0].conv.weight.grad.any()


@pytest.mark.parametrize("method", ["cwd", "mgd"])
def test_all_that_is_neither_the_students_nor_the_teachers_is_learnt(distiller, method):
    built = distiller(method)
    own = {id(parameter) for parameter in built.student.parameters()}
    others = {name for name, parameter in built.named_parameters() if id(parameter) not in own}
    assert {name.rpartition(".")[2] for name in others} == {"weight", "bias"}
    assert len(built.learnt) == len(others)


def test_temperature_and_mask_ratio_are_those_of_the_loss():
    assert Distillation("cwd", temperature=3.0).loss(8, 8).temperature == 3
    assert Distillation("mgd", mask_ratio=0.2).loss(8, 8).mask_ratio == 0.2


def test_connectors_are_where_channels_differ(trained, teacher):
    student, known = load_model(trained.best), load_model(teacher)
    other = detection.tapped_channels(student, known, [21])[21]
    assert other[0] != other[1]
    assert Distillation().connector(8, 8) is None
    assert Distillation().connector(*other)(torch.zeros(1, other[0], 2, 2)).shape[1] == other[1]


def test_a_strength_of_zero_is_a_plain_run_to_the_bit(tiny, scenes, settings, trained, tmp_path):
    run = yolo.sparse_train(tiny, scenes, settings, out=tmp_path / "run", strength=0.0, device="cpu")
    assert same(weights(run.last), weights(trained.last))
