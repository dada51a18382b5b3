"""The published protocol: its schedule, its optimiser, its terms, and the rows that it is compared with."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from layout import is_channels_last
from states import same
from torch import nn
from torch.utils.data import TensorDataset

from kdlab import InputError
from kdlab.data.splits import ImageSplits
from kdlab.distill import ConvConnector, Distiller, Taps
from kdlab.distill.reader import Reader
from kdlab.losses import LabelledCrossEntropy
from kdlab.models import CIFARResNet, WideResNet, cifar_network
from kdlab.models.cifar import NETWORKS
from kdlab.recipes import cifar100, loss_zoo
from kdlab.recipes.cifar100 import (
    METHODS,
    NOT_HERE,
    Paraphrasing,
    before_relu,
    check_names,
    first_phase,
    optimizer,
    protocol,
    row,
    run,
    schedule,
    stage_maps,
    terms,
)
from kdlab.recipes.cifar100_table import PAIRS
from kdlab.training import Fit, Supervised

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = {
    "kd": 0.9, "dkd": 1.0, "dist": 1.0, "hint": 100.0, "at": 1000.0, "vid": 1.0, "sp": 3000.0, "pkt": 30000.0,
    "rkd": 1.0, "crd": 0.8, "ft": 200.0, "fsp": 1.0,
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
    of = all_terms(network, network)
    assert [term.weight for term in of.pop("ab")] == [1 / 4, 1 / 2, 1.0]
    for some in of.values():
        for term in some:
            assert term.weight_at(100, 240) == WEIGHTS[term.name.rstrip("0123456789")]


def test_attention_and_vid_compare_all_stages_and_similarity_and_factors_the_last():
    network = cifar_network("vgg8")
    of = all_terms(network, network)
    stages = ["stages.0", "stages.1", "stages.2", "stages.3"]
    assert [term.student for term in of["at"]] == [term.teacher for term in of["vid"]] == stages
    assert [term.student for term in of["sp"]] == [term.teacher for term in of["ft"]] == ["stages.3"]
    layers = ["stem", *stages]
    assert [term.student for term in of["fsp"]] == list(pairwise(layers))
    assert [term.teacher for term in of["fitnet"]] == ["stages.1"]


def test_dkd_has_the_beta_of_the_pair_and_warms_up_over_a_twelfth_of_the_epochs():
    assert [pair.beta for pair in PAIRS.values()] == [8.0, 6.0, 2.0, 6.0]
    network = CIFARResNet(8, (4, 4, 8, 8))
    (term,) = all_terms(network, network, beta=6.0)["dkd"]
    assert (term.loss.alpha, term.loss.beta, term.loss.temperature) == (1.0, 6.0, 4.0)
    assert [term.weight_at(epoch, 240) for epoch in (0, 10, 20, 200)] == [0.0, 0.5, 1.0, 1.0]
    (trial,) = all_terms(network, network, epochs=24)["dkd"]
    assert [trial.weight_at(epoch, 24) for epoch in (0, 1, 2)] == [0.0, 0.5, 1.0]


def test_the_temperature_of_kd_and_the_two_weights_of_rkd_are_the_published_ones():
    network = CIFARResNet(8, (4, 4, 8, 8))
    of = all_terms(network, network)
    (kd,), (rkd,) = of["kd"], of["rkd"]
    assert kd.loss.temperature == 4
    assert (rkd.loss.distance_weight, rkd.loss.angle_weight) == (25, 50)


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


def test_cross_entropy_weighs_a_tenth_beside_kd_1_beside_the_others_and_is_all_after_ab_and_fsp(data, given, tmp_path):
    teacher, last = cifar_network("resnet56", 2), {}
    for method in METHODS[1:]:
        run(data, "resnet56-resnet20", method, protocol(), teacher, out=tmp_path)
        last[method] = given[-1][0]
    for method in ("ab", "fsp"):
        assert isinstance(last.pop(method), Supervised)
    assert {method: objective.task_weight for method, objective in last.items()} == dict.fromkeys(last, 1.0) | {
        "kd": 0.1
    }


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


def test_the_seed_is_that_of_the_teachers_start_too(data, given, monkeypatch):
    monkeypatch.setattr(cifar100, "load_teacher", lambda *_: nn.Identity())
    for seed in (3, 3, 4):
        cifar100.train_teacher(data, "resnet20", protocol(1, seed))
    one, again, other = (objective.student.classifier.weight for objective, _, _ in given)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_who_loads_the_images_is_no_part_of_a_run(data, given, tmp_path):
    for workers in (0, 2):
        run(data, "resnet56-resnet20", "alone", protocol(1, workers=workers), None, out=tmp_path)
    one, other = (how["card"].recipe for _, _, how in given)
    assert one == other


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


# --- a first phase ---------------------------------------------------------------------------------------------------

PAIR = "resnet56-resnet20"


@pytest.mark.parametrize(
    ("method", "student", "rate"),
    [("ab", "vgg8", 0.05), ("fsp", "resnet8x4", 0.05), ("ft", "resnet20", 0.01), ("ft", "wrn-16-2", 0.01),
     ("ft", "vgg8", 0.05)],
)  # fmt: skip
def test_a_first_phase_has_the_published_rate_and_30_epochs_before_240(method, student, rate):
    student = cifar_network(student)
    phases = [first_phase(method, student, protocol(epochs)) for epochs in (240, 24, 8, 1)]
    assert [phase.epochs for phase in phases] == [30, 3, 1, 1]
    assert {(phase.lr, phase.batch_size) for phase in phases} == {(rate, 64)}


@pytest.mark.parametrize(("method", "rate"), [("ab", 0.05), ("fsp", 0.05), ("ft", 0.01)])
def test_both_phases_are_given_to_the_loop_each_with_an_optimiser_of_its_own(method, rate, data, given, tmp_path):
    asked = replace(protocol(24, 3), precision="bf16", compile=True, accumulate=2, channels_last=False)
    told = []
    run(data, PAIR, method, asked, cifar_network("resnet56", 2), out=tmp_path, tell=told.append)
    (first, _, before), (objective, _, after) = given
    assert told == ["first phase, 3 epochs", "second phase, 24 epochs"]
    assert (before["epochs"], before.get("scheduler")) == (3, None)
    assert (after["epochs"], after["scheduler"].base_lrs) == (24, [0.05])
    assert before["out"].parent == after["out"]
    for one, how, lr in ((first, before, rate), (objective, after, 0.05)):
        (group,) = how["optimizer"].param_groups
        assert group.items() >= {"lr": lr, "momentum": 0.9, "weight_decay": 5e-4}.items()
        assert {id(p) for p in group["params"]} == {id(p) for p in one.parameters()}
        assert (how["precision"], how["compile"], how["accumulate"], how["seed"]) == ("bf16", True, 2, 3)
        assert not is_channels_last(one)


def literal(network, images):
    """The stem's map and each stage's, and before its last ReLU, layer after layer, and nothing in place.

    Of a wide ResNet a stage's map is the sum, as published.
    """
    after, before = [network.stem(images)], []
    for place, stage in enumerate(network.stages):
        maps = after[-1]
        if isinstance(network, CIFARResNet):
            for block in stage:
                change = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(maps)))))
                end = change + (maps if block.downsample is None else block.downsample(maps))
                maps = F.relu(end)
        elif isinstance(network, WideResNet):
            norm = network.stages[place + 1][0].norm1 if place < 2 else stage[-2]
            maps = (stage if place < 2 else stage[:-2])(maps)
            end = norm(maps)
        else:
            for layer in stage[:-1]:
                maps = layer(maps)
            end, maps = maps, F.relu(maps)
        after.append(maps)
        before.append(end)
    return after, before


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_maps_before_the_relu_are_read_with_what_is_negative_in_them(name, training):
    network, images = cifar_network(name).train(training), torch.randn(2, 3, 32, 32)
    reader = Reader(before_relu(network))
    _, wanted = literal(network, images)
    for _ in range(2):  # what the first pass has found out, the second one makes use of
        read = list(reader(network, images)[1].values())
        assert [tuple(one.shape[:2]) for one in read] == [(2, channels) for channels in network.channels]
        for one, other in zip(read, wanted, strict=True):
            torch.testing.assert_close(one, other)
            assert (one < 0).any()


def initialising(method, student, teacher):
    return Distiller(student, teacher, terms(method, 8.0, student, teacher, 4), LabelledCrossEntropy(), task_weight=0.0)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_each_stages_map_is_read_where_the_published_one_is(name):
    network, images = cifar_network(name).eval(), torch.randn(2, 3, 32, 32)
    with Taps(network, stage_maps(network)) as taps:
        network(images)
    (_, *wanted), _ = literal(network, images)
    for name, maps in zip(stage_maps(network), wanted, strict=True):
        torch.testing.assert_close(taps[name], maps)
        assert (maps < 0).any() == isinstance(network, WideResNet)


def test_ab_learns_by_the_published_formula_and_nothing_else():
    student, teacher, images = cifar_network("resnet8x4"), cifar_network("resnet32x4"), torch.randn(2, 3, 32, 32)
    losses = initialising("ab", student, teacher)(images, torch.tensor([1, 2]))
    total = 0.0
    for stage, (s, t) in enumerate(zip(literal(student, images)[1], literal(teacher, images)[1], strict=True)):
        wrong = torch.where(t > 0, (s <= 1) * (s - 1) ** 2, (s > -1) * (s + 1) ** 2)
        total += 2.0 ** (stage - 2) * wrong.sum() / 2 * 3 / 1000
    torch.testing.assert_close(losses["total"], total)


def test_fsp_learns_by_the_published_formula_and_nothing_else():
    student, teacher, images = cifar_network("wrn-16-2"), cifar_network("wrn-40-2"), torch.randn(2, 3, 32, 32)
    losses = initialising("fsp", student, teacher)(images, torch.tensor([1, 2]))

    def flows(network):
        for first, last in pairwise(literal(network, images)[0]):
            first = F.adaptive_avg_pool2d(first, last.shape[2:])
            yield torch.einsum("nihw,njhw->nij", first, last) / last.shape[2:].numel()

    total = sum((s - t).square().mean() for s, t in zip(flows(student), flows(teacher), strict=True))
    torch.testing.assert_close(losses["total"], total)


def test_ft_first_learns_to_give_back_the_last_map_of_the_teacher():
    student, teacher, images = cifar_network("resnet8x4"), cifar_network("resnet32x4"), torch.randn(2, 3, 32, 32)
    distiller = Distiller(student, teacher, terms("ft", 8.0, student, teacher, 4), LabelledCrossEntropy())
    objective = Paraphrasing(distiller)
    losses = objective(images, torch.tensor([1, 2]))
    maps, paraphraser = literal(teacher, images)[0][-1], distiller.teacher_connectors["ft"]
    torch.testing.assert_close(losses["total"], (paraphraser.reconstruct(maps) - maps).square().mean())
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in paraphraser.parameters())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in paraphraser.modules())
    assert {id(one) for one in objective.parameters()} == {id(one) for one in paraphraser.parameters()}


def test_ab_learns_a_connector_only_where_the_maps_do_not_meet():
    own, theirs = CIFARResNet(8, (4, 4, 8, 8)), CIFARResNet(8, (4, 4, 8, 16))
    connectors = [term.student_connector for term in terms("ab", 8.0, own, theirs, 4)]
    assert [type(one) for one in connectors] == [type(None), type(None), ConvConnector]
    initialising("ab", own, theirs)(torch.randn(2, 3, 32, 32), torch.tensor([1, 2]))["total"].backward()


@pytest.mark.parametrize("widths", [(8, 4, 8, 8), (4, 4, 8, 16)])
def test_fsp_is_refused_between_networks_of_other_channels(widths):
    student, teacher = CIFARResNet(8, (4, 4, 8, 8)), CIFARResNet(8, widths)
    said = rf"the student have \(4, 4, 8, 8\), those of the teacher \({', '.join(map(str, widths))}\); wanted: the same"
    with pytest.raises(InputError, match=said):
        terms("fsp", 8.0, student, teacher, 4)


@pytest.fixture
def phases(monkeypatch):
    """Each training's objective, and its weights before and after it."""
    phases, loop = [], cifar100.fit

    def noted(objective, loader, **how):
        def state():
            return {name: tensor.clone() for name, tensor in objective.state_dict().items()}

        before = state()
        done = loop(objective, loader, **how)
        phases.append((objective, before, state()))
        return done

    monkeypatch.setattr(cifar100, "fit", noted)
    return phases


