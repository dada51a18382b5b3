"""Chapter 05 without a browser: the generated map and its widget, pure functions first, and the checks' hints."""

import math
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from kdlab.classroom import check
from kdlab.classroom.check.masked import OWNERS
from kdlab.classroom.masked import ALL, generate, left_activity, mask_explorer, nested_mask
from kdlab.classroom.pictures import coloured
from kdlab.losses import MGDLoss

GREY = [217, 217, 217]


@pytest.fixture(params=["spatial", "channel"])
def loss(request):
    return MGDLoss(4, 6, mask_ratio=0.5, mask=request.param).eval()


class TestGenerate:
    def test_the_mask_hides_its_share_of_positions_or_channels(self):
        spatial = nested_mask(MGDLoss(4, 6, 0.25), 40, 50, seed=1)
        channel = nested_mask(MGDLoss(4, 2000, 0.25, "channel"), 4, 5, seed=1)
        assert spatial.shape == (1, 40, 50)
        assert channel.shape == (2000, 1, 1)
        assert spatial.mean() == pytest.approx(0.75, abs=0.03)
        assert channel.mean() == pytest.approx(0.75, abs=0.03)

    def test_what_is_masked_at_a_ratio_is_masked_at_every_higher_one(self, loss):
        masks = []
        for loss.mask_ratio in (0.0, 0.25, 0.5, 0.75, 1.0):
            masks.append(nested_mask(loss, 8, 8, seed=3))
        assert all((after <= before).all() for before, after in pairwise(masks))
        assert masks[0].min() == 1
        assert masks[-1].max() == 0
        loss.mask_ratio = 0.5
        assert not torch.equal(nested_mask(loss, 8, 8, seed=4), masks[2])

    def test_it_is_what_the_loss_compares(self, loss, monkeypatch):
        student, teacher = torch.randn(4, 5, 5), torch.randn(6, 5, 5)
        seen = generate(loss, student, teacher, variance=2.0, seed=0)
        monkeypatch.setattr(loss, "_kept", lambda maps: seen.kept[None])
        whole = loss(student[None], teacher[None]).item()
        assert seen.error == pytest.approx(whole / teacher.numel() / 2.0, rel=1e-4)
        torch.testing.assert_close(seen.left, loss.align(student[None])[0] * seen.kept)

    def test_the_errors_of_both_kinds_of_positions_make_the_whole(self):
        loss = MGDLoss(4, 6, mask_ratio=0.5)
        seen = generate(loss, torch.randn(4, 8, 8), torch.randn(6, 8, 8), 1.0, seed=0)
        share = seen.kept.mean().item()
        assert 0 < share < 1
        assert seen.error == pytest.approx(share * seen.kept_error + (1 - share) * seen.masked_error, rel=1e-4)

    def test_there_is_no_error_where_there_is_no_such_position(self):
        student, teacher = torch.randn(4, 8, 8), torch.randn(6, 8, 8)
        nothing = generate(MGDLoss(4, 6, 0.0), student, teacher, 1.0, seed=0)
        everything = generate(MGDLoss(4, 6, 1.0), student, teacher, 1.0, seed=0)
        channels = generate(MGDLoss(4, 6, 0.5, "channel"), student, teacher, 1.0, seed=0)
        assert math.isnan(nothing.masked_error)
        assert nothing.kept_error == pytest.approx(nothing.error)
        assert math.isnan(everything.kept_error)
        assert everything.masked_error == pytest.approx(everything.error)
        assert math.isnan(channels.masked_error)
        assert math.isnan(channels.kept_error)

    def test_with_everything_masked_all_students_are_alike(self, loss):
        loss.mask_ratio = 1.0
        made = [generate(loss, torch.randn(4, 5, 5), torch.randn(6, 5, 5), 1.0, seed=0).made for _ in range(2)]
        assert torch.equal(*made)

    def test_it_leaves_the_random_numbers_alone(self, loss):
        state = torch.get_rng_state()
        generate(loss, torch.randn(4, 5, 5, generator=torch.Generator()), torch.zeros(6, 5, 5), 1.0, seed=0)
        assert torch.equal(state, torch.get_rng_state())


