"""Two-stage restoration: the terms of each stage, the published schedule, the switch, and what is refused."""

import math
import re
import warnings
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from instead_of_training import SeenError, asked_of_the_loop
from layout import is_channels_last
from torch import nn
from torch.utils.data import TensorDataset

from kdlab import InputError
from kdlab.data.pairs import Pair, PairedImages
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller, Taps
from kdlab.files import load_tensors
from kdlab.losses import CKTLoss, HCRLoss, SCRLoss
from kdlab.models import MSBDN
from kdlab.recipes import restoration, restorer
from kdlab.recipes.restoration import (
    RestorationSettings,
    StageBatches,
    TwoStage,
    distill,
    learning_rate,
    losses_by_part,
    teach,
)
from kdlab.recipes.restorer import ToClean, fit_restorer
from kdlab.training import Fit, ModelCard, Supervised, load_model
from kdlab.training.checkpoints import LAST, RESUME

pytestmark = pytest.mark.usefixtures("one_thread")

WEATHERS = ("haze", "rain", "snow")
TINY = {"width": 2, "residual": True}
QUICK = RestorationSettings(epochs=4, lr=1e-3, batch_size=3, warm_up=1)
PLAN = TwoStage(detach=True, reconstruction=1.0, eps=1e-2)


class TwoMaps(nn.Module):
    """In VGG19's place: five maps of an image."""

    weights_used = "none: a pair of hands"

    def forward(self, images):
        return [images * factor for factor in (1, 2, 3, 4, 5)]


def images(count, crop=None, weathers=WEATHERS):
    random = torch.Generator().manual_seed(count)
    clean = torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)
    pairs = [
        Pair((clean[i] // 2 + 20 * number).to(torch.uint8), clean[i], weather, f"{weather}{i}")
        for i in range(count) for number, weather in enumerate(weathers)
    ]  # fmt: skip
    return PairedImages(pairs, weathers, crop)


@pytest.fixture(scope="module")
def data():
    triple = (0.0, 0.0, 0.0)
    train, val = images(2, crop=32), images(1)
    return ImageSplits(train, val, val, WEATHERS, triple, (1.0,) * 3, 32, "noise", deterministic=False)


@pytest.fixture(scope="module")
def teachers():
    torch.manual_seed(1)
    return {weather: MSBDN(TINY["width"]) for weather in WEATHERS}  # no one starts as the identity


def objective(teachers, plan=PLAN, epochs=4, weathers=WEATHERS, width=2):
    torch.manual_seed(0)
    return plan.objective(MSBDN(width, residual=True), teachers, TwoMaps(), weathers, epochs)


def batch(weathers=(0, 1, 2)):
    random = torch.Generator().manual_seed(5)
    degraded, clean = torch.rand(2, len(weathers), 3, 32, 32, generator=random)
    return degraded, [clean, torch.tensor(weathers)]


# --- the published schedule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (1, 1.33e-4), (3, 4.0e-4), (4, 4.0e-4), (5, 4.0e-4), (50, 3.67e-4), (125, 2.07e-4), (126, 2.04e-4),
        (200, 4.15e-5), (250, 1.02e-6),
    ],
)  # fmt: skip
def test_the_rate_is_the_published_one(epoch, rate):
    assert learning_rate(epoch, epochs=250, base=4e-4) == pytest.approx(rate, rel=4e-3)


def test_a_run_goes_through_it_epoch_by_epoch_without_a_restart(data, teachers):
    settings = replace(QUICK, epochs=6)
    _, done = distill(data, teachers, PLAN, TwoMaps(), settings, architecture=TINY)
    base = settings.lr * settings.batch_size / 16
    assert done.history.lr.tolist() == pytest.approx([learning_rate(e, 6, base, warm_up=1) for e in range(1, 7)])
    assert done.history.lr.iloc[3] < done.history.lr.iloc[2]  # over the switch


# --- the stages ------------------------------------------------------------------------------------------------------


def projected(maps, projector):
    """By two convolutions of 3x3 without a bias, and a ReLU between them."""
    first, last = projector[0].weight, projector[2].weight
    return F.conv2d(F.conv2d(maps, first, padding=1).relu(), last, padding=1)


