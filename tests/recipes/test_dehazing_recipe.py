"""Dehazing: what teacher and student learn, the published schedule, the frozen statistics, and what is refused."""

from dataclasses import asdict, replace

import pytest
import torch
from instead_of_training import SeenError, asked_of_the_loop
from torch import nn

from kdlab import InputError
from kdlab.data.pairs import Pair, PairedImages
from kdlab.data.splits import ImageSplits
from kdlab.distill import Distiller
from kdlab.files import load_tensors
from kdlab.losses import LabLoss, LaplacianLoss
from kdlab.models import KTDN, SRKTDN, DehazingTeacher
from kdlab.recipes import dehazing
from kdlab.recipes.dehazing import NARROW, NARROW_TEACHER, Dehazing, DehazingSettings, distill, teach
from kdlab.training import Supervised, load_model
from kdlab.training.checkpoints import LAST, RESUME

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"widths": (16, 32, 128), "blocks": (1, 1, 1), "channels": 2}
TINY_TEACHER = {"widths": (16, 32, 64), "blocks": (1, 1, 1), "middle": 128, "channels": 2}
QUICK = DehazingSettings(epochs=2, lr=1e-3, batch_size=2, steps=2, freeze_from=1)
HAZES = ("dense", "thin")


def images(count, crop=None):
    random = torch.Generator().manual_seed(count)
    clean = torch.randint(256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)
    pairs = [Pair(clean[i] // 2 + 90, clean[i], haze, f"{haze}{i}") for i in range(count) for haze in HAZES]
    return PairedImages(pairs, HAZES, crop)


@pytest.fixture(scope="module")
def data():
    triple = (0.0, 0.0, 0.0)
    return ImageSplits(images(2, 32), images(1), images(1), HAZES, triple, (1.0,) * 3, 32, "noise", deterministic=False)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return DehazingTeacher(**TINY_TEACHER)


def batch(n=2):
    hazy, clean = torch.rand(2, n, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    return hazy, [clean, torch.zeros(n, dtype=torch.long)]


def student(kind=SRKTDN):
    torch.manual_seed(0)
    return kind(**TINY)


# --- what is learnt --------------------------------------------------------------------------------------------------


def test_a_student_learns_the_published_sum(teacher):
    d = Dehazing().objective(student(), teacher)
    d.student.eval()
    hazy, (clean, haze) = batch()
    losses = d(hazy, [clean, haze])
    restored = d.student(hazy)
    parts = {
        "task": (1.0, (restored - clean).abs().mean()),
        "laplacian": (0.3, LaplacianLoss()(restored, clean)),
        "lab": (0.5, LabLoss()(restored, clean)),
    }
    mine, its = [], []
    for network, seen, where in ((d.student, hazy, mine), (teacher, clean, its)):
        hook = network.middle.register_forward_hook(lambda module, given, result, where=where: where.append(result))
        network(seen)
        hook.remove()
    parts["transfer"] = (1.0, (mine[0] - its[0]).abs().mean())
    assert losses.keys() == parts.keys() | {"total"}
    for name, (_, value) in parts.items():
        torch.testing.assert_close(losses[name], value)
    torch.testing.assert_close(losses["total"], sum(weight * value for weight, value in parts.values()))


def test_the_teacher_sees_the_clean_image_and_not_the_hazy_one(teacher):
    d = Dehazing().objective(student(), teacher)
    hazy, (clean, haze) = batch()
    known = d.observe_teacher(hazy, [clean, haze])["teacher/middle"]
    assert torch.equal(d.observe_teacher(hazy.flip(-1), [clean, haze])["teacher/middle"], known)
    assert not torch.equal(d.observe_teacher(hazy, [clean.flip(-1), haze])["teacher/middle"], known)


def test_of_the_teacher_nothing_runs_behind_its_map(teacher):
    """The first pass learns what can be left out."""
    d = Dehazing().objective(student(), teacher)
    ran = []
    parts = (("middle", teacher.middle), ("up", teacher.up[0]), ("enhancer", teacher.enhancer), ("tail", teacher.tail))
    hooks = [part.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, part in parts]
    d(*batch())
    assert ran == ["middle", "up", "enhancer", "tail"]
    for _ in range(3):
        ran.clear()
        d(*batch())
        assert ran == ["middle"]
    for hook in hooks:
        hook.remove()


def test_the_gradient_reaches_all_of_the_student_and_nothing_of_the_teacher(teacher):
    d = Dehazing().objective(student(), teacher)
    d(*batch())["total"].backward()
    assert all(p.grad is not None for p in d.student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert {id(p) for p in d.parameters()} == {id(p) for p in d.student.parameters()}
    assert not teacher.training


def test_without_transfer_the_teacher_has_no_part_in_it(teacher):
    plan = Dehazing(transfer=0.0)
    with_one, without = (plan.objective(student(), one) for one in (teacher, None))
    assert with_one(*batch())["total"] == without(*batch())["total"]
    assert "transfer" not in with_one(*batch())
    assert isinstance(Dehazing(laplacian=0.0, lab=0.0).objective(student()), Supervised)


@pytest.mark.parametrize("name", ["l1", "laplacian", "lab"])
def test_one_distance_to_the_clean_image_is_enough(name):
    plan = Dehazing(**{one: float(one == name) for one in ("l1", "laplacian", "lab", "transfer")})
    losses = plan.objective(student())(*batch())
    assert losses["total"] == losses["task" if name == "l1" else name]


def test_transfer_alone_beside_l1_is_a_distiller(teacher):
    d = Dehazing(laplacian=0.0, lab=0.0).objective(student(), teacher)
    assert isinstance(d, Distiller)
    assert d(*batch()).keys() == {"task", "transfer", "total"}


def test_the_clamp_takes_the_gradient_of_all_that_the_tanh_has_below_0():
    """The trap: all black pixels of a network that has once gone below 0 there stay as they are, for ever."""
    shares = {}
    for clamp in (True, False):
        d = Dehazing(clamp=clamp).objective(student())
        outputs = []
        d.student.register_forward_hook(lambda module, given, result, outputs=outputs: outputs.append(result))
        losses = d(*batch())
        (gradient,) = torch.autograd.grad(losses["total"], outputs[0])
        below = outputs[0] < 0
        shares[clamp] = (gradient[below] == 0).double().mean().item()
        assert 0.2 < below.double().mean() < 0.8  # a tanh's start
        assert (gradient[~below] == 0).double().mean() < 0.01
    assert shares[True] == 1
    assert shares[False] < 0.01
    assert not Dehazing().clamp


def test_where_the_image_is_within_0_to_1_the_clamp_changes_nothing(shapes_unchecked):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid())
    values = [Dehazing(clamp=clamp).objective(network)(*batch())["total"] for clamp in (True, False)]
    torch.testing.assert_close(*values)


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "rate"), [(1, 1e-4), (4, 1e-4), (5, 9.75e-5), (9, 9.50625e-5), (400, 8.16e-6)])
def test_the_rate_is_the_published_one(epoch, rate):
    settings = DehazingSettings()
    assert settings.rate(epoch, settings.base(15)) == pytest.approx(rate, rel=1e-3)


def test_the_defaults_are_the_published_ones():
    settings = DehazingSettings()
    assert (settings.epochs, settings.steps, settings.batch_size, settings.freeze_from) == (400, 100, 15, 100)
    assert Dehazing() == Dehazing(l1=1.0, laplacian=0.3, lab=0.5, transfer=1.0)


@pytest.mark.parametrize("published", [DehazingSettings(), dehazing.FAST])
@pytest.mark.parametrize("epochs", [1, 3, 100, 150, 800])
def test_a_schedule_drawn_out_or_pressed_together_ends_where_it_did(published, epochs):
    settings = published.over(epochs)
    falls = [one.decay ** (one.epochs / one.every) for one in (settings, published)]
    assert falls[0] == pytest.approx(falls[1])
    assert 1 <= settings.every <= published.every
    assert settings.freeze_from == max(1, round(epochs * published.freeze_from / published.epochs))


def test_statistics_that_are_never_frozen_or_always_stay_so_in_another_schedule():
    for freeze_from in (None, 0):
        assert DehazingSettings(freeze_from=freeze_from).over(100).freeze_from == freeze_from


def test_a_rate_may_stay_as_it_is():
    assert DehazingSettings(decay=1.0).rate(400, 1e-4) == 1e-4


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    return out, teach(data, QUICK, out=out, architecture=TINY_TEACHER)


def test_the_teacher_learns_from_clean_images_alone(taught, data, monkeypatch):
    out, done = taught
    network, card = load_model(out)
    assert isinstance(network, DehazingTeacher)
    assert card.recipe.items() >= {"task": "auto-encode", "laplacian": 0.3, "epochs": 2, "turned": True}.items()
    assert card.weights.startswith("none: a random start, because there are no ImageNet weights for ResNet18")
    assert done.history.columns.isin(["task", "laplacian", "lab", "total", "val_psnr", "val_psnr_dense"]).sum() == 6
    seen = []

    def look(objective, batches, train, val, *_, **__):
        seen.append((train, val))
        return done

    monkeypatch.setattr(dehazing, "fit_restorer", look)
    teach(data, QUICK, out=out, architecture=TINY_TEACHER)
    train, val = seen[0]
    assert train.turned
    assert not val.turned
    for images_seen in (train, val):
        for index in range(len(images_seen)):
            torch.manual_seed(index)
            image, (clean, _) = images_seen[index]
            assert torch.equal(image, clean)


@pytest.fixture
def asked(monkeypatch):
    return asked_of_the_loop(monkeypatch, dehazing)


def test_a_network_is_measured_on_validation_images_and_not_on_the_tests(data, teacher, asked, tmp_path):
    others = replace(data, test=images(3))
    teach(others, QUICK, out=tmp_path, architecture=TINY_TEACHER, weights="none")
    distill(others, teacher, Dehazing(), QUICK, architecture=TINY, weights="none")
    for run in asked:
        assert [pair.name for pair in run.train.pairs] == ["dense0", "thin0", "dense1", "thin1"]
        assert [pair.name for pair in run.val.pairs] == ["dense0", "thin0"]


def test_the_start_is_the_seeds(data, monkeypatch, tmp_path):
    drawn = []

    def start(*_):
        drawn.append(torch.rand(()).item())
        raise SeenError

    monkeypatch.setattr(dehazing, "_network", start)
    for settings in (QUICK, QUICK, replace(QUICK, seed=1)):
        with pytest.raises(SeenError):
            teach(data, settings, out=tmp_path)
        with pytest.raises(SeenError):
            distill(data, None, Dehazing(), settings)
    for one, same, other in (drawn[::2], drawn[1::2]):
        assert one == same != other


def test_recipe_and_objective_are_of_the_plan_that_was_given(data, teacher, asked, tmp_path):
    plan, settings = Dehazing(lab=0.0, laplacian=0.2, transfer=0.0), replace(QUICK, steps=1, turned=False)
    teach(data, settings, out=tmp_path, plan=plan, architecture=TINY_TEACHER, weights="none")
    distill(data, teacher, plan, settings, architecture=TINY, weights="none")
    for run in asked:
        assert [(term.name, term.weight) for term in run.objective.terms] == [("laplacian", 0.2)]
        assert run.card.recipe.items() >= {"weights": "none", **asdict(plan)}.items()
        assert run.card.weights == "none: a random start"
        assert (len(run.batches), run.train.turned) == (1, False)
    assert asked[1].card.recipe["teacher"] is None


@pytest.mark.parametrize("super_resolution", [True, False])
def test_a_student_comes_with_and_without_the_branch(super_resolution, data, taught, tmp_path):
    teacher = load_model(taught[0])[0]
    network, done = distill(
        data, teacher, Dehazing(), QUICK, super_resolution=super_resolution, out=tmp_path, architecture=TINY
    )
    assert type(network) is (SRKTDN if super_resolution else KTDN)
    again, card = load_model(tmp_path / LAST)
    assert type(again) is type(network)
    assert card.recipe["teacher"] is not None
    assert card.recipe["task"] == "dehaze"
    hazy = torch.rand(1, 3, 33, 40)
    torch.testing.assert_close(again(hazy), network.eval()(hazy), rtol=1e-4, atol=1e-5)
    assert done.history.lr.tolist() == [1e-3, 1e-3]
    assert (done.history.transfer > 0).all()


def test_the_statistics_stay_from_the_frozen_epoch_on(data):
    settings = replace(QUICK, epochs=1, freeze_from=None)
    short, _ = distill(data, None, Dehazing(), settings, architecture=TINY)
    long, _ = distill(data, None, Dehazing(), replace(settings, epochs=2, freeze_from=1), architecture=TINY)
    went_on, _ = distill(data, None, Dehazing(), replace(settings, epochs=2), architecture=TINY)
    after_one, frozen, moved = (network.state_dict() for network in (short, long, went_on))
    statistics = [name for name in after_one if "running" in name]
    assert len(statistics) > 20
    assert all(torch.equal(after_one[name], frozen[name]) for name in statistics)
    assert not any(torch.equal(after_one[name], moved[name]) for name in statistics)
    assert not torch.equal(after_one["tail.1.weight"], frozen["tail.1.weight"])


def test_a_resumed_run_ends_as_if_left_alone_over_the_freezing(data, teacher, tmp_path):
    settings = replace(QUICK, epochs=3, freeze_from=2)
    common = {"architecture": TINY}
    distill(data, teacher, Dehazing(), settings, out=tmp_path / "alone", **common)
    distill(
        data, teacher, Dehazing(), settings, out=tmp_path / "cut", after_epoch=lambda row: row["epoch"] == 2, **common
    )
    assert (tmp_path / "cut" / RESUME).exists()
    distill(data, teacher, Dehazing(), settings, out=tmp_path / "cut", resume=True, **common)
    alone, cut = (load_tensors(tmp_path / name / LAST)[0] for name in ("alone", "cut"))
    assert all(torch.equal(alone[name], cut[name]) for name in alone)
    assert load_model(tmp_path / "cut" / LAST)[1].weights.startswith("none: a random start, because")


def test_training_brings_a_student_nearer_to_its_teacher_and_to_the_clean_images(data, teacher):
    settings = replace(QUICK, epochs=3, steps=6, lr=3e-3, freeze_from=None)
    _, done = distill(data, teacher, Dehazing(), settings, architecture=TINY)
    for name in ("task", "transfer", "total"):
        assert done.history[name].iloc[-1] < done.history[name].iloc[0]


def test_the_narrow_networks_meet():
    with torch.device("meta"):
        network, teacher = SRKTDN(**NARROW), DehazingTeacher(**NARROW_TEACHER)
    assert network.tap_channels == teacher.tap_channels
    assert sum(p.numel() for p in network.parameters()) < 1_000_000
    assert sum(p.numel() for p in teacher.parameters()) < 1_000_000


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda data: Dehazing(l1=-1.0), "l1 is -1.0"),
        (lambda data: Dehazing(laplacian=-1.0), "laplacian is -1.0"),
        (lambda data: Dehazing(lab=-1.0), "lab is -1.0"),
        (lambda data: Dehazing(transfer=-1.0), "transfer is -1.0"),
        (lambda data: Dehazing(l1=0.0, laplacian=0.0, lab=0.0), "nothing tells the network what a clean image is"),
        (lambda data: DehazingSettings(decay=0.0), "decay is 0.0"),
        (lambda data: DehazingSettings(decay=1.01), "decay is 1.01"),
        (lambda data: DehazingSettings(every=0), "every 0"),
        (lambda data: DehazingSettings(freeze_from=-1), "freeze_from is -1"),
        (lambda data: DehazingSettings(max_norm=0.0), "max_norm is 0.0"),
        (
            lambda data: Dehazing().objective(student(), DehazingTeacher(**TINY_TEACHER | {"middle": 384})),
            "has 384 channels and the student's 128",
        ),
        (
            lambda data: distill(data, None, Dehazing(), replace(QUICK, batch_size=3), architecture=TINY),
            "batch_size is 3; wanted: a multiple of 2",
        ),
        (lambda data: distill(data, None, Dehazing(), replace(QUICK, steps=0), architecture=TINY), "batches is 0"),
        (
            lambda data: distill(data, None, Dehazing(), QUICK, architecture=TINY, weights="imagenet"),
            "no ImageNet weights for Res2Net101",
        ),
        (
            lambda data: distill(replace(data, train=[1]), None, Dehazing(), QUICK, architecture=TINY),
            "the data is list; wanted: pairs",
        ),
    ],
)
def test_what_cannot_be_is_named(call, sentence, data, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        call(data)