def part(state, of):
    return {name.removeprefix(f"{of}."): tensor for name, tensor in state.items() if name.startswith(f"{of}.")}


@pytest.mark.parametrize("method", ["ab", "fsp"])
def test_the_stages_are_initialised_without_the_classifier_and_then_all_goes_on_from_there(
    method, data, phases, tmp_path
):
    run(data, PAIR, method, protocol(1), cifar_network("resnet56", 2), out=tmp_path)
    (_, start, initialised), (_, second, end) = phases
    assert same(part(start, "student.classifier"), part(initialised, "student.classifier"))
    assert not same(part(start, "student.stages"), part(initialised, "student.stages"))
    assert same(part(initialised, "student"), part(second, "student"))
    for trained in ("student.classifier", "student.stages"):
        assert not same(part(second, trained), part(end, trained))


def test_the_paraphraser_learns_first_and_is_frozen_then(data, phases, tmp_path):
    run(data, PAIR, "ft", protocol(1), cifar_network("resnet56", 2), out=tmp_path)
    (_, start, trained), (distiller, second, end) = phases
    encoder = "teacher_connectors.ft.encoder"
    assert not same(part(start, "student.0"), part(trained, "student.0"))
    assert same(part(trained, "student.0"), part(second, encoder))
    assert same(part(second, encoder), part(end, encoder))
    assert not any(one.requires_grad for one in distiller.teacher_connectors.parameters())
    for learns in ("student", "student_connectors.ft"):
        assert not same(part(second, learns), part(end, learns))