def test_the_first_stage_is_the_published_sum(teachers):
    torch.manual_seed(0)
    d = TwoStage().objective(MSBDN(2), teachers, TwoMaps(), WEATHERS, epochs=4)
    assert isinstance(d, Distiller)
    d.set_epoch(0, 4)
    degraded, (clean, weather) = batch((0, 1, 2, 2, 1, 0))
    losses = d(degraded, [clean, weather])
    terms = {term.name: term for term in d.terms}
    with Taps(d.student, MSBDN.TAPS) as mine:
        restored = d.student(degraded)
    told, pfe, pfv = torch.zeros_like(degraded), 0.0, 0.0
    for number, name in enumerate(WEATHERS):
        with Taps(teachers[name], MSBDN.TAPS) as its, torch.no_grad():
            told[weather == number] = teachers[name](degraded[weather == number])
        for tap in MSBDN.TAPS:
            place = tap.replace(".", "_")
            term, shared = terms[f"ckt_{name}_{place}"], terms[f"ckt_haze_{place}"].student_connector
            common = projected(its[tap], term.teacher_connector)
            pfe += (projected(mine[tap][weather == number], shared) - common).abs().mean() / 3
            pfv += (projected(common, term.reconstruction) - its[tap]).abs().mean() / 3
    image = sum(losses[f"image_{name}"] for name in WEATHERS) / 3
    torch.testing.assert_close(image, (restored - told).abs().mean())
    scr = SCRLoss(TwoMaps())([restored, degraded], told)
    torch.testing.assert_close(losses["scr"], scr)
    parts = losses_by_part({name: value.item() for name, value in losses.items()})
    assert (parts["PFE"], parts["PFV"]) == (pytest.approx(pfe.item()), pytest.approx(pfv.item()))
    torch.testing.assert_close(losses["total"], image + pfe + 0.05 * pfv + 0.1 * scr)
    assert losses["hcr"] == 0
    assert sum(k.startswith("ckt") for k in losses) == 2 * 4 * 3  # four taps, three teachers, there and back


def test_the_second_stage_is_the_clean_images_and_all_degraded_ones(teachers):
    d = objective(teachers)
    d.set_epoch(2, 4)
    degraded, labels = batch()
    losses = d(degraded, labels)
    restored = d.student(degraded)
    hcr = HCRLoss(TwoMaps(), eps=1e-2)([restored, degraded], labels[0])
    torch.testing.assert_close(losses["hcr"], hcr)
    torch.testing.assert_close(losses["total"], (restored - labels[0]).abs().mean() + 0.2 * hcr)
    assert losses["image_haze"] == losses["ckt_snow_bottleneck"] == losses["scr"] == 0


def test_the_teachers_are_silent_in_the_second_stage_and_clean_images_are_not_learnt_from_in_the_first(teachers):
    d = objective(teachers)
    degraded, (clean, weather) = batch()
    for epoch, other_teachers, other_clean in ((0, True, False), (3, False, True)):
        d.set_epoch(epoch, 4)
        total = d(degraded, [clean, weather])["total"]
        assert (d(degraded, [clean.flip(-1), weather])["total"] != total) == other_clean
        swapped = {**teachers, "haze": teachers["rain"], "rain": teachers["haze"]}
        other = objective(swapped)
        other.set_epoch(epoch, 4)
        other.load_state_dict(d.state_dict())
        assert (other(degraded, [clean, weather])["total"] != total) == other_teachers


def test_a_teacher_is_known_by_its_name_and_not_by_its_place(teachers):
    turned = dict(reversed(teachers.items()))
    first, second = objective(teachers), objective(turned)
    for d in (first, second):
        d.set_epoch(0, 4)
    assert first(*batch())["total"] == second(*batch())["total"]


def test_the_common_space_of_the_published_network_has_the_published_size(teachers):
    with torch.device("meta"):
        networks = {name: MSBDN() for name in WEATHERS}
        d = TwoStage().objective(MSBDN(), networks, TwoMaps(), WEATHERS, epochs=250)
    student = {id(p) for p in d.student.parameters()}
    assert sum(p.numel() for p in d.parameters() if id(p) not in student) == 10_229_760
    assert TwoStage().switch(250) == 125