class TestPicture:
    def test_masked_positions_are_nan_and_grey(self):
        seen = generate(MGDLoss(4, 6, 0.5), torch.randn(4, 8, 8), torch.randn(6, 8, 8), 1.0, seed=0)
        left = left_activity(seen)
        assert torch.equal(left.isnan(), seen.kept[0] == 0)
        assert ((coloured(left) == torch.tensor(GREY)).all(dim=-1) == left.isnan()).all()

    def test_a_channel_mask_has_no_grey(self):
        seen = generate(MGDLoss(4, 6, 0.5, "channel"), torch.randn(4, 8, 8), torch.randn(6, 8, 8), 1.0, seed=0)
        assert left_activity(seen).isfinite().all()

    def test_limits_are_shared_where_given(self):
        values = torch.tensor([[0.0, 1.0]])
        assert torch.equal(coloured(values), coloured(2 * values))
        assert torch.equal(coloured(values, (0.0, 2.0))[0, 1], coloured(torch.tensor([[0.0, 1.0, 2.0]]))[0, 1])

    @pytest.mark.parametrize("values", [torch.zeros(2, 2), torch.full((2, 2), torch.nan)])
    def test_flat_and_empty_maps_are_drawn(self, values):
        assert coloured(values).shape == (2, 2, 3)


class TestMaskExplorer:
    @pytest.fixture
    def panel(self):
        torch.manual_seed(0)
        losses = {kind: MGDLoss(4, 6, mask=kind).eval() for kind in ("spatial", "channel")}
        images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
        return mask_explorer(images, torch.randn(3, 4, 8, 8), torch.randn(3, 6, 8, 8), losses)

    def test_it_shows_four_pictures_and_the_numbers(self, panel):
        assert len(re.findall(r'<img alt="[^"]+"', panel.view.value)) == 4
        hidden, total = re.search(r"mask ratio 0.50: (\d+) of (\d+) positions masked", panel.view.value).groups()
        assert 15 < int(hidden) < 49
        assert total == "64"
        assert re.search(r"[\d.]+ at masked positions, [\d.]+ at kept positions", panel.view.value)

    @pytest.mark.parametrize(("control", "value"), [("scene", 2), ("mask", "channel"), ("channel", 3), ("ratio", 0.9)])
    def test_every_control_redraws(self, panel, control, value):
        before = panel.view.value
        getattr(panel, control).value = value
        assert panel.view.value != before

    def test_the_button_draws_another_mask_of_the_same_ratio(self, panel):
        seen = [panel.view.value]
        for _ in range(3):
            panel.another.click()
            seen.append(panel.view.value)
        assert len(set(seen)) == 4
        assert all("mask ratio 0.50" in html for html in seen)

    def test_at_the_ends_only_the_positions_that_are_there_are_named(self, panel):
        panel.ratio.value = 0.0
        assert "at kept positions" in panel.view.value
        assert "at masked positions" not in panel.view.value
        panel.ratio.value = 1.0
        assert "64 of 64 positions masked" in panel.view.value
        assert "at kept positions" not in panel.view.value

    def test_channels_are_counted_where_channels_are_masked(self, panel):
        panel.mask.value = "channel"
        assert re.search(r"\d of 6 channels masked", panel.view.value)
        assert "at masked" not in panel.view.value

    def test_a_chosen_channel_is_named_and_the_teachers_stays_while_the_ratio_moves(self, panel):
        assert panel.channel.options[0] == (ALL, ALL)
        panel.channel.value = 2
        before = panel.view.value
        assert "the teacher&#x27;s, channel 2" in before
        panel.ratio.value = 0.75
        teachers = [re.findall(r'src="([^"]+)"', html)[-1] for html in (before, panel.view.value)]
        made = [re.findall(r'src="([^"]+)"', html)[-2] for html in (before, panel.view.value)]
        assert teachers[0] == teachers[1]
        assert made[0] != made[1]


def kept(maps, ratio):
    return (torch.rand(len(maps), 1, *maps.shape[2:]) < 1 - ratio).float()


def mgd(generator, aligned, kept, teacher):
    return (generator(aligned * kept) - teacher.detach()).square().sum() / len(teacher)


def apart(g, a, k, t):
    return (g(a * k) - t).square()


def count(a, b, align=True, convolutions=2, bias=True, kernel=9):
    return align * (a != b) * (a * b + b) + convolutions * (kernel * b * b + bias * b)


