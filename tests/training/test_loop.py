"""The training loop: what it records, when it ends, that it resumes to the same bits, and what it refuses."""

import random
import re
import shutil
from collections import UserDict, namedtuple
from functools import partial
from io import StringIO
from itertools import cycle, islice
from pathlib import Path
from threading import Event, Thread, Timer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from layout import is_channels_last
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from kdlab import InputError
from kdlab.distill import Distiller, From, MutualDistiller, Term
from kdlab.errors import NonFiniteLossError
from kdlab.files import save_tensors
from kdlab.losses import HintLoss, KDLoss
from kdlab.models import StudentCNN
from kdlab.progress import progress
from kdlab.training import ModelCard, Supervised, fit, load_model
from kdlab.training.device import to_device
from kdlab.training.image_quality import luma

IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 3
STEPS = 5  # of four images: an epoch
COLUMNS = ["epoch", "lr", "task", "total", "val_accuracy", "val_loss", "seconds"]


pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def judge(student):
    logits = student.eval()(IMAGES[:9])
    accuracy = (logits.argmax(dim=1) == LABELS[:9]).float().mean().item()
    return {"accuracy": accuracy, "loss": F.cross_entropy(logits, LABELS[:9]).item()}


def scripted(**metrics):
    """An evaluation that reads its metrics from lists, a value an epoch."""
    rows = zip(*metrics.values(), strict=True)
    return lambda student: dict(zip(metrics, next(rows), strict=True))


def never(*_):
    raise AssertionError("this must not run")


def card(**recipe):
    architecture = StudentCNN(3, (4, 4, 4, 4)).architecture
    return ModelCard(architecture, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, size=8, recipe=recipe)


def one_cycle(optimizer, epochs=4):
    return lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * STEPS)


def build(
    data=None, *, objective=Supervised, optimizer=torch.optim.Adam, scheduler=one_cycle, generator=None, sampler=None,
    batch_sampler=None,
):  # fmt: skip
    """Everything that a training moves: the same at every call."""
    torch.manual_seed(7)
    student = StudentCNN(3, (4, 4, 4, 4), drop_rate=0.3)
    whole = objective(student, nn.CrossEntropyLoss())
    steps = optimizer(whole.parameters(), lr=1e-2)
    data = data or TensorDataset(IMAGES, LABELS)
    drawn = {"batch_size": 4, "shuffle": sampler is None, "sampler": sampler, "generator": generator}
    loader = DataLoader(data, **({"batch_sampler": batch_sampler} if batch_sampler else drawn))
    return SimpleNamespace(objective=whole, loader=loader, optimizer=steps, scheduler=scheduler and scheduler(steps))


def train(run=None, *, epochs=4, evaluate=judge, **options):
    run = run or build()
    done = fit(
        run.objective, run.loader, epochs=epochs, optimizer=run.optimizer, scheduler=run.scheduler, evaluate=evaluate,
        **options,
    )  # fmt: skip
    return SimpleNamespace(**vars(run), student=run.objective.student, done=done)