@pytest.mark.parametrize("positive", ["teacher", "target"])
def test_negatives_of_the_same_weather_are_those_of_no_other(positive, teachers):
    d = objective(teachers, replace(PLAN, positive=positive, negatives="same_weather"))
    d.set_epoch(0, 4)
    degraded, (clean, weather) = batch((0, 1, 2, 2, 1, 0))
    losses, restored = d(degraded, [clean, weather]), d.student(degraded)
    for number, name in enumerate(WEATHERS):
        mine = weather == number
        wanted = teachers[name](degraded[mine]) if positive == "teacher" else clean[mine]
        scr = SCRLoss(TwoMaps(), negatives="same_weather", eps=1e-2)([restored[mine], degraded[mine]], wanted)
        torch.testing.assert_close(losses[f"scr_{name}"], scr)
    assert "scr" not in losses
    term = next(term for term in d.terms if term.name == "scr_haze")
    assert term.weight_at(0, 4) == pytest.approx(0.1 / 3)


def test_the_target_as_positive_is_one_contrast_over_the_whole_batch(teachers):
    d = objective(teachers, replace(PLAN, positive="target"))
    d.set_epoch(0, 4)
    degraded, labels = batch()
    expected = SCRLoss(TwoMaps(), eps=1e-2)([d.student(degraded), degraded], labels[0])
    torch.testing.assert_close(d(degraded, labels)["scr"], expected)


@pytest.mark.parametrize(
    ("plan", "there", "not_there"),
    [
        (replace(PLAN, ckt=0.0), {"image_haze", "scr", "hcr"}, {"ckt_haze_bottleneck"}),
        (replace(PLAN, scr=0.0), {"image_haze", "ckt_haze_bottleneck", "hcr"}, {"scr"}),
        (replace(PLAN, hcr=0.0), {"image_haze", "ckt_haze_bottleneck", "scr"}, {"hcr"}),
        (replace(PLAN, collation=1.0), {"image_haze"}, {"hcr"}),
        (replace(PLAN, collation=0.0), {"hcr"}, {"image_haze", "ckt_haze_bottleneck", "scr"}),
    ],
)
def test_what_is_left_out_is_not_there(plan, there, not_there, teachers):
    d = objective(teachers, plan)
    d.set_epoch(0, 4)
    losses = d(*batch())
    assert there <= losses.keys()
    assert not not_there & losses.keys()


@pytest.mark.parametrize("left_out", ["image", "ckt", "scr", "hcr", None])
@pytest.mark.parametrize("negatives", ["paired", "same_weather"])
def test_losses_by_part_weighted_are_the_total(left_out, negatives, teachers):
    plan = replace(PLAN, negatives=negatives, **({left_out: 0.0} if left_out else {}))
    weights = {"image": plan.image, "PFE": plan.ckt, "PFV": plan.reconstruction, "SCR": plan.scr}
    d = objective(teachers, plan)
    for epoch, weigh in ((0, weights), (2, {"task": 1.0, "HCR": plan.hcr})):
        d.set_epoch(epoch, 4)
        losses = {name: value.item() for name, value in d(*batch((0, 1, 2, 2, 1, 0))).items()}
        parts = losses_by_part(losses)
        total = sum(weight * parts[part] for part, weight in weigh.items() if part in parts)
        assert total == pytest.approx(losses["total"], rel=1e-5)
    names = {"image": {"image"}, "ckt": {"PFE", "PFV"}, "scr": {"SCR"}, "hcr": {"HCR"}, None: set()}
    assert parts.keys() == {*weights, "task", "HCR"} - names[left_out]


def test_without_stages_and_contrast_it_is_plain_training():
    alone = objective({}, TwoStage(collation=0.0, hcr=0.0))
    assert isinstance(alone, Supervised)
    degraded, labels = batch()
    torch.testing.assert_close(alone(degraded, labels)["total"], ToClean()(alone.student(degraded), labels))


def test_plain_training_has_the_distance_that_was_asked_for():
    alone = objective({}, TwoStage(collation=0.0, hcr=0.0, pixel="mse"))
    degraded, labels = batch()
    torch.testing.assert_close(alone(degraded, labels)["total"], (alone.student(degraded) - labels[0]).square().mean())