MASK, LOSS, ALPHA, COUNT, OWNER = (
    check.spatial_mask, check.mgd_loss, check.carried_alpha, check.generator_parameters, check.mask_owners,
)  # fmt: skip
SLIPS = {
    "mask of kept share": (MASK, lambda m, r: kept(m, 1 - r), "share that is masked"),
    "mask of each number": (MASK, lambda m, r: (torch.rand_like(m) < 1 - r).float(), "each channel has a mask"),
    "mask of the batch": (MASK, lambda m, r: kept(m[:1], r), "whole batch has one mask"),
    "mask without batch": (MASK, lambda m, r: kept(m[:1], r)[0, 0], "whole batch has one mask"),
    "mask repeated": (MASK, lambda m, r: kept(m[:1], r).expand(len(m), 1, -1, -1), "all images have the same mask"),
    "mask of channels": (MASK, lambda m, r: (torch.rand(*m.shape[:2], 1, 1) < 1 - r).float(), "masks channels"),
    "mask without channels": (MASK, lambda m, r: kept(m, r)[:, 0], "must be 1"),
    "mask transposed": (MASK, lambda m, r: kept(m, r).movedim(0, -1), "shape: yours is"),
    "mask that rescales": (MASK, lambda m, r: kept(m, r) / (1 - r), "other numbers than 0 and 1, such as 4"),
    "mask of another share": (MASK, lambda m, r: kept(m, 0.5), "wanted: about 25%"),
    "mask always the same": (
        MASK,
        lambda m, r: (torch.rand(len(m), 1, 40, 50, generator=torch.Generator().manual_seed(0)) < 1 - r).float(),
        "two calls gave the same mask",
    ),
    "mask that ignores the ratio": (MASK, lambda m, r: kept(m, 0.75), "wanted: about 70% at a mask_ratio of 0.3"),
    "mask with h and w exchanged": (MASK, lambda m, r: kept(m.mT, r), "shape: yours is (6, 1, 50, 40)"),
    "mask that raises": (MASK, lambda m, r: missing, "your code raised NameError"),
    "no mask": (MASK, lambda m, r: None, "no answer yet"),
    "a number for a mask": (MASK, lambda m, r: 0.25, "you gave a float"),
    "mean over all": (LOSS, lambda g, a, k, t: apart(g, a, k, t).mean(), "mean over all elements"),
    "sum over all": (LOSS, lambda g, a, k, t: apart(g, a, k, t).sum(), "summed over the images"),
    "nothing masked": (LOSS, lambda g, a, k, t: apart(g, a, 1, t).sum() / 4, "nothing is masked"),
    "placeholder": (LOSS, lambda g, a, k, t: apart(g, a, 1, t).mean(), "nothing is masked yet, and the mean"),
    "the kept masked": (LOSS, lambda g, a, k, t: mgd(g, a, 1 - k, t), "where the map stays"),
    "masked after": (LOSS, lambda g, a, k, t: (g(a) * k - t).square().sum() / 4, "mask first"),
    "masked positions only": (LOSS, lambda g, a, k, t: (apart(g, a, k, t) * (1 - k)).sum() / 4, "masked positions"),
    "kept positions only": (LOSS, lambda g, a, k, t: (apart(g, a, k, t) * k).sum() / 4, "kept positions only"),
    "teacher masked": (LOSS, lambda g, a, k, t: mgd(g, a, k, t * k), "teacher's map is not masked"),
    "a length": (LOSS, lambda g, a, k, t: apart(g, a, k, t).sum().sqrt() / 4, "its square"),
    "a half": (LOSS, lambda g, a, k, t: mgd(g, a, k, t) / 2, "one half"),
    "not detached": (LOSS, lambda g, a, k, t: apart(g, a, k, t).sum() / len(t), "gradient reaches the teacher"),
    "a batch of four": (LOSS, lambda g, a, k, t: apart(g, a, k, t.detach()).sum() / 4, "for a batch of two"),
    "a plain number": (LOSS, lambda *of: mgd(*of).item(), "no gradient reaches the student"),
    "detached": (LOSS, lambda *of: mgd(*of).detach(), "no gradient reaches the student"),
    "a student detached": (LOSS, lambda g, a, k, t: mgd(g, a.detach(), k, t), "no gradient reaches the student"),
    "a student alone detached": (
        LOSS,
        lambda g, a, k, t: apart(g, a.detach(), k, t).sum() / len(t),
        "no gradient reaches the student",
    ),
    "alpha unchanged": (ALPHA, 2e-5, "weigh less"),
    "alpha divided": (ALPHA, 2e-5 / 2048, "larger weight"),
    "alpha of positions": (ALPHA, 2e-5 * 64, "channels too"),
    "alpha of channels": (ALPHA, 2e-5 * 32, "positions too"),
    "alpha of one side": (ALPHA, 2e-5 * 32 * 8, "64 times as many"),
    "alpha of one side alone": (ALPHA, 2e-5 * 8, "two sides"),
    "count of weights": (COUNT, lambda a, b: 9 * b * b, "weights of one convolution"),
    "one convolution": (COUNT, lambda a, b: count(a, b, convolutions=1), "two convolutions"),
    "no alignment": (COUNT, lambda a, b: count(a, b, align=False), "aligns the channels"),
    "alignment upwards alone": (COUNT, lambda a, b: count(a, b, align=a < b), "aligns the channels"),
    "no biases": (COUNT, lambda a, b: count(a, b, bias=False), "generator's convolutions have biases"),
    "alignment without bias": (COUNT, lambda a, b: count(a, b) - b, "alignment has a bias"),
    "no bias at all": (COUNT, lambda a, b: a * b + 18 * b * b, "each convolution has a bias"),
    "kernels of 1x1": (COUNT, lambda a, b: count(a, b, kernel=1), "3x3"),
    "student's channels": (COUNT, lambda a, b: a * b + b + count(a, a), "teacher's channels"),
    "always aligned": (COUNT, lambda a, b: a * b + b + count(b, b), "nothing needs to be aligned"),
    "no owners": (OWNER, None, "for each of A, B and C"),
    "owners in lists": (OWNER, {name: [task] for name, task in OWNERS.items()}, "for each of A, B and C"),
    "an owner left out": (
        OWNER,
        {name: task for name, task in OWNERS.items() if name != "B"},
        "for each of A, B and C",
    ),
    "an unknown owner": (OWNER, OWNERS | {"A": "restoration"}, "for each of A, B and C"),
    "two of one owner": (OWNER, OWNERS | {"A": "segmentation"}, "each task has one"),
    "channels missed": (
        OWNER,
        {"A": "classification", "B": "two-stage detection", "C": "segmentation"},
        "masks whole channels",
    ),
    "ratio the other way": (
        OWNER,
        {"A": "segmentation", "B": "classification", "C": "two-stage detection"},
        "A and C are exchanged",
    ),
}


