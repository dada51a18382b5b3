"""Chapter 03 without a browser: its pictures, the pure functions of its widgets and their views, and its checks."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.classroom import check
from kdlab.classroom.losses import (
    CORNERS,
    ON_LOGITS,
    ON_MAPS,
    PAIRS,
    STUDENT_POINTS,
    TEACHER_POINTS,
    fitted_connector,
    geometry,
    geometry_explorer,
    gradient_explorer,
    heat_map,
    mean_square,
    mosaic,
    pulled,
    rising,
    show_maps,
)
from kdlab.errors import InputError
from kdlab.losses import ATLoss, DKDLoss, HintLoss, KDLoss

LABELS = torch.tensor([0, 3, 2, 2])
CLASSES = tuple("abcde")
QUARTER_TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


class TestMaps:
    def test_a_mosaic_has_each_channel_as_a_tile(self):
        maps = torch.randn(7, 2, 3)
        tiles = mosaic(maps, columns=3)
        assert tiles.shape == (4, 9)
        torch.testing.assert_close(tiles[2:4, 3:6], maps[4])

    def test_maps_are_shown_as_one_image_with_its_sentence(self, capsys, monkeypatch):
        shown = []
        monkeypatch.setattr("kdlab.classroom.figures.display", shown.append)
        show_maps({"a": torch.rand(3, 4), "b": torch.zeros(2, 2)}, "two maps", signed=["b"])
        assert 'alt="two maps"' in shown[0].data

    def test_only_maps_of_one_scale_share_what_a_colour_means(self, monkeypatch):
        figures = []
        monkeypatch.setattr("kdlab.classroom.losses.show", lambda fig, alt: figures.append(fig))
        maps = {name: torch.tensor([[0.0, top]]) for name, top in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0))}
        show_maps(maps, "four maps", signed=["a", "d"], same_scale=["a", "b"])
        limits = [ax.images[0].get_clim() for ax in figures[0].axes]
        assert limits == [(-2, 2), (0, 2), (0, 3), (-4, 4)]

    def test_maps_without_a_sentence_are_refused(self):
        with pytest.raises(InputError, match="empty text"):
            show_maps({"a": torch.rand(3, 4), "b": torch.rand(3, 4)}, " ")

    def test_a_heat_map_has_a_cell_a_position_and_its_value(self):
        drawn = heat_map(torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.25, 2.0]]), "gradient", signed=True)
        assert re.findall(r"<title>([-\d.]+)</title>", drawn) == ["1", "-2", "0", "0.5", "0.25", "2"]
        colours = re.findall(r'fill="rgb\((\d+),(\d+),(\d+)\)"', drawn)
        assert colours[5] == ("255", "0", "0")  # the strongest rise is red
        assert colours[1] == ("0", "0", "255")  # the strongest fall is blue
        assert colours[2] == ("255", "255", "255")

    @pytest.mark.parametrize("signed", [True, False])
    def test_a_flat_map_is_drawn(self, signed):
        assert heat_map(torch.zeros(2, 2), "flat", signed=signed).count("<rect") == 4


class TestFittedConnector:
    def test_it_finds_the_convolution_that_made_the_maps(self):
        student, made = torch.randn(6, 4, 5, 5), nn.Conv2d(4, 9, 1)
        teacher = made(student).detach()
        torch.testing.assert_close(fitted_connector(student, teacher)(student), teacher, atol=0.02, rtol=0.02)

    def test_nothing_nearby_fits_better(self):
        student, teacher = torch.randn(6, 4, 5, 5), torch.randn(6, 3, 5, 5)
        connector = fitted_connector(student, teacher)
        best = F.mse_loss(connector(student), teacher)
        for _ in range(5):
            with torch.no_grad():
                moved = F.conv2d(student, connector.weight + 0.05 * torch.randn_like(connector.weight), connector.bias)
            assert F.mse_loss(moved, teacher) > best

    def test_a_channel_that_is_never_active_is_no_problem(self):
        student = torch.randn(6, 4, 5, 5).relu()
        student[:, 2] = 0
        connector = fitted_connector(student, torch.randn(6, 3, 5, 5))
        assert connector.weight.isfinite().all()
        assert not connector.weight.requires_grad


class TestPulled:
    def test_it_is_minus_the_gradient_of_one_image(self):
        student, teacher = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
        seen = pulled(HintLoss(), student, teacher, 1)
        torch.testing.assert_close(seen.toward, 2 * (teacher - student)[1] / student[1].numel())
        assert seen.loss == pytest.approx(F.mse_loss(student, teacher).item())

    def test_a_step_along_it_lowers_the_loss(self):
        student, teacher = torch.randn(4, 3, 4, 4), torch.randn(4, 5, 4, 4)
        for name, loss in ON_MAPS.items():
            connector = fitted_connector(student, teacher) if name in ("FitNets", "CWD") else None
            seen = pulled(loss, student, teacher, 2, connector=connector)
            moved = student.clone()
            moved[2] += 0.01 * seen.toward / seen.toward.norm()
            assert pulled(loss, moved, teacher, 2, connector=connector).loss < seen.loss, name

    def test_labels_go_to_a_loss_that_wants_them(self):
        student, teacher = torch.randn(4, 5), torch.randn(4, 5)
        seen = pulled(DKDLoss(), student, teacher, 0, labels=LABELS)
        assert seen.loss == pytest.approx(DKDLoss()(student, teacher, LABELS).item())

    def test_the_inputs_stay_as_they_were(self):
        student = torch.randn(4, 5)
        pulled(KDLoss(), student, torch.randn(4, 5), 0)
        assert not student.requires_grad

    def test_rising_is_how_activity_changes_along_the_pull(self):
        features, toward = torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(3, 4, 4, dtype=torch.float64)
        change = (mean_square(features + 1e-6 * toward) - mean_square(features)) / 1e-6
        torch.testing.assert_close(rising(features, toward), change, atol=1e-4, rtol=1e-4)

    def test_attention_asks_for_activity_where_the_teacher_alone_is_active(self):
        student, teacher = torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.5)
        teacher[:, :, 0, 0] = student[:, :, 3, 3] = 2.0
        change = rising(student[0], pulled(ATLoss(), student, teacher, 0).toward)
        assert change[0, 0] > 0 > change[3, 3]


class TestGradientExplorer:
    @pytest.fixture
    def panel(self):
        layers = {
            "early": (torch.randn(4, 6, 8, 8), torch.randn(4, 9, 8, 8)),
            "late": (torch.randn(4, 8, 4, 4), torch.randn(4, 12, 4, 4)),
        }
        logits = torch.randn(4, 5), torch.randn(4, 5)
        return gradient_explorer(torch.randn(4, 3, 16, 16), LABELS, logits, layers, CLASSES)

    def test_every_loss_and_pair_of_layers_gives_a_picture_of_its_own(self, panel):
        seen = set()
        for loss in (*ON_LOGITS, *ON_MAPS):
            panel.loss.value = loss
            for pair in ("early", "late"):
                panel.layers.value = pair
                assert f"{loss} on " in panel.view.value
                seen.add(panel.view.value)
        assert len(seen) == len(ON_LOGITS) + 2 * len(ON_MAPS)  # layers make no difference to losses on logits

    def test_a_loss_on_logits_has_a_bar_a_class(self, panel):
        panel.loss.value = "DKD"
        assert len(re.findall(r"<title>logit should rise or fall, \w: ", panel.view.value)) == 5

    def test_a_loss_on_maps_shows_both_activities_and_the_pull(self, panel):
        panel.loss.value = "AT"
        assert panel.view.value.count("<svg") == 4
        assert "AT on early" in panel.view.value

    def test_another_image_has_another_pull(self, panel):
        panel.loss.value = "SP"
        before = panel.view.value
        panel.image.value = 3
        assert "image 3: a c" in panel.view.value
        assert before != panel.view.value


class TestGeometry:
    def test_a_turned_moved_and_scaled_copy_costs_nothing(self):
        copy = 1.7 * TEACHER_POINTS @ QUARTER_TURN + torch.tensor([3.0, -1.0])
        seen = geometry(copy, TEACHER_POINTS)
        assert seen.distance_part == pytest.approx(0, abs=1e-9)
        assert seen.angle_part == pytest.approx(0, abs=1e-9)
        assert seen.distances["student"] == pytest.approx(seen.distances["teacher"], abs=1e-4)
        assert seen.angles["student"] == pytest.approx(seen.angles["teacher"], abs=0.1)

    def test_c_and_d_already_are_where_such_a_copy_has_them(self):
        torch.testing.assert_close((1.5 * TEACHER_POINTS @ QUARTER_TURN)[2:], STUDENT_POINTS[2:])

    def test_the_angles_of_each_triangle_are_180_degrees(self):
        seen = geometry(STUDENT_POINTS, TEACHER_POINTS)
        angle = dict(zip(CORNERS, seen.angles["student"], strict=True))
        assert len(CORNERS) == 12
        assert angle[0, 1, 2] + angle[1, 0, 2] + angle[0, 2, 1] == pytest.approx(180, abs=0.1)

    def test_relative_distances_have_mean_one(self):
        seen = geometry(STUDENT_POINTS, TEACHER_POINTS)
        assert sum(seen.distances["student"]) == pytest.approx(len(PAIRS), abs=1e-4)

    def test_two_points_at_one_place_are_drawn(self):
        panel = geometry_explorer()
        for control, value in zip(panel.a, STUDENT_POINTS[2].tolist(), strict=True):
            control.value = value
        assert "nan" not in panel.view.value
        assert "AC" in panel.view.value

    def test_moving_to_the_turned_copy_brings_the_loss_to_zero(self):
        panel = geometry_explorer()
        assert "= 0.000" not in panel.view.value
        for control, value in zip((*panel.a, *panel.b), (-0.9, -1.2, -0.6, 1.2), strict=True):
            control.value = value
        assert "= 0.000" in panel.view.value

    def test_the_mirror_image_costs_nothing_either(self):
        panel = geometry_explorer()
        line = STUDENT_POINTS[2, 0]
        mirrored = (1.5 * TEACHER_POINTS @ QUARTER_TURN)[:2] * torch.tensor([-1.0, 1.0]) + torch.tensor([2 * line, 0.0])
        for control, value in zip((*panel.a, *panel.b), mirrored.flatten().tolist(), strict=True):
            control.value = value
        assert "= 0.000" in panel.view.value

    def test_every_slider_moves_its_point(self):
        panel = geometry_explorer()
        for control, name in zip((*panel.a, *panel.b), "AABB", strict=True):
            before = panel.view.value
            control.value = -1.3
            assert before != panel.view.value
            assert re.search(rf"<title>{name} \(.*-1.3.*\)", panel.view.value)


def at(student, teacher, power=2, dim=1):
    maps = [F.normalize(x.abs().pow(power).mean(dim).flatten(1)) for x in (student, teacher)]
    return (maps[0] - maps[1]).square().mean()


def sp(student, teacher, p=2.0):
    return F.mse_loss(*(F.normalize(x @ x.mT, p=p) for x in (student, teacher)))


def raw(student, teacher):
    return F.mse_loss(student.square().mean(1), teacher.square().mean(1))


def exact(points):
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def mean_above_0(distances):
    return distances[distances > 0].mean()


SLIPS = {
    "AT not normalised": (check.attention_loss, raw, "not normalised yet"),
    "AT of |F|": (check.attention_loss, lambda s, t: at(s, t, 1), "mean of |F|"),
    "AT summed over positions": (check.attention_loss, lambda s, t: 25 * at(s, t), "over the positions"),
    "AT summed over images": (check.attention_loss, lambda s, t: 4 * at(s, t), "over the images"),
    "AT summed over both": (check.attention_loss, lambda s, t: 100 * at(s, t), "images and positions"),
    "AT over the batch": (
        check.attention_loss,
        lambda s, t: F.mse_loss(*(F.normalize(x.square().mean(1).flatten(), dim=0) for x in (s, t))),
        "by itself",
    ),
    "AT, other dimension": (check.attention_loss, lambda s, t: at(s, t, dim=0), "your code raised"),
    "SP not normalised": (check.similarity_loss, lambda s, t: F.mse_loss(s @ s.mT, t @ t.mT), "not normalised yet"),
    "SP of cosines": (
        check.similarity_loss,
        lambda s, t: F.mse_loss(*(F.normalize(x) @ F.normalize(x).mT for x in (s, t))),
        "normalised the features",
    ),
    "SP with l1": (check.similarity_loss, lambda s, t: sp(s, t, 1.0), "l1 norm"),
    "SP summed": (check.similarity_loss, lambda s, t: 25 * sp(s, t), "divided by n²"),
    "SP over n": (check.similarity_loss, lambda s, t: 5 * sp(s, t), "you divided by n;"),
    "CWD over channels": (check.channel_distribution, lambda m, T: (m / T).softmax(1), "over the channels"),
    "CWD over rows": (check.channel_distribution, lambda m, T: (m / T).softmax(3), "each row"),
    "CWD over an image": (
        check.channel_distribution,
        lambda m, T: (m.flatten(1) / T).softmax(1).view_as(m),
        "each of its channels",
    ),
    "CWD without tau": (
        check.channel_distribution,
        lambda m, T: m.flatten(2).softmax(2).view_as(m),
        "temperature has no effect",
    ),
    "CWD times tau": (
        check.channel_distribution,
        lambda m, T: (m.flatten(2) * T).softmax(2).view_as(m),
        "you multiplied",
    ),
    "CWD at 4": (
        check.channel_distribution,
        lambda m, T: (m.flatten(2) / 4).softmax(2).view_as(m),
        "at a temperature of 9: ",
    ),
    "CWD flat": (check.channel_distribution, lambda m, T: (m.flatten(2) / T).softmax(2), "shape"),
    "RKD plain": (check.relative_distances, lambda x: torch.cdist(x, x), "not divided by their mean"),
    "RKD with zeros": (check.relative_distances, lambda x: torch.cdist(x, x) / torch.cdist(x, x).mean(), "diagonal"),
    "RKD of rounded zeros": (
        check.relative_distances,
        lambda x: torch.cdist(x, x) / mean_above_0(torch.cdist(x, x)),
        "40 points",
    ),
    "RKD squared": (check.relative_distances, lambda x: torch.cdist(x, x) ** 2, "squared distances, and not"),
    "RKD squared over the mean": (
        check.relative_distances,
        lambda x: torch.cdist(x, x) ** 2 / (torch.cdist(x, x) ** 2).sum() * 20,
        "square root",
    ),
    "RKD over the largest": (
        check.relative_distances,
        lambda x: torch.cdist(x, x) / torch.cdist(x, x).max(),
        "by the largest",
    ),
    "AT of 5 x 5": (
        check.attention_loss,
        lambda s, t: at(s, t) * s[:, 0].numel() / 100,
        "for two images whose maps are 4 x 6",
    ),
    "SP of five": (check.similarity_loss, lambda s, t: sp(s, t) * len(s) ** 2 / 25, "for a batch of three"),
    "RKD over all pairs": (
        check.relative_distances,
        lambda x: torch.cdist(x, x) / torch.cdist(x, x).sum() * len(x) * (len(x) - 1),
        "two of them in the same place",
    ),
    "weight unchanged": (check.carried_weight, 100.0, "2,048 times"),
    "weight times": (check.carried_weight, 100.0 * 2048, "smaller one"),
    "weight with the batch": (check.carried_weight, 100.0 / 2048 / 64, "means over the batch"),
    "weight against the batch": (check.carried_weight, 100.0 * 64 / 2048, "means over the batch"),
    "weight without positions": (check.carried_weight, 100.0 / 128, "positions too"),
    "weight without channels": (check.carried_weight, 100.0 / 16, "channels too"),
}


@pytest.mark.parametrize(("graded", "answer", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, answer, hint, capsys):
    assert graded(answer) is False
    assert hint in capsys.readouterr().out


RIGHT = {
    "AT": (check.attention_loss, at),
    "SP": (check.similarity_loss, sp),
    "CWD": (check.channel_distribution, lambda m, T: (m.flatten(2) / T).softmax(2).view_as(m)),
    "RKD": (check.relative_distances, lambda x: exact(x) / mean_above_0(exact(x))),
    "weight": (check.carried_weight, 100 / 2048),
    "weight to two digits": (check.carried_weight, 0.049),
}


@pytest.mark.parametrize(("graded", "answer"), RIGHT.values(), ids=RIGHT)
def test_a_right_answer_passes(graded, answer, capsys):
    assert graded(answer) is True
    assert capsys.readouterr().out == "✓ Right.\n"