def test_squared_errors_are_taken_to_teachers_and_to_clean_images(teachers):
    squared = objective(teachers, replace(PLAN, pixel="mse"))
    assert isinstance(squared, Distiller)
    degraded, (clean, weather) = batch()
    restored = squared.student(degraded)
    squared.set_epoch(0, 4)
    told = torch.cat([teachers[name](degraded[[number]]) for number, name in enumerate(WEATHERS)])
    image = sum(squared(degraded, [clean, weather])[f"image_{name}"] for name in WEATHERS) / 3
    torch.testing.assert_close(image, (restored - told).square().mean())
    squared.set_epoch(3, 4)
    torch.testing.assert_close(squared(degraded, [clean, weather])["task"], (restored - clean).square().mean())


@pytest.mark.parametrize(("pixel", "power"), [("l1", 1), ("mse", 2)])
def test_a_teacher_is_taught_by_the_distance_that_was_asked_for(pixel, power, data, tmp_path):
    still = replace(QUICK, epochs=1, warm_up=0, lr=1e-9)
    done = teach(data, WEATHERS, still, out=tmp_path, pixel=pixel, architecture=TINY)  # it starts as the identity
    batches = [(degraded - clean).abs() ** power for degraded, (clean, _) in data.train]
    assert done.history.task[0] == pytest.approx(torch.stack(batches).mean().item(), rel=1e-4)
    assert load_model(tmp_path)[1].recipe["pixel"] == pixel


def test_a_student_of_another_width_meets_its_teachers_in_the_common_space(teachers):
    d = objective(teachers, width=4)
    d.set_epoch(0, 4)
    d(*batch())["total"].backward()
    assert all(p.grad is not None for p in d.student.parameters())


def test_every_part_learns_and_no_teacher_does(teachers):
    d = objective(teachers, replace(PLAN, detach=False))
    d.set_epoch(0, 4)
    d(*batch())["total"].backward()
    assert all(p.grad is not None for p in d.parameters())
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())


@pytest.mark.parametrize("detach", [True, False])
def test_detached_projections_of_the_teachers_learn_nothing_from_the_student(detach, teachers):
    plan = replace(PLAN, detach=detach, image=0.0, scr=0.0, reconstruction=0.0)
    d = objective(teachers, plan, weathers=("haze",))
    d.set_epoch(0, 4)
    d(*batch((0,)))["total"].backward()
    weights = [p for term in d.terms if term.teacher_connector is not None for p in term.teacher_connector.parameters()]
    assert all((p.grad is None or not p.grad.any()) == detach for p in weights)
    assert not TwoStage().detach


@pytest.mark.parametrize(("collation", "epochs", "switch"), [(0.5, 4, 2), (0.3, 5, 2), (0.4, 3, 1), (0.0, 9, 0)])
def test_the_second_stage_begins_at_the_epoch_nearest_to_the_share(collation, epochs, switch):
    assert TwoStage(collation=collation).switch(epochs) == switch


def test_in_one_stage_the_clean_images_teach_nothing(teachers):
    d = objective(teachers, replace(PLAN, collation=1.0, ckt=0.0, scr=0.0), weathers=("haze",))
    d.set_epoch(3, 4)
    losses = d(*batch((0, 0)))
    assert losses["task"] > 0
    assert losses["total"] == losses["image_haze"]


def test_teachers_of_other_weathers_than_the_datas_are_left_alone(teachers):
    haze = {"haze": teachers["haze"]}
    d, alone = (objective(known, weathers=("haze",)) for known in ({**haze, "fog": MSBDN(4)}, haze))
    assert [(term.name, term.of) for term in d.terms] == [(term.name, term.of) for term in alone.terms]
    assert d.teachers.keys() == alone.teachers.keys()


# --- runs ------------------------------------------------------------------------------------------------------------


def test_a_network_is_taught_one_weather(data, tmp_path):
    fit = teach(data, ["rain"], replace(QUICK, batch_size=2), out=tmp_path / "rain", architecture=TINY)
    assert len(fit.history) == 4
    model, card = load_model(tmp_path / "rain")
    assert isinstance(model, MSBDN)
    assert card.classes == ("rain",)
    assert {"psnr", "ssim", "psnr_y", "ssim_y", "psnr_rain", "ssim_rain"} <= set(card.metrics)
    assert "psnr_haze" not in card.metrics