def bits(run):
    """All numbers that a training leaves, but not how long it took."""
    state = run.optimizer.state_dict()
    return {
        "student": run.student.state_dict(),
        "optimizer": {index: dict(entries) for index, entries in state["state"].items()},
        "groups": [{name: list(v) if name == "betas" else v for name, v in g.items()} for g in state["param_groups"]],
        "scheduler": run.scheduler and run.scheduler.state_dict(),
        "history": run.done.history.drop(columns="seconds").to_dict("records"),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --- what it records -------------------------------------------------------------------------------------------------


def test_a_row_an_epoch_with_losses_metrics_rate_and_time():
    history = train(epochs=3).done.history
    assert list(history.columns) == COLUMNS
    assert history["epoch"].tolist() == [1, 2, 3]
    assert (history["seconds"] > 0).all()
    assert history["task"].tolist() == history["total"].tolist()


@pytest.mark.parametrize(("pieces", "means"), [(1, [3.0, 8.0]), (2, [5.5, 15.5])])
def test_the_losses_are_means_over_the_steps_and_their_pieces(pieces, means, monkeypatch):
    monkeypatch.setattr("kdlab.training.epoch.LOOK_EVERY", 2)

    class Counting(Supervised):
        steps = 0

        def forward(self, images, labels):
            self.steps += 1
            return {"counted": torch.tensor(float(self.steps)), **super().forward(images, labels)}

    history = train(build(objective=Counting), epochs=2, accumulate=pieces).done.history
    assert history["counted"].tolist() == means  # of 1 to 5, and of 6 to 10; of twice as many


def test_the_scheduler_steps_with_the_optimiser():
    run = train(epochs=3)
    reference = build()
    rates = []
    for _ in range(3 * STEPS):
        rates.append(reference.scheduler.get_last_lr()[0])
        reference.optimizer.step()
        reference.scheduler.step()
    assert run.done.history["lr"].tolist() == rates[::STEPS]  # each epoch's first
    assert run.scheduler.get_last_lr() == reference.scheduler.get_last_lr()


class Watched(Supervised):
    """Notes for each step whether a shape is checked, and fails at the step that it is told."""

    fails_at = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.checked = []

    def forward(self, images, labels):
        self.checked.append(shapes_are_checked())
        if len(self.checked) == self.fails_at:
            raise OSError("no more")
        return super().forward(images, labels)


def shapes_are_checked():
    try:
        luma(torch.rand(2, 3, 8))  # no batch: the weights of the channels meet the rows
    except TypeError:
        return True
    except RuntimeError:
        return False


def test_shapes_are_checked_in_the_first_step_of_each_epoch_and_outside():
    run = train(build(objective=Watched), epochs=2)
    assert run.objective.checked == 2 * [True, *[False] * (STEPS - 1)]
    assert shapes_are_checked()


def test_shapes_are_checked_again_after_an_error():
    run = build(objective=Watched)
    run.objective.fails_at = 2
    with pytest.raises(OSError, match="no more"):
        train(run)
    assert shapes_are_checked()


class ToldTheEpoch(Supervised):
    """Notes what a schedule would be told."""

    def set_epoch(self, epoch, epochs):
        self.told = [*getattr(self, "told", []), (epoch, epochs)]


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_schedule_is_told_how_far_the_epoch_has_got_at_each_step(pieces):
    run = train(build(objective=ToldTheEpoch), epochs=2, accumulate=pieces)
    steps = [(epoch + step / STEPS, 2) for epoch in range(2) for step in range(STEPS)]
    assert run.objective.told == [step for step in steps for _ in range(pieces)]


def test_a_step_at_which_every_weight_is_0_moves_nothing():
    run = build(objective=later)
    before = [p.clone() for p in run.objective.student.parameters()]
    run = train(run, epochs=2)
    assert run.done.history["total"][0] == 0 < run.done.history["total"][1]
    assert not all(map(torch.equal, before, run.student.parameters()))


def later(student, task):
    """A hint that begins with the second epoch, and nothing before."""
    term = Term("hint", HintLoss(), "classifier", "classifier", From(1.0, 1))
    return Distiller(student, StudentCNN(3, (4, 4, 4, 4)), [term], task, task_weight=0.0)


def test_it_is_the_step_written_by_hand():
    run = train(build(scheduler=None), epochs=1, seed=3)
    hand = build(scheduler=None)
    torch.manual_seed(3)
    hand.objective.train()
    for images, labels in hand.loader:
        hand.optimizer.zero_grad()
        F.cross_entropy(hand.objective.student(images), labels).backward()
        hand.optimizer.step()
    assert same(run.student.state_dict(), hand.objective.student.state_dict())


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_a_gradient_above_the_norm_is_scaled_down_to_it_and_no_other(max_norm):
    """That of all that learns, a loss's own parameters among it."""

    def learnable(student, _):
        return Supervised(student, Learnable())

    settings = {"scheduler": None, "objective": learnable, "optimizer": torch.optim.SGD}
    run = train(build(**settings), epochs=1, seed=3, max_norm=max_norm)
    hand = build(**settings)
    torch.manual_seed(3)
    hand.objective.train()
    for images, labels in hand.loader:
        loss = hand.objective(images, labels)["total"]
        gradients = torch.autograd.grad(loss, list(hand.objective.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(hand.objective.parameters(), gradients, strict=True):
                parameter -= 1e-2 * gradient * min(1.0, max_norm / norm.item())
    for name, value in run.objective.state_dict().items():
        torch.testing.assert_close(value, hand.objective.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_a_part_that_the_optimiser_leaves_alone_does_not_count_in_the_norm():
    """Its gradients are nobody's, and add up from step to step."""

    def heads(learns):
        run = build(scheduler=None)
        student = run.objective.student
        rest = [one for one in student.parameters() if all(one is not own for own in student.classifier.parameters())]
        for parameter in rest:
            parameter.requires_grad_(learns)
        run.optimizer = torch.optim.SGD(student.classifier.parameters(), lr=1e-2)
        return train(run, epochs=2, max_norm=1.0).student.classifier.state_dict()

    assert same(heads(learns=True), heads(learns=False))


@pytest.mark.parametrize("freeze_from", [0, 2, None])
def test_from_an_epoch_on_the_student_trains_with_frozen_statistics(freeze_from):
    seen = []

    class Watched(Supervised):
        def forward(self, images, labels):
            seen.append((self.training, self.student.training))
            return super().forward(images, labels)

    statistics = []

    def remember(student):
        norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
        statistics.append([norms[0].running_mean.clone(), norms[0].weight.clone()])
        return judge(student)

    train(build(objective=Watched), evaluate=remember, freeze_from=freeze_from)
    frozen = range(4 if freeze_from is None else freeze_from, 4)
    assert seen == [(True, step // STEPS not in frozen) for step in range(4 * STEPS)]
    for epoch in range(1, 4):
        (mean, weight), (mean_before, weight_before) = statistics[epoch], statistics[epoch - 1]
        assert torch.equal(mean, mean_before) == (epoch in frozen)
        assert not torch.equal(weight, weight_before)  # what is learnt goes on


def test_all_students_that_learn_together_are_frozen():
    def mutual(student, task):
        return MutualDistiller({"first": student, "second": StudentCNN(3, (4, 4, 4, 4))}, task)

    run = train(build(objective=mutual), epochs=2, freeze_from=1)
    assert not any(module.training for module in run.objective.students.modules())


def test_the_files_of_a_run(tmp_path):
    run = train(out=tmp_path, card=card(), evaluate=scripted(accuracy=[0.5, 0.9, 0.6, 0.7], loss=[4.0, 3.0, 2.0, 1.0]))
    names = {"best.safetensors", "last.safetensors", "resume.safetensors", "history.csv"}
    assert {path.name for path in tmp_path.glob("[!.]*")} == names
    last, last_card = load_model(tmp_path / "last.safetensors")
    assert same(last.state_dict(), run.student.state_dict())
    assert last_card.metrics == {"accuracy": 0.7, "loss": 1.0, "epoch": 4}
    best, best_card = load_model(tmp_path)
    assert best_card.metrics == {"accuracy": 0.9, "loss": 3.0, "epoch": 2}
    assert not same(best.state_dict(), last.state_dict())
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), run.done.history)


def test_the_best_file_holds_the_best_epochs_weights(tmp_path):
    train(out=tmp_path, card=card(), evaluate=scripted(accuracy=[0.5, 0.9, 0.6, 0.7], loss=[1.0] * 4))
    two = train(epochs=2)
    assert same(load_model(tmp_path)[0].state_dict(), two.student.state_dict())


def test_the_folder_may_be_a_text(tmp_path):
    train(epochs=1, out=str(tmp_path), card=card())
    assert (tmp_path / "last.safetensors").is_file()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_the_loss_at_each_look_and_the_metric_of_the_last_epoch(monkeypatch):
    shown = StringIO()
    bar = partial(progress, disable=False, file=shown, mininterval=0, miniters=1, ncols=120)
    monkeypatch.setattr("kdlab.training.loop.progress", bar)
    monkeypatch.setattr("kdlab.training.epoch.LOOK_EVERY", 2)
    losses = train(epochs=2, evaluate=scripted(accuracy=[0.25, 0.5])).done.history["total"]
    before, after = shown.getvalue().split("training, accuracy 0.25", 1)
    seen = [float(value) for value in re.findall(r"loss ([0-9.]+)", before)]
    assert len(seen) == 3  # after two steps, four and five
    assert (2 * seen[0] + 2 * seen[1] + seen[2]) / 5 == pytest.approx(losses[0], rel=1e-2)
    assert "training, accuracy 0.5" in after


def test_the_bar_counts_the_steps_that_are_left(tmp_path, monkeypatch):
    bars = []

    def noted(**options):
        bars.append(progress(**options, disable=False, file=StringIO()))
        return bars[-1]

    monkeypatch.setattr("kdlab.training.loop.progress", noted)
    for epochs in (1, 3):
        train(epochs=epochs, accumulate=2, out=tmp_path, card=card(), resume=True)
    assert [(bar.total, bar.n) for bar in bars] == [(STEPS, STEPS), (2 * STEPS, 2 * STEPS)]


# --- which epoch is best, and when it ends ---------------------------------------------------------------------------


def best(**options):
    return train(**options).done.best["epoch"]


def test_the_best_epoch_is_the_highest_of_the_monitored_metric():
    metrics = {"accuracy": [0.5, 0.9, 0.6, 0.7], "loss": [4.0, 3.0, 2.0, 1.0], "kappa": [0.1, 0.2, 0.4, 0.3]}
    assert best(evaluate=scripted(**metrics)) == 2
    assert best(evaluate=scripted(**metrics), monitor="kappa") == 3


def test_a_tie_goes_to_the_lower_loss_and_then_to_the_earlier_epoch():
    assert best(evaluate=scripted(accuracy=[0.9, 0.9, 0.9, 0.8], loss=[3.0, 1.0, 2.0, 0.5])) == 2
    assert best(evaluate=scripted(accuracy=[0.8, 0.9, 0.9, 0.9], loss=[1.0, 1.0, 1.0, 1.0])) == 2
    assert best(evaluate=scripted(accuracy=[0.8, 0.9, 0.9, 0.8])) == 2  # an evaluation without a loss


def test_of_the_loss_the_lowest_is_best():
    metrics = {"accuracy": [0.5, 0.9, 0.6, 0.7], "loss": [4.0, 3.0, 1.0, 2.0]}
    assert best(evaluate=scripted(**metrics), monitor="loss") == 3


NAN = float("nan")


def test_nan_is_never_the_best():
    level = [1.0] * 4
    assert best(evaluate=scripted(accuracy=[NAN, 0.5, NAN, 0.4], loss=level)) == 2
    assert best(evaluate=scripted(accuracy=level, loss=[NAN, 3.0, 2.0, NAN])) == 3  # the tie goes to a loss
    assert best(evaluate=scripted(accuracy=level, loss=[NAN, 3.0, 2.0, NAN]), monitor="loss") == 3


def test_metrics_may_be_tensors_or_numpy_numbers(tmp_path):
    accuracy = [torch.tensor(0.5), np.float32(0.75), torch.tensor([0.25]), 0]
    run = train(evaluate=scripted(accuracy=accuracy), out=tmp_path, card=card())
    assert run.done.history["val_accuracy"].tolist() == [0.5, 0.75, 0.25, 0.0]
    assert load_model(tmp_path)[1].metrics == {"accuracy": 0.75, "epoch": 2}


@pytest.mark.parametrize("vector", [torch.rand(3), np.zeros((3,)), [0.5, 0.5], None])
def test_a_metric_that_is_no_number_is_named(vector):
    with pytest.raises(InputError, match=f"evaluate gives 'iou' as {type(vector).__name__}.*; wanted: a number"):
        train(evaluate=lambda student: {"accuracy": 0.5, "iou": vector})


@pytest.mark.parametrize("bare", [0.5, torch.tensor(0.5), None])
def test_a_metric_without_a_name_is_refused(bare):
    with pytest.raises(InputError, match=f"evaluate gives a {type(bare).__name__}; wanted: each metric by its name"):
        train(evaluate=lambda student: bare)


@pytest.mark.parametrize("freeze_from", [None, 0])
def test_the_student_is_evaluated_in_eval_mode_without_gradients_and_trains_on_as_it_was(freeze_from):
    seen = []

    def look(student):
        seen.append((student.training, torch.is_grad_enabled()))
        return {"accuracy": 0.0}

    run = train(evaluate=look, epochs=2, freeze_from=freeze_from)
    assert seen == [(False, False)] * 2
    assert run.student.training == (freeze_from is None)


def test_a_student_that_comes_in_eval_mode_trains_as_any_other():
    run = build()
    run.objective.eval()
    assert same(bits(train(run, epochs=1)), bits(train(epochs=1)))


def test_a_better_metric_with_a_worse_loss_is_still_saved(tmp_path):
    train(epochs=2, out=tmp_path, card=card(), evaluate=scripted(accuracy=[0.5, 0.9], loss=[1.0, 2.0]))
    assert load_model(tmp_path)[1].metrics["epoch"] == 2


def test_patience_ends_it_after_so_many_epochs_without_a_better_one(tmp_path):
    accuracy = [0.5, 0.9, 0.8, 0.9, 0.7, 1.0]
    options = {"epochs": 6, "patience": 3}
    level = scripted(accuracy=accuracy, loss=[1.0] * 6)
    run = train(build(scheduler=None), evaluate=level, out=tmp_path, card=card(), **options)
    assert (run.done.ended, len(run.done.history), run.done.best["epoch"]) == ("patience", 5, 2)
    assert load_model(tmp_path / "last.safetensors")[1].metrics["epoch"] == 5
    better_loss = scripted(accuracy=accuracy, loss=[1.0, 1.0, 1.0, 0.9, 1.0, 1.0])  # the tie of epoch 4 is a better one
    run = train(build(scheduler=None), evaluate=better_loss, **options)
    assert (run.done.ended, run.done.best["epoch"]) == ("epochs", 6)
    assert train(patience=3, evaluate=scripted(accuracy=[0.9, 0.5, 0.5, 0.5])).done.ended == "epochs"  # both at once


def test_patience_counts_from_the_epoch_that_was_asked_for(tmp_path):
    worse = {"accuracy": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "loss": [1.0] * 6}
    options = {"epochs": 6, "patience": 2, "patience_from": 3, "out": tmp_path, "card": card()}
    first = train(build(scheduler=None), evaluate=scripted(**worse), **options)
    again = train(build(scheduler=None), evaluate=never, resume=True, **options)
    assert [(run.done.ended, len(run.done.history)) for run in (first, again)] == [("patience", 5)] * 2


def test_all_epochs_without_patience():
    run = train(evaluate=scripted(accuracy=[0.9, 0.5, 0.5, 0.5], loss=[1.0] * 4))
    assert (run.done.ended, len(run.done.history)) == ("epochs", 4)


def test_after_epoch_sees_each_row_and_stops(tmp_path):
    seen = []
    run = train(after_epoch=lambda row: seen.append(dict(row)) or len(seen) == 2, out=tmp_path, card=card())
    assert run.done.ended == "stopped"
    pd.testing.assert_frame_equal(pd.DataFrame(seen), run.done.history)
    assert load_model(tmp_path / "last.safetensors")[1].metrics["epoch"] == 2  # the epoch that was stopped after
    assert train(after_epoch=lambda row: seen.append(row) or row["epoch"] == 4).done.ended == "epochs"  # all are done
    assert [row["epoch"] for row in seen] == [1, 2, 1, 2, 3, 4]


# --- random numbers --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before():
    first = train(seed=5)
    second = build()
    torch.manual_seed(99)
    second = train(second, seed=5)
    assert same(bits(first), bits(second))


def test_another_seed_gives_other_bits():
    assert not same(train(seed=5, epochs=1).student.state_dict(), train(seed=6, epochs=1).student.state_dict())


def test_each_epoch_draws_its_own_numbers():
    class Drawing(Supervised):
        def forward(self, images, labels):
            return {"drawn": torch.rand(()), **super().forward(images, labels)}

    history = train(build(objective=Drawing)).done.history
    assert history["drawn"].nunique() == 4


def test_what_an_evaluation_draws_changes_nothing():
    def drawing(student):
        torch.rand(3), np.random.rand(3), random.random()
        return judge(student)

    assert same(bits(train()), bits(train(evaluate=drawing)))


def test_gradients_that_were_there_before_change_nothing():
    run = build()
    for parameter in run.objective.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert same(bits(train(run)), bits(train()))


class Noisy(Dataset):
    """Augmented by all three sources of random numbers."""

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(())
        return IMAGES[index] + noise, LABELS[index]


# --- resuming --------------------------------------------------------------------------------------------------------


def adam(parameters, lr):
    return torch.optim.AdamW(parameters, lr, amsgrad=True)


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True)


class Slowing(torch.optim.Optimizer):
    """Its state is two plain numbers."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weight in group["params"]:
                count = self.state[weight]["count"] = self.state[weight].get("count", 0) + 1
                factor = self.state[weight]["factor"] = self.state[weight].get("factor", 1.0) * 0.9
                weight.sub_(weight.grad, alpha=group["lr"] * factor / count)


def warm_up(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 20)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[7])


def drops(optimizer):
    return lr_scheduler.MultiStepLR(optimizer, [STEPS - 1, 2 * STEPS + 1, 2 * STEPS + 1])  # two at once: a hundredth


def warm_up_and_drops(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.MultiStepLR(optimizer, [9])]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def by_function(optimizer):
    return lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


class ByTable(lr_scheduler.LRScheduler):
    """By the step, a number: in JSON it becomes a text."""

    def __init__(self, optimizer):
        self.factors = {STEPS + 1: 0.1, 3 * STEPS: 0.5}
        super().__init__(optimizer)

    def get_lr(self):
        return [group["lr"] * self.factors.get(self.last_epoch, 1.0) for group in self.optimizer.param_groups]


RUNS = {
    "Adam, one cycle": dict,
    "AdamW, warm-up and cosine": lambda: {"optimizer": adam, "scheduler": warm_up},
    "SGD with momentum, by a function": lambda: {"optimizer": momentum, "scheduler": by_function},
    "AdamW, in drops": lambda: {"optimizer": adam, "scheduler": drops},
    "AdamW, warm-up and drops": lambda: {"optimizer": adam, "scheduler": warm_up_and_drops},
    "plain SGD, by a table": lambda: {"optimizer": torch.optim.SGD, "scheduler": ByTable},
    "an optimiser that counts": lambda: {"optimizer": Slowing, "scheduler": None},
    "plain SGD, constant": lambda: {"optimizer": torch.optim.SGD, "scheduler": None},
    "a loader with a generator of its own": lambda: {"generator": torch.Generator().manual_seed(3)},
    "a sampler with a generator of its own": lambda: {"sampler": RandomSampler(LABELS, generator=torch.Generator())},
    "such a sampler inside a batch sampler": lambda: {
        "batch_sampler": BatchSampler(RandomSampler(LABELS, generator=torch.Generator()), 4, drop_last=False)
    },
    "augmented images": lambda: {"data": Noisy()},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, settings):
    whole = train(build(**settings()), seed=2, out=tmp_path / "whole", card=card())
    for epoch in (1, 3):
        out = tmp_path / f"stopped after {epoch}"
        stop = {"after_epoch": lambda row, epoch=epoch: row["epoch"] == epoch}
        stopped = train(build(**settings()), seed=2, out=out, card=card(), **stop)
        assert stopped.done.ended == "stopped"
        resumed = train(build(**settings()), seed=2, out=out, card=card(), resume=True)
        assert resumed.done.ended == "epochs"
        assert same(bits(resumed), bits(whole))
        for name in ("best.safetensors", "last.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def fused(parameters, lr):
    return torch.optim.AdamW(parameters, lr, fused=True)


def test_a_fused_optimiser_resumes_to_the_same_bits_with_channels_last(tmp_path):
    whole = train(build(optimizer=fused), epochs=2, channels_last=True)
    for epochs in (1, 2):
        run = build(optimizer=fused)
        resumed = train(run, epochs=epochs, channels_last=True, out=tmp_path, card=card(), resume=True)
    assert same(bits(resumed), bits(whole))


def later_drops(optimizer):
    return lr_scheduler.MultiStepLR(optimizer, [4 * STEPS])


def longer(optimizer):
    return one_cycle(optimizer, epochs=6)


def parts(longer):
    """Of a sequence, whose parts are not looked at."""
    return lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ConstantLR(optimizer)], [6 + longer]
    )


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (one_cycle, longer, "total_steps was 20, now 30"),
        (drops, later_drops, "milestones was"),
        (parts(0), parts(1), r"_milestones was \[6\], now \[7\]"),
        *(
            (partial(schedule, **{name: 6}), partial(schedule, **{name: 7}), f"{name} was 6, now 7")
            for schedule, name in (
                (lr_scheduler.CosineAnnealingLR, "T_max"), (lr_scheduler.CosineAnnealingWarmRestarts, "T_0"),
                (lr_scheduler.LinearLR, "total_iters"), (lr_scheduler.StepLR, "step_size"),
            )
        ),
    ],
)  # fmt: skip
def test_another_length_of_the_schedule_is_refused(before, after, said, tmp_path):
    train(build(scheduler=before), epochs=1, out=tmp_path, card=card())
    with pytest.raises(InputError, match=f"another learning rate schedule: {said}.*Resume with the same one"):
        train(build(scheduler=after), epochs=6, out=tmp_path, card=card(), resume=True)


@pytest.mark.parametrize("step", [2, STEPS + 1, 3 * STEPS - 1])
def test_a_run_interrupted_within_an_epoch_resumes_to_the_same_bits(tmp_path, step):
    class Interrupted(Supervised):
        steps = 0

        def forward(self, images, labels):
            self.steps += 1
            if self.steps == step:
                raise KeyboardInterrupt
            return super().forward(images, labels)

    whole = train()
    with pytest.raises(KeyboardInterrupt):
        train(build(objective=Interrupted), out=tmp_path, card=card())
    assert same(bits(train(out=tmp_path, card=card(), resume=True)), bits(whole))


class Learnable(nn.Module):
    """A loss with a parameter and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, logits, labels):
        self.seen += 1
        return F.cross_entropy(logits * self.scale, labels)


def test_what_a_loss_learns_is_resumed_too(tmp_path):
    def learning(student, task):
        return Supervised(student, Learnable())

    whole = train(build(objective=learning))
    train(build(objective=learning), out=tmp_path, card=card(), after_epoch=lambda row: row["epoch"] == 2)
    resumed = train(build(objective=learning), out=tmp_path, card=card(), resume=True)
    assert same(resumed.objective.state_dict(), whole.objective.state_dict())
    assert resumed.objective.task.seen == 4 * STEPS


def test_resuming_a_finished_run_trains_nothing_and_returns_the_same(tmp_path):
    first = train(out=tmp_path, card=card())
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("[!.]*")}
    run = build()
    run.objective.forward = never
    again = train(run, out=tmp_path, card=card(), resume=True, evaluate=never)
    pd.testing.assert_frame_equal(again.done.history, first.done.history)
    assert again.done.best == first.done.best
    assert again.done.ended == "epochs"
    assert same(again.student.state_dict(), first.student.state_dict())
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("[!.]*")} == before