@pytest.mark.parametrize(("graded", "answer", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, answer, hint, capsys):
    assert graded(answer) is False
    assert hint in capsys.readouterr().out


RIGHT = {
    "mask": (check.spatial_mask, kept),
    "boolean mask": (check.spatial_mask, lambda m, r: kept(m, r).bool()),
    "loss": (check.mgd_loss, mgd),
    "alpha": (check.carried_alpha, 2e-5 * 2048),
    "alpha to two digits": (check.carried_alpha, 0.041),
    "count": (check.generator_parameters, count),
    "owners": (check.mask_owners, OWNERS),
}


@pytest.mark.parametrize(("graded", "answer"), RIGHT.values(), ids=RIGHT)
def test_a_right_answer_passes_and_leaves_the_random_numbers_alone(graded, answer, capsys):
    state = torch.get_rng_state()
    assert graded(answer) is True
    assert capsys.readouterr().out == "✓ Right.\n"
    assert torch.equal(state, torch.get_rng_state())


def test_the_masks_of_the_last_exercise_have_the_official_shapes_and_ratios():
    masks = check.drawn_masks()
    ratios = {"two-stage detection": 0.45, "classification": 0.15, "segmentation": 0.75}
    for name, mask in masks.items():
        assert 1 - mask.mean().item() == pytest.approx(ratios[OWNERS[name]], abs=0.02)
        assert (mask.shape[1] == 1) == (OWNERS[name] != "classification")


def test_the_counted_parameters_are_the_librarys():
    assert count(48, 64) == sum(p.numel() for p in MGDLoss(48, 64).parameters())
    assert count(64, 64) == sum(p.numel() for p in nn.ModuleList(MGDLoss(64, 64).generator).parameters())
