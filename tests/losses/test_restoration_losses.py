"""CKT, SCR and HCR by their laws."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab import InputError
from kdlab.losses.restoration import (
    SLICE_WEIGHTS,
    CKTLoss,
    HCRLoss,
    SCRLoss,
    mean_distance_of_all_pairs,
)


class Stages(nn.Module):
    """Five maps of an image, as VGG19's slices are, but small."""

    def __init__(self, stages=5):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(stages)).double()
        self.requires_grad_(False)

    def forward(self, images):
        maps = []
        for layer in self.layers:
            images = layer(images).relu()
            maps.append(images)
        return maps


FEATURES = Stages()


def images(n=3):
    torch.manual_seed(0)
    restored, degraded, clean = torch.rand(3, n, 3, 8, 8, dtype=torch.float64)
    return restored.requires_grad_(), degraded, clean


def literal(restored, degraded, clean, all_pairs):
    """The formula with a tensor of all pairs."""
    return of_maps(*map(FEATURES, (restored, degraded, clean)), all_pairs)


def of_maps(restored, degraded, clean, all_pairs):
    total = 0
    for weight, a, n, p in zip(SLICE_WEIGHTS, restored, degraded, clean, strict=True):
        away = (a[:, None] - n[None]).abs().mean() if all_pairs else (a - n).abs().mean()
        total = total + weight * (a - p).abs().mean() / (away + 1e-7)
    return total


LOSSES = {
    "SCR, paired": (lambda: SCRLoss(FEATURES), False),
    "SCR, same weather": (lambda: SCRLoss(FEATURES, negatives="same_weather"), True),
    "HCR": (lambda: HCRLoss(FEATURES), True),
}


@pytest.fixture(params=LOSSES)
def contrast(request):
    make, all_pairs = LOSSES[request.param]
    return make(), all_pairs


@pytest.mark.parametrize("loss", [SCRLoss, HCRLoss])
def test_the_features_are_frozen_and_keep_their_statistics(loss):
    features = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).double()
    before = features[0].running_mean.clone()
    restored, degraded, clean = images()
    made = loss(Lists(features), (1.0,)).train()
    made((restored, degraded), clean).backward()
    assert torch.equal(features[0].running_mean, before)
    assert all(parameter.grad is None for parameter in features.parameters())


class Lists(nn.Sequential):
    def forward(self, images):
        return [super().forward(images)]


def test_value_and_gradient_are_those_of_the_formula(contrast):
    loss, all_pairs = contrast
    restored, degraded, clean = images()
    value = loss([restored, degraded], clean)
    expected = literal(restored, degraded, clean, all_pairs)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(value, restored)
    (wanted,) = torch.autograd.grad(expected, restored)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-12)


def test_it_is_zero_where_the_image_is_restored_and_grows_with_what_is_left(contrast):
    loss, _ = contrast
    _, degraded, clean = images()
    left = [loss([clean.lerp(degraded, share), degraded], clean).item() for share in (0, 0.1, 0.5, 0.9)]
    assert left[0] == 0
    assert left == sorted(left)


def test_only_the_restored_images_get_a_gradient(contrast):
    loss, _ = contrast
    restored, degraded, clean = images()
    degraded.requires_grad_()
    clean.requires_grad_()
    loss([restored, degraded], clean).backward()
    assert restored.grad.abs().sum() > 0
    assert degraded.grad is None
    assert clean.grad is None


def test_the_weights_of_vggs_slices_sum_to_the_published_number():
    assert sum(SLICE_WEIGHTS) == 1.46875


def test_paired_negatives_are_each_images_own_and_the_others_are_everyones():
    restored, degraded, clean = images()
    turned = degraded.roll(1, dims=0)
    paired, everyone = SCRLoss(FEATURES), HCRLoss(FEATURES)
    assert paired([restored, degraded], clean) != paired([restored, turned], clean)
    torch.testing.assert_close(everyone([restored, degraded], clean), everyone([restored, turned], clean))