def test_what_another_run_is_writing_is_not_deleted_while_it_is_waited_for(tmp_path, monkeypatch):
    other, unfinished, there = FileLock(tmp_path / ".lock"), tmp_path / "best.safetensors.1.partial", []
    other.acquire()
    unfinished.touch()

    def end(*_, **__):
        there.append(unfinished.exists())
        other.release()

    monkeypatch.setattr("kdlab.training.run_folder.tqdm.write", end)
    train(epochs=1, out=tmp_path, card=card())
    assert there == [True]
    assert not unfinished.exists()


def test_a_run_waits_for_one_that_trains_into_its_folder(tmp_path, capsys):
    begun, go_on, others = Event(), Event(), []

    def hold(row):
        begun.set()
        return not go_on.wait(60)

    def other():
        others.append(train(out=tmp_path, card=card(), after_epoch=hold))

    thread = Thread(target=other)
    thread.start()
    assert begun.wait(60)
    Timer(0.5, go_on.set).start()
    run = build()
    run.objective.forward = never
    waited = train(run, out=tmp_path, card=card(), resume=True, evaluate=never)
    thread.join()
    assert f"Another process trains into {tmp_path}; waiting for its end." in capsys.readouterr().err
    pd.testing.assert_frame_equal(waited.done.history, others[0].done.history)
    assert len(waited.done.history) == 4