def test_the_student_is_saved_alone(data, teachers, tmp_path):
    student, done = distill(data, teachers, PLAN, TwoMaps(), QUICK, out=tmp_path, architecture=TINY)
    assert done.history.hcr.tolist()[:2] == [0, 0]
    assert all(done.history.hcr[2:] > 0)
    assert all(done.history.image_haze[:2] > 0)
    assert done.history.image_haze.tolist()[2:] == [0, 0]
    model, card = load_model(tmp_path / LAST)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    assert card.recipe["features"] == "none: a pair of hands"
    assert set(card.recipe["teachers"]) == set(WEATHERS)


class KilledError(Exception):
    """In place of the signal."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_that_is_killed_goes_on_to_the_same_bits_across_the_switch(data, teachers, tmp_path, after):
    whole, _ = distill(data, teachers, PLAN, TwoMaps(), QUICK, out=tmp_path / "whole", architecture=TINY)

    def kill(row):
        if row["epoch"] > after:  # before this epoch is saved
            raise KilledError
        return False

    with pytest.raises(KilledError):
        distill(data, teachers, PLAN, TwoMaps(), QUICK, out=tmp_path / "cut", architecture=TINY, after_epoch=kill)
    assert len(load_tensors(tmp_path / "cut" / RESUME)[1]["rows"]) == after
    resumed, done = distill(
        data, teachers, PLAN, TwoMaps(), QUICK, out=tmp_path / "cut", architecture=TINY, resume=True
    )
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    columns = ["total", "lr", "val_psnr"]
    expected = pd.read_csv(tmp_path / "whole" / "history.csv")[columns]
    pd.testing.assert_frame_equal(done.history[columns], expected)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_loop_is_given_all_settings(channels_last, data, tmp_path, monkeypatch):
    given = {}

    def loop(objective, loader, **options):
        given.update(options, channels_last=is_channels_last(objective.student))
        return Fit(pd.DataFrame(), {}, "epochs")

    monkeypatch.setattr(restorer, "fit", loop)
    asked = {"epochs": 3, "seed": 5, "patience": 3, "max_norm": 0.5}
    asked |= {"precision": "bf16", "compile": True, "accumulate": 3, "channels_last": channels_last}
    teach(data, WEATHERS, replace(QUICK, **asked), out=tmp_path, architecture=TINY)
    assert given.items() >= asked.items()


@pytest.fixture
def asked(monkeypatch):
    return asked_of_the_loop(monkeypatch, restoration)


def test_a_restorer_is_measured_on_validation_images_and_not_on_the_tests(data, teachers, asked, tmp_path):
    others = replace(data, test=images(3))
    teach(others, ["rain"], replace(QUICK, batch_size=2), out=tmp_path, architecture=TINY)
    distill(others, teachers, PLAN, TwoMaps(), QUICK, architecture=TINY)
    taught, distilled = asked
    assert [pair.name for pair in taught.train.pairs] == ["rain0", "rain1"]
    assert [pair.name for pair in taught.val.pairs] == ["rain0"]
    assert (distilled.train, distilled.val) == (others.train, others.val)


def test_whether_a_run_goes_on_is_handed_on(data, asked, tmp_path):
    for resume in (True, False):
        teach(data, WEATHERS, QUICK, out=tmp_path, architecture=TINY, resume=resume)
        distill(data, {}, TwoStage(collation=0.0), TwoMaps(), QUICK, architecture=TINY, resume=resume)
    assert [run.resume for run in asked] == [True, True, False, False]


def test_images_are_loaded_by_as_many_processes_as_the_settings_say(data, monkeypatch, tmp_path):
    loaders, nothing = [], Fit(pd.DataFrame(), {}, "epochs")
    monkeypatch.setattr(restorer, "fit", lambda _, loader, **__: loaders.append(loader) or nothing)
    teach(data, WEATHERS, replace(QUICK, workers=2), out=tmp_path, architecture=TINY)
    assert loaders[0].num_workers == 2


def test_the_start_is_the_seeds(data, teachers, monkeypatch, tmp_path):
    drawn = []

    def start(**_):
        drawn.append(torch.rand(()).item())
        raise SeenError

    monkeypatch.setattr(restoration, "MSBDN", start)
    for settings in (QUICK, QUICK, replace(QUICK, seed=1)):
        with pytest.raises(SeenError):
            teach(data, WEATHERS, settings, out=tmp_path)
        with pytest.raises(SeenError):
            distill(data, teachers, PLAN, TwoMaps(), settings)
    for one, same, other in (drawn[::2], drawn[1::2]):
        assert one == same != other


def test_a_recipe_has_the_plan_the_clean_images_and_the_teachers_that_were_listened_to(data, teachers, asked):
    known = {**teachers, "fog": teachers["haze"]}
    for plan in (replace(PLAN, hcr=0.3), replace(PLAN, collation=0.0)):
        distill(data, known, plan, TwoMaps(), QUICK, architecture=TINY, paired=range(3))
    two_stages, second_alone = (run.card.recipe for run in asked)
    assert two_stages.items() >= {"weathers": list(WEATHERS), **asdict(replace(PLAN, hcr=0.3))}.items()
    assert two_stages["paired"] == [0, 1, 2]
    assert two_stages["architecture"] == MSBDN(**TINY).architecture
    assert two_stages["teachers"].keys() == set(WEATHERS)
    assert second_alone["teachers"] == {}
    assert (asked[0].card.mean, asked[0].card.std) == (data.mean, data.std)
    assert asked[0].batches.second.strata == {weather: [place] for place, weather in enumerate(WEATHERS)}


def test_the_second_stage_draws_only_what_has_a_clean_image():
    train = images(4)
    paired = [i for i, pair in enumerate(train.pairs) if pair.name.endswith("1")]
    batches = StageBatches(train, 3, paired, switch=2)
    for epoch, allowed in ((0, set(range(12))), (1, set(range(12))), (2, set(paired)), (3, set(paired))):
        batches.set_epoch(epoch)
        drawn = [index for one in batches for index in one]
        assert len(drawn) == 3 * len(batches)
        assert set(drawn) == allowed


@pytest.mark.parametrize(("plan", "epochs"), [(PLAN, 3), (replace(PLAN, collation=1), 2)])
def test_patience_does_not_end_a_run_before_its_second_stage(data, teachers, plan, epochs, monkeypatch):
    quality = iter([4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(restorer, "restoration_metrics", lambda *_: {"psnr": next(quality)})
    _, done = distill(data, teachers, plan, TwoMaps(), replace(QUICK, patience=1), architecture=TINY)
    assert (done.ended, len(done.history)) == ("patience", epochs)


def test_a_collapsed_common_space_is_warned_of(data, teachers):
    d = objective(teachers, epochs=2)
    space = next(module for module in d.modules() if isinstance(module, CKTLoss))
    space.first.fill_(1e6)
    card = ModelCard(d.student.architecture, WEATHERS, data.mean, data.std, data.size)
    with pytest.warns(UserWarning, match="have collapsed") as warned:
        fit_restorer(
            d, StageBatches(data.train, 3, None, 1), data.train, data.val, replace(QUICK, epochs=2), out=None, card=card
        )  # fmt: skip
    (said,) = [str(one.message) for one in warned if "collapsed" in str(one.message)]  # once, not in each epoch
    assert re.match(r"\d+ of 12 .* ckt_haze_encoder_dense_2: .* 0\.0% .*--detach", said)


def test_the_warning_names_the_most_collapsed_of_the_spaces(teachers):
    d = objective(teachers)
    spaces = {term.name: term.loss for term in d.terms if isinstance(term.loss, CKTLoss)}
    for space, shrunk in zip(spaces.values(), (0.5, 0.009, 0.011, 0.001, 0.002), strict=False):
        space.first.fill_(1.0)
        space.last.fill_(shrunk)
    worst = list(spaces)[3]
    with pytest.warns(UserWarning, match=rf"^3 of 12 .* {worst}: its projections are 0\.1%"):
        assert restorer._warn_of_collapse(d, 0, 4)
    assert not restorer._warn_of_collapse(d, 2, 4)


def test_a_space_that_the_second_stage_leaves_behind_is_not_warned_of(data, teachers, tmp_path):
    def run(**options):
        d = objective(teachers, epochs=2)
        card = ModelCard(d.student.architecture, WEATHERS, data.mean, data.std, data.size)
        space = next(module for module in d.modules() if isinstance(module, CKTLoss))
        batches, settings = StageBatches(data.train, 3, None, 1), replace(QUICK, epochs=2)
        return fit_restorer(
            d, batches, data.train, data.val, settings, out=tmp_path / "run", card=card,
            after_epoch=lambda row: space.first.fill_(1e6).any(), **options,
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run().ended == "stopped"  # after the first stage, in which the space was alive
        assert len(run(resume=True).history) == 2


def test_pieces_with_other_shares_of_the_weathers_are_refused(data, teachers):
    four = replace(data, train=images(4, crop=32))
    settings = replace(QUICK, epochs=2, batch_size=12, accumulate=3)
    with pytest.raises(InputError, match="a batch has 4 samples of each kind, which cannot be divided into 3 equal"):
        distill(four, teachers, PLAN, TwoMaps(), settings, architecture=TINY)
    distill(four, teachers, PLAN, TwoMaps(), replace(settings, accumulate=2), architecture=TINY)


def test_a_space_that_lives_is_not_warned_of(data, teachers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distill(data, teachers, PLAN, TwoMaps(), replace(QUICK, epochs=2), architecture=TINY)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_weather_without_a_teacher_is_named(teachers):
    two = {name: teachers[name] for name in ("haze", "snow")}
    with pytest.raises(InputError, match="no teacher for rain; the data has haze, rain, snow and there are teachers"):
        objective(two)
    objective(two, replace(PLAN, collation=0.0))  # where no teacher speaks none is wanted


def test_a_first_stage_that_is_left_out_needs_nothing_to_learn_from():
    TwoStage(collation=0.0, image=0.0, ckt=0.0, scr=0.0)


@pytest.mark.parametrize("name", ["truth", "truth of haze"])
def test_a_weather_that_is_called_like_the_clean_images_is_refused(teachers, name):
    with pytest.raises(InputError, match=rf"a weather is called '{name}'.* Rename its folder"):
        PLAN.objective(MSBDN(**TINY), {**teachers, name: teachers["rain"]}, TwoMaps(), ["haze", name], 4)


def test_teachers_of_different_widths_are_refused(teachers):
    with pytest.raises(InputError, match=r"widths are \{'haze': 2, 'rain': 2, 'snow': 4\}; wanted: one width"):
        objective({**teachers, "snow": MSBDN(4)})


def test_a_weather_may_be_called_as_a_folder_may_be(teachers):
    d = objective({"heavy.rain": teachers["rain"]}, weathers=("heavy.rain",))
    d.set_epoch(0, 4)
    assert "image_heavy_rain" in d(*batch((0, 0)))


def test_a_weather_that_the_data_lacks_is_named(data, tmp_path):
    with pytest.raises(InputError, match="no image in fog; there are: haze, rain, snow"):
        teach(data, ["fog"], QUICK, out=tmp_path, architecture=TINY)


def test_data_without_pairs_is_refused(data, teachers):
    with pytest.raises(InputError, match="the data is TensorDataset; wanted: pairs"):
        distill(replace(data, train=TensorDataset(torch.zeros(2))), teachers, PLAN, TwoMaps(), QUICK, architecture=TINY)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TwoStage(collation=1.5), "collation is 1.5"),
        (lambda: TwoStage(image=-1.0), "image is -1.0"),
        (lambda: TwoStage(ckt=-1.0), "ckt is -1.0"),
        (lambda: TwoStage(reconstruction=-1.0), "reconstruction is -1.0"),
        (lambda: TwoStage(scr=-1.0), "scr is -1.0"),
        (lambda: TwoStage(image=0.0, ckt=0.0, scr=0.0), "the first stage would have nothing to learn from"),
        (lambda: TwoStage(positive="truth"), "'truth'"),
        (lambda: TwoStage(pixel="l2"), "'l2'"),
        (lambda: RestorationSettings(epochs=3), "warm_up is 3"),
        (lambda: RestorationSettings(warm_up=-1), "warm_up is -1"),
        (lambda: RestorationSettings(lr=0.0), "lr is 0"),
        (lambda: RestorationSettings(max_norm=math.nan), "max_norm is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        make()
