"""The published protocol: its schedule, its optimiser, its terms, and the rows that it is compared with."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from layout import is_channels_last
from torch import nn
from torch.utils.data import TensorDataset

from kdlab import InputError
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller
from kdlab.losses import LabelledCrossEntropy
from kdlab.models import cifar_network
from kdlab.models.cifar import CIFARResNet
from kdlab.recipes import cifar100, loss_zoo
from kdlab.recipes.cifar100 import METHODS, NOT_HERE, check_names, optimizer, protocol, row, run, schedule, terms
from kdlab.recipes.cifar100_table import PAIRS
from kdlab.training import Fit

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {
    "kd": 0.9, "dkd": 1.0, "dist": 1.0, "hint": 100.0, "at": 1000.0, "vid": 1.0, "sp": 3000.0, "pkt": 30000.0,
    "rkd": 1.0, "crd": 0.8,
}  # fmt: skip


def rates(epochs, steps=2):
    """The learning rate at the first step of each epoch, counted from 1."""
    sgd = optimizer([nn.Parameter(torch.zeros(1))])
    scheduler, seen = schedule(sgd, epochs, steps), {}
    for epoch in range(1, epochs + 1):
        seen[epoch] = sgd.param_groups[0]["lr"]
        for _ in range(steps):
            sgd.step()
            scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(1, 0.05), (150, 0.05), (151, 0.005), (180, 0.005), (181, 5e-4), (210, 5e-4), (211, 5e-5), (240, 5e-5)],
)
def test_the_learning_rate_falls_after_the_epochs_150_180_and_210(epoch, rate):
    assert rates(240)[epoch] == pytest.approx(rate, rel=1e-12)


def test_a_trial_shrinks_the_schedule():
    assert list(rates(24).values()) == pytest.approx([0.05] * 15 + [0.005] * 3 + [5e-4] * 3 + [5e-5] * 3)


def test_the_schedule_goes_on_after_it_was_json():
    sgd = optimizer([nn.Parameter(torch.zeros(1))])
    scheduler = schedule(sgd, 240, 1)
    scheduler.load_state_dict(json.loads(json.dumps(scheduler.state_dict() | {"last_epoch": 149})))
    sgd.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.005])


def test_the_optimiser_is_the_published_one():
    sgd = optimizer(nn.Linear(2, 2).parameters())
    assert isinstance(sgd, torch.optim.SGD)
    wanted = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "dampening": 0}
    assert sgd.param_groups[0].items() >= wanted.items()


# --- methods ---------------------------------------------------------------------------------------------------------


def all_terms(student, teacher, beta=8.0, samples=8, epochs=240):
    methods = [method for method in METHODS if method != "alone"]
    return {method: terms(method, beta, student, teacher, samples, epochs) for method in methods}


@pytest.mark.parametrize("name", PAIRS)
def test_every_method_meets_the_layers_of_every_pair_and_teaches_the_student_alone(name):
    pair = PAIRS[name]
    student, teacher = cifar_network(pair.student), cifar_network(pair.teacher)
    together = [term for some in all_terms(student, teacher).values() for term in some]
    distiller = Distiller(student, teacher, together, task=LabelledCrossEntropy())
    distiller.set_epoch(20, 240)
    losses = distiller(torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3]), {}, torch.arange(3))
    assert all(math.isfinite(loss.item()) and loss.item() > 0 for loss in losses.values())
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_weights_are_the_published_ones():
    network = CIFARResNet(8, (4, 4, 8, 8))
    for some in all_terms(network, network).values():
        for term in some:
            assert term.weight_at(100, 240) == WEIGHTS[term.name.rstrip("0123456789")]


def test_attention_and_vid_compare_all_stages_and_similarity_the_last():
    network = cifar_network("vgg8")
    of = all_terms(network, network)
    stages = ["stages.0", "stages.1", "stages.2", "stages.3"]
    assert [term.student for term in of["at"]] == [term.teacher for term in of["vid"]] == stages
    assert [term.student for term in of["sp"]] == ["stages.3"]
    assert [term.teacher for term in of["fitnet"]] == ["stages.1"]


def test_dkd_has_the_beta_of_the_pair_and_warms_up_over_a_twelfth_of_the_epochs():
    assert [pair.beta for pair in PAIRS.values()] == [8.0, 6.0, 2.0, 6.0]
    network = CIFARResNet(8, (4, 4, 8, 8))
    (term,) = all_terms(network, network, beta=6.0)["dkd"]
    assert (term.loss.alpha, term.loss.beta, term.loss.temperature) == (1.0, 6.0, 4.0)
    assert [term.weight_at(epoch, 240) for epoch in (0, 10, 20, 200)] == [0.0, 0.5, 1.0, 1.0]
    (trial,) = all_terms(network, network, epochs=24)["dkd"]
    assert [trial.weight_at(epoch, 24) for epoch in (0, 1, 2)] == [0.0, 0.5, 1.0]


def test_alone_compares_nothing():
    with pytest.raises(InputError, match="unknown method 'alone'"):
        terms("alone", 8.0, *[CIFARResNet(8, (4, 4, 8, 8))] * 2, samples=8)


@pytest.fixture
def data():
    images = TensorDataset(torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))
    return ImageSplits(images, images, images, ("a", "b"), (0.0,) * 3, (1.0,) * 3, 32, "cifar100", deterministic=False)


@pytest.fixture
def given(monkeypatch):
    """What the loop is given, run by run; nothing is trained."""
    given, nothing = [], Fit(pd.DataFrame(), {}, "epochs")
    monkeypatch.setattr(cifar100, "fit", lambda one, loader, **how: given.append((one, loader, how)) or nothing)
    return given


def test_the_loop_is_given_the_published_optimiser_and_its_schedule(data, given, tmp_path):
    run(data, "resnet56-resnet20", "alone", protocol(240), None, out=tmp_path)
    ((objective, loader, how),) = given
    (group,) = how["optimizer"].param_groups
    assert group.items() >= {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}.items()
    assert {id(one) for one in group["params"]} == {id(one) for one in objective.parameters()}
    assert (how["epochs"], loader.batch_size, len(loader)) == (240, 64, 1)
    how["scheduler"].last_epoch = 149
    how["optimizer"].step()
    how["scheduler"].step()
    assert group["lr"] == pytest.approx(0.005)


def test_cross_entropy_weighs_a_tenth_beside_kd_and_1_beside_the_others(data, given, tmp_path):
    teacher = cifar_network("resnet56", 2)
    for method in METHODS[1:]:
        run(data, "resnet56-resnet20", method, protocol(), teacher, out=tmp_path)
    weights = dict(zip(METHODS[1:], (objective.task_weight for objective, _, _ in given), strict=True))
    assert weights == dict.fromkeys(METHODS[1:], 1.0) | {"kd": 0.1}


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_loop_is_given_the_settings_of_speed(channels_last, data, given, tmp_path):
    asked = replace(protocol(), precision="bf16", compile=True, accumulate=2, channels_last=channels_last)
    run(data, "resnet56-resnet20", "alone", asked, None, out=tmp_path)
    ((objective, _, how),) = given
    assert (how["precision"], how["compile"], how["accumulate"]) == ("bf16", True, 2)
    assert is_channels_last(objective) == channels_last


def test_the_seed_is_that_of_the_start_and_of_the_loop(data, given, tmp_path):
    for seed in (3, 3, 4):
        run(data, "resnet56-resnet20", "alone", protocol(1, seed), None, out=tmp_path)
    assert [how["seed"] for _, _, how in given] == [3, 3, 4]
    one, again, other = (objective.student.classifier.weight for objective, _, _ in given)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_every_method_of_the_loss_zoo_is_reproduced_or_refused_with_a_reason():
    known = {name.lower() for name in loss_zoo.METHODS} - {"fitnets"} | {"fitnet"}
    assert known == {*METHODS, *NOT_HERE}
    for method in NOT_HERE:
        with pytest.raises(InputError, match=f"{method} is not reproduced: .{{20}}"):
            check_names("vgg13-vgg8", ["kd", method])


@pytest.mark.parametrize(
    ("pair", "method", "said"),
    [
        ("resnet32x4-resnet8x", "kd", "unknown pair 'resnet32x4-resnet8x'. Did you mean 'resnet32x4-resnet8x4'"),
        ("vgg13-vgg8", "fitnets", "unknown method 'fitnets'. Did you mean 'fitnet'"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(pair, method, said):
    with pytest.raises(InputError, match=said):
        check_names(pair, [method])


# --- the table -------------------------------------------------------------------------------------------------------


def test_published_rows_say_of_which_epoch_they_are():
    for pair in PAIRS.values():
        assert {"teacher", *METHODS} >= pair.published.keys()
        for published in pair.published.values():
            assert 50 < published.accuracy < 100
            assert published.epoch in ("last", "best", "not stated")
    assert {PAIRS[name].published["crd"].epoch for name in PAIRS} == {"last"}
    assert {PAIRS[name].published["dkd"].epoch for name in PAIRS} == {"best"}


def test_a_row_has_both_epochs_in_percent_with_their_intervals_beside_the_published_one():
    ours = row("resnet32x4-resnet8x4", "kd", [0.73, 0.74, 0.72], [0.75, 0.75, 0.75])
    assert ours["seeds"] == 3
    assert (ours["last"], ours["best"]) == pytest.approx((73.0, 75.0))
    assert ours["last_interval"] == pytest.approx(4.302653 / 3**0.5)  # Student's t of 2 degrees of freedom; deviation 1
    assert ours["best_interval"] == pytest.approx(0.0, abs=1e-9)
    assert (ours["published"], ours["published_epoch"], ours["source"]) == (73.33, "last", "RepDistiller")


def test_a_row_of_one_seed_has_no_interval_and_one_that_nobody_published_says_so():
    ours = row("vgg13-vgg8", "sp", [0.5], [0.5])
    assert math.isnan(ours["last_interval"])
    assert math.isnan(ours["published"])
    assert ours["source"] == ""