def test_resuming_a_run_that_ran_out_of_patience_trains_nothing(tmp_path):
    metrics = {"accuracy": [0.9, 0.5, 0.5, 0.5], "loss": [1.0] * 4}
    first = train(patience=2, evaluate=scripted(**metrics), out=tmp_path, card=card())
    again = train(patience=2, evaluate=never, out=tmp_path, card=card(), resume=True)
    assert (first.done.ended, again.done.ended) == ("patience", "patience")
    pd.testing.assert_frame_equal(again.done.history, first.done.history)


def test_a_run_that_ran_out_of_patience_goes_on_with_more(tmp_path):
    metrics = {"accuracy": [0.9, 0.5, 0.5, 0.5], "loss": [1.0] * 4}
    ended = train(patience=1, evaluate=scripted(**metrics), out=tmp_path, card=card(patience=1))
    rest = {name: values[len(ended.done.history) :] for name, values in metrics.items()}
    more = train(patience=3, evaluate=scripted(**rest), out=tmp_path, card=card(patience=3), resume=True)
    alone = train(patience=3, evaluate=scripted(**metrics))
    assert [len(run.done.history) for run in (ended, more, alone)] == [2, 4, 4]
    assert same(bits(more), bits(alone))
    assert load_model(tmp_path / "last.safetensors")[1].recipe == {"patience": 3}