def test_a_first_phase_of_another_teacher_is_not_taken_for_this_ones(data, tmp_path):
    run(data, PAIR, "ab", protocol(1), cifar_network("resnet56", 2), out=tmp_path)
    with pytest.raises(InputError, match="first-phase.resume.safetensors belongs to a run with other .*: teacher was"):
        run(data, PAIR, "ab", protocol(1), cifar_network("resnet56", 2), out=tmp_path)


# --- the table -------------------------------------------------------------------------------------------------------


def test_published_rows_say_of_which_epoch_they_are():
    for pair in PAIRS.values():
        assert {"teacher", *METHODS} >= pair.published.keys()
        for published in pair.published.values():
            assert 50 < published.accuracy < 100
            assert published.epoch in ("last", "best", "not stated")
    assert {PAIRS[name].published["crd"].epoch for name in PAIRS} == {"last"}
    assert {PAIRS[name].published["dkd"].epoch for name in PAIRS} == {"best"}
    lacking = {name: {"teacher", *METHODS} - pair.published.keys() for name, pair in PAIRS.items()}
    assert lacking.pop("wrn-40-2-wrn-16-2") == lacking.pop("vgg13-vgg8") == {"dist"}
    assert not any(lacking.values())


def test_a_row_has_both_epochs_in_percent_with_their_intervals_beside_the_published_one():
    ours = row("resnet32x4-resnet8x4", "kd", [0.73, 0.74, 0.72], [0.75, 0.75, 0.75])
    assert ours["seeds"] == 3
    assert (ours["last"], ours["best"]) == pytest.approx((73.0, 75.0))
    assert ours["last_interval"] == pytest.approx(4.302653 / 3**0.5)  # Student's t of 2 degrees of freedom; deviation 1
    assert ours["best_interval"] == pytest.approx(0.0, abs=1e-9)
    assert (ours["published"], ours["published_epoch"], ours["source"]) == (73.33, "last", "RepDistiller")


def test_the_row_of_ft_says_that_it_may_be_of_another_loss():
    rows = {method: row("resnet32x4-resnet8x4", method, [0.7], [0.7]) for method in ("ab", "fsp", "ft")}
    assert [ours["published"] for ours in rows.values()] == [73.17, 72.62, 72.86]
    assert ["another loss" in ours["source"] for ours in rows.values()] == [False, False, True]


def test_a_row_of_one_seed_has_no_interval_and_one_that_nobody_published_says_so():
    ours = row("vgg13-vgg8", "dist", [0.5], [0.5])
    assert math.isnan(ours["last_interval"])
    assert math.isnan(ours["published"])
    assert ours["source"] == ""