def test_a_student_that_starts_as_the_identity_explodes_unless_eps_is_mild():
    _, degraded, clean = images()
    assert SCRLoss(FEATURES)([degraded, degraded], clean) > 1e4
    assert SCRLoss(FEATURES, eps=1e-2)([degraded, degraded], clean) < 100


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_all_pairs_without_a_tensor_of_all_pairs(layout):
    torch.manual_seed(0)
    a = torch.randn(4, 2, 5, 3, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    b = torch.randn(5, 2, 5, 3, dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(mean_distance_of_all_pairs(a, b), (a[:, None] - b).abs().mean())
    assert torch.autograd.gradcheck(lambda x: mean_distance_of_all_pairs(x, b.detach()), a)
    mean_distance_of_all_pairs(a, b).backward()
    assert b.grad is None


def test_where_two_maps_agree_there_is_no_gradient():
    a = torch.ones(2, 1, 2, 2, requires_grad=True)
    mean_distance_of_all_pairs(a, torch.ones(1, 1, 2, 2)).backward()
    assert torch.equal(a.grad, torch.zeros_like(a))


def test_all_pairs_of_large_maps_are_summed_up_exactly():
    torch.manual_seed(0)
    a, b = torch.rand(2, 4, 16, 128, 128)
    expected = mean_distance_of_all_pairs(a.double(), b.double())
    torch.testing.assert_close(mean_distance_of_all_pairs(a, b).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("detach", [False, True])
def test_ckt_is_the_mean_distance_and_says_who_learns_from_it(detach):
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    value = CKTLoss(detach)(student, teacher)
    torch.testing.assert_close(value, F.l1_loss(student, teacher))
    value.backward()
    assert student.grad.abs().sum() > 0
    assert (teacher.grad is None) == detach
    assert CKTLoss(detach)(student, student) == 0
    assert not CKTLoss().detach  # as released


def test_ckt_says_how_far_the_common_space_has_shrunk():
    loss = CKTLoss()
    assert loss.shrunk_to == 1
    maps = torch.ones(1, 2, 3, 3)
    for size in (4.0, 2.0, 0.4):
        loss(maps, size * maps)
    assert loss.shrunk_to == pytest.approx(0.1)
    loss.eval()(maps, maps)
    assert loss.shrunk_to == pytest.approx(0.1)  # looking changes nothing
    resumed = CKTLoss()
    resumed.load_state_dict(loss.state_dict())
    assert resumed.shrunk_to == pytest.approx(0.1)


@pytest.mark.parametrize("loss", [SCRLoss(FEATURES), HCRLoss(FEATURES)])
def test_the_frozen_features_move_along_and_are_no_part_of_the_loss(loss):
    assert not list(loss.parameters())
    assert not loss.state_dict()
    network = Stages()
    moved = type(loss)(network).to(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert moved.features is network


def test_half_precision_is_compared_in_float32():
    student, teacher = torch.full((1, 1, 2, 2), 6e4).half(), torch.full((1, 1, 2, 2), -6e4).half()
    assert CKTLoss()(student, teacher) == pytest.approx(1.2e5, rel=1e-3)


def test_the_features_run_in_half_precision_and_their_distances_do_not(contrast):
    loss, all_pairs = contrast
    loss.to(torch.bfloat16)
    try:
        sides = [image.detach().bfloat16() for image in images()]
        value = loss(sides[:2], sides[2].float())
        maps = [[part.float() for part in FEATURES(side)] for side in sides]
    finally:
        loss.to(torch.float64)  # the features are everyone's
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, of_maps(*maps, all_pairs))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r, d, c: SCRLoss(FEATURES)(r, c), r"gives 1 tensors to SCRLoss; wanted: two.*Tap\(\"\", \"input\"\)"),
        (lambda r, d, c: HCRLoss(FEATURES)([r, d, c], c), "gives 3 tensors to HCRLoss"),
        (lambda r, d, c: HCRLoss(FEATURES)([r, d[:1]], c), r"\(1, 3, 8, 8\)"),
        (lambda r, d, c: SCRLoss(FEATURES)([r, d], c[:1]), r"\(1, 3, 8, 8\)"),
        (lambda r, d, c: SCRLoss(Stages(4))([r, d], c), "features are 4 maps and there are 5 weights"),
        (lambda r, d, c: SCRLoss(FEATURES, negatives="all"), "'all'"),
        (lambda r, d, c: HCRLoss(FEATURES, eps=0), "eps is 0"),
        (lambda r, d, c: HCRLoss(FEATURES, weights=[]), r"weights is \(\)"),
        (lambda r, d, c: HCRLoss(FEATURES, weights=[1, -1]), r"weights is \(1, -1\)"),
    ],
)
def test_what_cannot_be_compared_is_named(call, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        call(*images())