def test_resuming_where_nothing_is_starts_from_the_beginning(tmp_path):
    run = train(out=tmp_path / "new" / "folder", card=card(), resume=True)
    assert same(bits(run), bits(train()))


def test_only_what_a_killed_run_left_half_written_is_deleted(tmp_path):
    for name in ("best.safetensors.123.partial", "history.csv.123.partial", "download.partial"):
        (tmp_path / name).write_text("half")
    train(epochs=1, out=tmp_path, card=card())
    assert [path.name for path in tmp_path.glob("*.partial")] == ["download.partial"]


def test_the_largest_seed_of_torch_has_later_epochs():
    assert len(train(epochs=3, seed=2**64 - 1).done.history) == 3


def test_another_recipe_is_not_resumed_and_the_setting_is_named(tmp_path):
    train(epochs=1, out=tmp_path, card=card(temperature=4.0, widths=(8, 16), old=1))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"temperature was 4.0, now 2.0.*same settings.*another folder") as refused:
        train(out=tmp_path, card=card(temperature=2.0, widths=(8, 16), new=2), resume=True)
    assert "old was 1, now not recorded" in str(refused.value)
    assert "new was not recorded, now 2" in str(refused.value)
    assert "widths" not in str(refused.value)  # a tuple comes back from JSON as a list and is no change
    assert contents(tmp_path) == before


def test_another_model_or_optimiser_is_not_resumed(tmp_path):
    train(build(scheduler=None), epochs=1, out=tmp_path, card=card())
    wider, fewer = build(scheduler=None), build(scheduler=None)
    wider.objective.student.classifier[3] = nn.Linear(2, 5)
    fewer.optimizer = torch.optim.Adam(fewer.objective.student.classifier.parameters())
    for run in (wider, fewer):
        with pytest.raises(
            InputError, match=r"resume\.safetensors does not fit this model or optimiser.*another folder"
        ):
            train(run, out=tmp_path, card=card(), resume=True)


@pytest.mark.parametrize("before", [None, one_cycle])
def test_a_schedule_that_came_or_went_is_not_resumed(tmp_path, before):
    train(build(scheduler=before), epochs=1, out=tmp_path, card=card())
    after = None if before else one_cycle
    with pytest.raises(InputError, match="schedule"):
        train(build(scheduler=after), out=tmp_path, card=card(), resume=True)


@pytest.mark.parametrize("content", ["a model", "other tensors", "truncated", "text"])
def test_a_file_that_is_no_resume_file_is_named(tmp_path, content):
    train(epochs=1, out=tmp_path, card=card())
    path = tmp_path / "resume.safetensors"
    if content == "a model":
        path.write_bytes((tmp_path / "last.safetensors").read_bytes())
    elif content == "other tensors":
        save_tensors(path, {"classifier": torch.zeros(3)}, {"fingerprint": "1234"})
    else:
        path.write_bytes(path.read_bytes()[:1000] if content == "truncated" else b"notes to myself")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"resume\.safetensors"):
        train(out=tmp_path, card=card(), resume=True)
    assert contents(tmp_path) == before


def test_an_earlier_run_is_not_overwritten(tmp_path):
    train(epochs=1, out=tmp_path, card=card())
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds an earlier run. Resume it, delete the folder, or choose another one"):
        train(out=tmp_path, card=card())
    assert contents(tmp_path) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- precision -------------------------------------------------------------------------------------------------------


def test_bf16_computes_the_forward_pass_in_half_precision_and_agrees_roughly():
    class Watching(Supervised):
        dtypes = frozenset()

        def forward(self, images, labels):
            logits = self.student(images)
            self.dtypes |= {logits.dtype}
            loss = self.task(logits, labels)
            return {"task": loss, "total": loss}

    full, half = (train(build(objective=Watching), precision=name) for name in ("fp32", "bf16"))
    assert full.objective.dtypes == {torch.float32}
    assert half.objective.dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.student.parameters()} == {torch.float32}
    losses = (run.done.history[["total", "val_loss"]] for run in (full, half))
    pd.testing.assert_frame_equal(*losses, rtol=0.05)
    assert not same(half.student.state_dict(), full.student.state_dict())


# --- the order in memory ---------------------------------------------------------------------------------------------


def test_channels_last_lays_all_convolutions_so_and_agrees():
    def with_a_teacher(student, task):
        kd = Term("kd", KDLoss(), "classifier", "classifier")
        return Distiller(student, StudentCNN(3, (4, 4, 4, 4)), [kd], task=task)

    def after(channels_last):
        run = build(objective=with_a_teacher, optimizer=torch.optim.SGD)  # Adam makes steps of rounding errors
        return train(run, epochs=2, channels_last=channels_last)

    plain, last = after(False), after(True)
    for run, laid in ((plain, False), (last, True)):
        assert is_channels_last(run.student) == is_channels_last(run.objective.teacher) == laid
    for name, tensor in plain.student.state_dict().items():
        torch.testing.assert_close(last.student.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_channels_last_leaves_3d_convolutions_as_they_are():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(3, 3, 1)
            self.flat = nn.Conv2d(3, 3, 3)

        def forward(self, images):
            return self.flat(self.conv(images[:, :, None])[:, :, 0]).mean(dim=(2, 3))

    run = build(objective=lambda _, task: Supervised(Volume(), task))
    train(run, epochs=1, channels_last=True)
    assert is_channels_last(run.objective.student.flat)
    assert run.objective.student.conv.weight.is_contiguous()


# --- a compiled student ----------------------------------------------------------------------------------------------


def compiling_by(backend, monkeypatch):
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: original(module, backend=backend))


def test_a_compiled_student_learns_the_same_and_is_judged_as_it_is(monkeypatch, shapes_unchecked):
    torch._dynamo.reset()
    graphs = []

    def counting(graph, example):
        graphs.append(graph)
        return graph

    compiling_by(counting, monkeypatch)
    eager, compiled = train(epochs=2), train(epochs=2, compile=True)
    assert len(graphs) == 1  # none for the evaluation, whose images are of all sizes
    for name, tensor in eager.student.state_dict().items():
        torch.testing.assert_close(compiled.student.state_dict()[name], tensor)
    losses = (run.done.history[["total", "val_loss"]] for run in (eager, compiled))
    pd.testing.assert_frame_equal(*losses, rtol=1e-5)
    compiled.student(IMAGES[:3])
    assert len(graphs) == 1  # nor for what comes after


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="no compiler")
def test_a_student_that_is_really_compiled_learns_the_same(shapes_unchecked):
    torch._dynamo.reset()
    eager, compiled = (build(optimizer=torch.optim.SGD) for _ in range(2))  # Adam makes steps of rounding errors
    for module in (*eager.objective.modules(), *compiled.objective.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a compiled network draws random numbers of its own
    eager, compiled = train(eager, epochs=2), train(compiled, epochs=2, compile=True)
    for name, tensor in eager.student.state_dict().items():
        torch.testing.assert_close(compiled.student.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_student_that_is_read_is_not_taken_for_one_that_was_compiled_unread(monkeypatch, shapes_unchecked):
    torch._dynamo.reset()
    compiling_by("eager", monkeypatch)
    train(epochs=1, compile=True)

    def distilling(student, task):
        hint = Term("hint", HintLoss(), "features.2", "features.2")
        return Distiller(student, StudentCNN(3, (4, 4, 4, 4)), [hint], task=task)

    assert (train(build(objective=distilling), epochs=1, compile=True).done.history.hint > 0).all()


def test_where_nothing_compiles_that_is_said(monkeypatch, shapes_unchecked):
    torch._dynamo.reset()

    def missing(graph, example):
        raise RuntimeError("no compiler was found")

    compiling_by(missing, monkeypatch)
    with pytest.raises(InputError, match="the student cannot be compiled here.*no compiler was found.*Train without"):
        train(compile=True)


def test_an_error_that_is_not_of_the_compiler_stays_what_it_is(monkeypatch, shapes_unchecked):
    compiling_by("eager", monkeypatch)
    run = build(objective=Watched)
    run.objective.fails_at = 1
    with pytest.raises(OSError, match="no more"):
        train(run, compile=True)


# --- a loss that is not finite ---------------------------------------------------------------------------------------


class Breaking(Supervised):
    """A second term that has a value of one's choice at one step."""

    steps, at, value = 0, 0, float("nan")

    def forward(self, images, labels):
        self.steps += 1
        losses = super().forward(images, labels)
        extra = torch.tensor(self.value if self.steps == self.at else 0.0)
        return {"task": losses["task"], "extra": extra, "total": losses["total"] + extra}


def breaking(at, value=float("nan")):
    """Thirteen steps an epoch: a look within it, and one at its end."""
    data = TensorDataset(IMAGES.repeat(3, 1, 1, 1)[:52], LABELS.repeat(3)[:52])
    run = build(data, objective=Breaking, scheduler=None)
    assert len(run.loader) == 13
    run.objective.at, run.objective.value = at, value
    return run


@pytest.mark.parametrize("step", [1, 7, 10, 11, 13, 14, 20, 23, 25, 26])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_it_stops_and_names_the_step_and_the_term(step, value):
    run = breaking(step, value)
    with pytest.raises(NonFiniteLossError, match=rf"no longer finite at step {step}: extra = {value}\. Training stop"):
        train(run, epochs=3)
    assert run.objective.steps - step < 10  # it does not go on for long


def test_of_a_distiller_the_teacher_is_named_as_a_possible_cause():
    run = breaking(2)
    with pytest.raises(NonFiniteLossError, match=r"or look at the data\.$"):
        train(run)
    teacher = StudentCNN(3, (4, 4, 4, 4))
    kd = Term("kd", KDLoss(), "classifier", "classifier")
    run = build(objective=lambda student, task: Distiller(student, teacher, [kd], task))
    run.objective(*next(iter(run.loader)))  # a first batch that is as it should be
    for parameter in teacher.classifier.parameters():
        parameter.data.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="kd = nan.*the data and at what the teacher puts out for it"):
        train(run)


@pytest.mark.parametrize("step", [1, 5, 8])
def test_it_names_the_step_in_short_epochs_too(step):
    run = build(objective=Breaking)
    run.objective.at = step
    with pytest.raises(NonFiniteLossError, match=f"no longer finite at step {step}: extra = nan"):
        train(run)


@pytest.mark.parametrize("step", [14, 17, 23, 26])
def test_what_was_saved_before_stays_as_it_was(tmp_path, step):
    train(breaking(0), epochs=1, out=tmp_path, card=card())
    before = contents(tmp_path)
    run = breaking(step - 13)  # it counts from the second epoch on
    with pytest.raises(NonFiniteLossError, match=f"at step {step}: extra = nan"):
        train(run, epochs=3, out=tmp_path, card=card(), resume=True)
    assert contents(tmp_path) == before


def test_all_terms_that_broke_at_that_step_are_named():
    class Both(Supervised):
        def forward(self, images, labels):
            loss = super().forward(images, labels)["total"]
            return {"task": loss, "one": loss / 0, "two": loss * float("nan"), "total": loss / 0}

    with pytest.raises(NonFiniteLossError, match="at step 1: one = inf, two = nan. "):
        train(build(objective=Both))


def test_a_sum_that_overflows_though_its_terms_do_not_is_named_as_the_total():
    class Overflowing(Supervised):
        def forward(self, images, labels):
            loss = super().forward(images, labels)["total"]
            return {"task": loss, "total": loss * 1e38 * 1e38}

    with pytest.raises(NonFiniteLossError, match="at step 1: total = inf"):
        train(build(objective=Overflowing))


def test_a_loss_that_is_not_in_the_total_need_not_be_finite():
    class Reporting(Supervised):
        def forward(self, images, labels):
            return {"reported": torch.tensor(float("inf")), **super().forward(images, labels)}

    assert train(build(objective=Reporting), epochs=2).done.history["reported"].tolist() == [float("inf")] * 2


@pytest.mark.parametrize("name", ["epoch", "lr", "seconds", "val_accuracy"])
def test_a_loss_called_like_another_column_is_refused(name):
    class Named(Supervised):
        def forward(self, images, labels):
            return {name: torch.tensor(1.0), **super().forward(images, labels)}

    with pytest.raises(InputError, match=f"a loss called '{name}', which is another column of the history"):
        train(build(objective=Named))


def test_weights_that_broke_in_the_last_step_of_an_epoch_are_not_saved(tmp_path):
    """The loss is finite, its gradient is not: only the weights show it, and the epoch has no further step."""

    class Steep(Supervised):
        steps = 0

        def forward(self, images, labels):
            self.steps += 1
            losses = super().forward(images, labels)
            wall = (losses["total"] - losses["total"].detach()).sqrt() if self.steps == 2 * STEPS else 0.0
            return {"task": losses["task"], "total": losses["total"] + wall}

    run = build(objective=Steep)
    with pytest.raises(NonFiniteLossError):
        train(run, out=tmp_path, card=card())
    assert load_model(tmp_path / "last.safetensors")[1].metrics["epoch"] == 1
    for name in ("best.safetensors", "last.safetensors"):
        assert all(value.isfinite().all() for value in load_model(tmp_path / name)[0].state_dict().values())


# --- what it refuses -------------------------------------------------------------------------------------------------


REFUSED = {
    "no epochs": ({"epochs": 0}, "epochs is 0 and patience None; both must be at least 1"),
    "no patience": ({"patience": 0}, "patience 0; both must be at least 1"),
    "unknown precision": ({"precision": "fp16"}, "precision is 'fp16'; wanted: 'fp32' or 'bf16'"),
    "no piece of a batch": ({"accumulate": 0}, "accumulate is 0; wanted: pieces of a batch, at least 1"),
    "a norm of nothing": ({"max_norm": 0.0}, "max_norm is 0.0; wanted: above 0"),
    "a norm that is no number": ({"max_norm": NAN}, "max_norm is nan; wanted: above 0"),
    "a freezing before the start": (
        {"freeze_from": -1},
        "freeze_from is -1; wanted: an epoch, counted from 0, or None",
    ),
    "a folder without a card": ({"out": "folder"}, "out was given without a card"),
    "a folder that is a file": (
        {"out": "file", "card": card()},
        "file cannot be written to",
    ),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_before_any_work(options, said, tmp_path, shapes_unchecked):
    (tmp_path / "file").write_text("something of mine")
    if "out" in options:
        options = options | {"out": tmp_path / options["out"]}
    run = build()
    run.objective.forward = never
    with pytest.raises(InputError, match=said):
        train(run, **options)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["something of mine"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer": torch.optim.LBFGS, "scheduler": None}, "the optimiser is LBFGS.*such as SGD or AdamW"),
        ({"scheduler": lr_scheduler.ReduceLROnPlateau}, "the scheduler is ReduceLROnPlateau.*such as OneCycleLR"),
        ({"scheduler": lambda _: one_cycle(build().optimizer)}, "the scheduler is of another optimiser"),
    ],
)
def test_what_cannot_step_with_the_optimiser_is_refused(settings, said):
    run = build(**settings)
    run.objective.forward = never
    with pytest.raises(InputError, match=said):
        train(run)


@pytest.mark.parametrize("images", [0, 3])
def test_a_loader_without_a_batch_is_refused(images):
    run = build()
    run.loader = DataLoader(TensorDataset(IMAGES[:images], LABELS[:images]), 4, drop_last=True)
    with pytest.raises(InputError, match="the loader yields no batch: fewer samples than one batch"):
        train(run)


def test_an_optimiser_without_what_a_loss_learns_is_refused():
    run = build(objective=lambda student, _: Supervised(student, Learnable()))
    name = next(name for name, _ in run.objective.named_parameters() if name.startswith("task"))
    run.optimizer = torch.optim.Adam(run.objective.student.parameters())
    with pytest.raises(
        InputError, match=rf"the optimiser lacks .*{name}.*Give it distiller\.parameters\(\), or freeze"
    ):
        train(run)
    run.objective.task.requires_grad_(False)
    run.optimizer = torch.optim.Adam(run.objective.student.classifier.parameters())  # a part of it may stay as it is
    run.scheduler = None
    train(run, epochs=1)


def test_an_objective_without_a_student_is_refused():
    run = build()
    run.objective = run.objective.student
    with pytest.raises(InputError, match=r"the objective is StudentCNN, which has no network as its `student`.*Superv"):
        fit(run.objective, run.loader, epochs=1, optimizer=run.optimizer, evaluate=judge)


class WithMask(Supervised):
    """Its student has a buffer with -inf, as attention has for what comes later, and a state that is no tensor."""

    def __init__(self, student, task):
        super().__init__(student, task)
        student.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        student.register_buffer("count", torch.zeros(()))


def test_a_buffer_may_be_infinite_from_the_start_but_not_become_so():
    run = train(build(objective=WithMask), epochs=2)
    assert len(run.done.history) == 2
    run = build(objective=WithMask)
    run.objective.register_forward_pre_hook(lambda module, _: module.student.count.fill_(torch.inf) and None)
    with pytest.raises(NonFiniteLossError, match="the student's count no longer is"):
        train(run)


def test_a_student_that_is_frozen_or_not_the_optimisers_is_refused():
    run = build()
    run.objective.forward = never
    run.optimizer = torch.optim.Adam(StudentCNN(3, (4, 4, 4, 4)).parameters())  # of the student before it was copied
    run.scheduler = None
    with pytest.raises(InputError, match="the optimiser has none of the student's 20 parameters; wanted: it moves"):
        train(run)
    run.objective.student.requires_grad_(False)
    with pytest.raises(InputError, match=r"every weight of the student is frozen.*requires_grad_\(True\)"):
        train(run)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            lambda loss: {"task": loss.item(), "total": loss},
            "returns 'task' as a float; wanted: a tensor of one number",
        ),
        (lambda loss: {"task": loss, "total": loss[None]}, r"returns 'total' as a tensor of shape \(1,\)"),
        (lambda loss: {"task": loss[None], "total": loss}, r"returns 'task' as a tensor of shape \(1,\)"),
    ],
)
def test_losses_that_are_no_scalars_are_refused(returned, said):
    class Odd(Supervised):
        def forward(self, images, labels):
            return returned(super().forward(images, labels)["total"])

    with pytest.raises(InputError, match=said):
        train(build(objective=Odd))


def test_losses_of_other_names_than_before_are_refused():
    class Changing(Supervised):
        def forward(self, images, labels):
            self.steps = getattr(self, "steps", 0) + 1
            losses = super().forward(images, labels)
            return losses if self.steps < 3 else losses | {"extra": losses["total"]}

    with pytest.raises(InputError, match="losses named task, total, extra and returned task, total in the step before"):
        train(build(objective=Changing))


class Stream(IterableDataset):
    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return 20

    def __iter__(self):
        return islice(zip(IMAGES, LABELS, strict=True), 4 * self.batches)


@pytest.mark.parametrize("batches", [0, 3])
def test_a_stream_that_ends_before_its_length_is_refused(batches):
    run = build()
    run.loader = DataLoader(Stream(batches), 4)
    with pytest.raises(InputError, match="the loader says that it has 5 batches and yields another number of them"):
        train(run)


@pytest.mark.parametrize("batches", [5, None])
def test_a_stream_that_goes_on_after_its_length_is_refused(batches, recwarn):
    class Longer(Stream):
        def __len__(self):
            return 8

        def __iter__(self):
            return super().__iter__() if batches else cycle(zip(IMAGES, LABELS, strict=True))

    run = build()
    run.loader = DataLoader(Longer(batches), 4)
    with pytest.raises(InputError, match="the loader says that it has 2 batches and yields another number of them"):
        train(run)


SHARE = DistributedSampler(LABELS, num_replicas=2, rank=0)


@pytest.mark.parametrize("drawn", [{"sampler": SHARE}, {"batch_sampler": BatchSampler(SHARE, 4, drop_last=False)}])
def test_a_loader_of_one_processs_share_is_refused(drawn):
    run = build(scheduler=None, **drawn)
    run.objective.forward = never
    with pytest.raises(InputError, match="one process's share.*by a DistributedSampler.*wanted: a loader of the whole"):
        train(run)


def test_a_stream_with_a_length_is_trained_on_but_not_in_pieces():
    run = build(scheduler=None)
    run.loader = DataLoader(Stream(5), 4)
    assert len(train(run, epochs=1).done.history) == 1
    with pytest.raises(InputError, match="only such batches can be divided into pieces"):
        train(run, epochs=1, accumulate=2)


def test_batches_that_are_there_already_are_trained_on_but_not_in_pieces():
    run = build()
    run.loader = DataLoader([(IMAGES[:4], LABELS[:4])] * STEPS, batch_size=None)
    assert len(train(run, epochs=1).done.history) == 1
    with pytest.raises(InputError, match="the loader does not draw its batches from a data set with places"):
        train(run, epochs=1, accumulate=2)


def test_a_loader_that_changes_its_batches_is_not_replaced_by_a_plain_one():
    class Halved(DataLoader):
        def __iter__(self):
            return ((images / 2, labels) for images, labels in super().__iter__())

    run = build()
    run.loader = Halved(TensorDataset(IMAGES, LABELS), 4)
    with pytest.raises(InputError, match="the loader is a Halved, which yields batches in a way of its own"):
        train(run, accumulate=2)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [({"data": Path("photos")}, "the card cannot be saved: Object of type .*Path"),
     ({"epochs": np.int64(3)}, "the card cannot be saved: Object of type int64")],
)  # fmt: skip
def test_a_recipe_that_cannot_be_saved_is_refused_before_the_first_epoch(recipe, said, tmp_path):
    run = build()
    run.objective.forward = never
    with pytest.raises(InputError, match=said):
        train(run, out=tmp_path, card=card(**recipe))


def test_a_learning_rate_that_cannot_be_saved_is_refused_too(tmp_path):
    run = build(optimizer=lambda weights, lr: torch.optim.Adam(weights, torch.tensor(lr)), scheduler=None)
    run.objective.forward = never
    with pytest.raises(InputError, match="the optimiser cannot be saved.*a learning rate that is no tensor"):
        train(run, out=tmp_path, card=card())


class Falling:
    def __init__(self):
        self.factors = torch.tensor([1.0, 0.1])

    def __call__(self, step):
        return self.factors[step // (2 * STEPS)].item()


def test_a_schedule_that_cannot_be_saved_is_refused_too(tmp_path):
    run = build(scheduler=lambda optimizer: lr_scheduler.LambdaLR(optimizer, Falling()))
    run.objective.forward = never
    with pytest.raises(InputError, match="the scheduler cannot be saved: Object of type Tensor"):
        train(run, out=tmp_path, card=card())


def test_a_last_batch_of_one_says_what_to_do():
    def flat(student, task):
        return Supervised(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3)), task)

    run = build(TensorDataset(IMAGES[:5, :, 0, 0], LABELS[:5]), objective=flat, scheduler=None)
    with pytest.raises(InputError, match="BatchNorm cannot train on a batch of one sample.*drop_last"):
        train(run)


class WithExtraState(StudentCNN):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        pass


def test_a_student_that_cannot_be_saved_is_refused_before_the_first_epoch(tmp_path):
    run = build(objective=lambda student, task: Supervised(WithExtraState(3, (4, 4, 4, 4)), task))
    run.objective.forward = never
    with pytest.raises(
        InputError, match="student._extra_state cannot be saved: in its state_dict it is a dict; wanted"
    ):
        train(run, out=tmp_path, card=card())
    assert not list(tmp_path.iterdir())


class Listing(Slowing):
    """Its state is a list of tensors."""

    def step(self):
        super().step()
        for state in self.state.values():
            state["history"] = [torch.zeros(())]


def test_an_optimisers_state_that_cannot_be_saved_is_named_before_a_file_is_written(tmp_path):
    with pytest.raises(InputError, match="what Listing remembers of its steps cannot be saved: Object of type Tensor"):
        train(build(optimizer=Listing, scheduler=None), out=tmp_path, card=card())
    assert not list(tmp_path.glob("[!.]*"))


def test_what_image_processors_give_is_moved_too():
    batch = UserDict(pixels=torch.ones(2), names=["a"])
    moved, label = to_device((batch, torch.ones(1)), torch.device("meta"))
    assert isinstance(moved, UserDict)
    assert moved["pixels"].is_meta
    assert moved["names"] == ["a"]
    assert label.is_meta
    assert not batch["pixels"].is_meta


@pytest.mark.parametrize(("losses", "said"), [({"task": 1.0, "kd": 2.0}, "losses named task, kd"), (3.0, "a float")])
def test_losses_without_a_total_are_refused(losses, said):
    run = build()
    run.objective.forward = lambda images, labels: losses
    with pytest.raises(InputError, match=f'the objective returns {said}; wanted: a dict of losses .* as "total"'):
        train(run)


class Named(Dataset):
    """Samples that are dictionaries, with a name that is text."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"image": IMAGES[index], "name": str(index)}


@pytest.mark.parametrize(
    ("data", "said"), [(Named(), "a dict with the keys image, name"), (list(IMAGES), "a Tensor"), (["one"] * 4, None)]
)
def test_a_batch_that_is_not_what_the_objective_takes_is_refused(data, said):
    run = build()
    run.loader = DataLoader(data, 4, collate_fn="".join if said is None else None)
    with pytest.raises(InputError, match=rf"the loader yields {said or 'a str'}; wanted: .*such as \(images, labels\)"):
        train(run)


def test_a_loader_without_a_length_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(IMAGES, LABELS, strict=True)

    run = build()
    run.loader = DataLoader(Stream(), 4)
    with pytest.raises(InputError, match=r"the loader has no length, nor has its Stream.*Give the data set a __len__"):
        train(run)


def test_a_batch_moves_with_all_that_is_in_it():
    Sample = namedtuple("Sample", ["image", "name"])
    moved = to_device([Sample(torch.ones(2), "ant"), {"mask": None, "size": (torch.ones(1), 3)}], torch.device("meta"))
    assert isinstance(moved, list)
    assert isinstance(moved[0], Sample)
    assert (moved[0].name, moved[1]["mask"], moved[1]["size"][1]) == ("ant", None, 3)
    assert moved[0].image.is_meta
    assert moved[1]["size"][0].is_meta


def test_an_unknown_monitor_is_named_with_what_there_is(tmp_path):
    with pytest.raises(InputError, match="monitor is 'acuracy', but evaluate gives accuracy, loss"):
        train(monitor="acuracy", out=tmp_path, card=card())
    assert list(tmp_path.glob("[!.]*")) == []


@pytest.mark.parametrize("options", [{"epochs": 1}, {"epochs": 4, "patience": 2}])
def test_an_unknown_monitor_is_named_when_resuming_too(tmp_path, options):
    train(epochs=1, out=tmp_path, card=card())
    with pytest.raises(InputError, match="monitor is 'acuracy'"):
        train(monitor="acuracy", out=tmp_path, card=card(), resume=True, **options)


class CountingBatches(torch.utils.data.Sampler):
    """Batches that are told the epoch."""

    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return STEPS

    def __iter__(self):
        return iter(torch.arange(20).view(STEPS, 4).roll(len(self.epochs), 0).tolist())


def test_a_batch_sampler_that_wants_to_know_the_epoch_is_told(tmp_path):
    for done, epochs in ((2, 2), (4, 4)):
        batches = CountingBatches()
        run = build()
        fit(
            run.objective, DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=batches), epochs=epochs,
            optimizer=run.optimizer, evaluate=judge, out=tmp_path, card=card(), resume=True,
        )  # fmt: skip
        assert batches.epochs == list(range(done))[-2:]


class Seeing(Supervised):
    """Notes what it is given."""

    def forward(self, images, labels):
        self.seen = [*getattr(self, "seen", []), *images[:, 0, 0, 0].tolist()]
        return super().forward(images, labels)


@pytest.mark.parametrize(
    "drawn", [lambda: {"generator": torch.Generator()}, lambda: {"batch_sampler": CountingBatches()}]
)
def test_pieces_are_of_the_batches_that_the_whole_loader_draws(drawn):
    whole, pieces = (
        train(build(objective=Seeing, **drawn()), epochs=2, accumulate=count).objective.seen for count in (1, 2)
    )
    batches, again = (torch.tensor(seen).view(2 * STEPS, 4).sort().values for seen in (whole, pieces))
    assert torch.equal(batches, again)
