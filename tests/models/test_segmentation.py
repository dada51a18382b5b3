"""The teacher and the student of dense distillation: sizes in, sizes out, what they are made of, and their start."""

import socket

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights

from kdlab import InputError
from kdlab.distill import Distiller, Resize, Taps, Term
from kdlab.losses import CWDLoss
from kdlab.models import BUILDERS, PSPNet, UPerNet, build_model
from kdlab.models.segmentation import DilatedResNet, PyramidPooling, UPerHead
from kdlab.models.weights import trained
from kdlab.training.checkpoints import ModelCard, load_model, save_model

LOGITS, AUXILIARY = "decode_head.conv_seg", "auxiliary_head.conv_seg"


def upernet(classes=3, **options):
    return UPerNet(classes, widths=(8, 12, 16, 20), depths=(1, 1, 2, 1), channels=8, **options)


def pspnet(classes=3, **options):
    return PSPNet(classes, width=8, blocks=(1, 2, 1, 1), channels=10, **options)


BOTH = pytest.mark.parametrize("build", [upernet, pspnet])


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def images(n=2, h=32, w=48):
    return torch.randn(n, 3, h, w)


def without_chance(model):
    """Training mode without dropout and stochastic depth, so that two passes are alike."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d | torchvision.ops.StochasticDepth):
            module.p = 0.0
    return model


# --- what they are made of -------------------------------------------------------------------------------------------

COUNTS = {
    "UPerNet": (lambda: UPerNet(), 59_242_914),
    "UPerNet, 150 classes": (lambda: UPerNet(150), 59_242_914 + 148 * 513),
    "its auxiliary head": (lambda: UPerNet(auxiliary=True).auxiliary_head, 885_762),
    "narrow": (lambda: UPerNet(2, (24, 48, 96, 192), (1, 1, 3, 1), 64), 1_248_202),
    "PSPNet": (lambda: PSPNet(), 12_619_842),
    "PSPNet, 19 classes": (lambda: PSPNet(19), 12_619_842 + 17 * 129),
    "auxiliary head": (lambda: PSPNet(auxiliary=True).auxiliary_head, 147_714),
    "narrow, 48 channels": (lambda: PSPNet(2, 16, (1, 1, 1, 1), 48), 472_850),
    "narrow, 32 channels": (lambda: PSPNet(2, 16, (1, 1, 1, 1)), 399_954),
}


@pytest.mark.parametrize(("build", "count"), COUNTS.values(), ids=COUNTS)
def test_the_parameters(build, count):
    with torch.device("meta"):  # counted without being filled
        assert parameters(build()) == count


def test_the_student_s_backbone_is_torchvision_s_resnet_with_dilation_for_stride():
    """The positions that a strided network keeps hold exactly what it computes there."""
    theirs = torchvision.models.resnet18(num_classes=2).double().eval()
    for norm in theirs.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    ours = DilatedResNet(64, (2, 2, 2, 2)).double().eval()
    ours.load_imagenet(theirs.state_dict())
    x = images(2, 65, 50).double()
    with torch.no_grad():
        maps = ours(x)
        with Taps(theirs, ["layer1", "layer2", "layer3", "layer4"]) as taps:
            theirs(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 17, 13), (128, 9, 7), (256, 9, 7), (512, 9, 7)]
    for stage, (mine, apart) in enumerate(zip(maps, (1, 1, 2, 4), strict=True), start=1):
        torch.testing.assert_close(mine[..., ::apart, ::apart], taps[f"layer{stage}"], rtol=1e-9, atol=1e-9)


def test_the_teacher_s_backbone_is_torchvision_s_convnext():
    with torch.device("meta"):
        ours, theirs = UPerNet().backbone.features, torchvision.models.convnext_tiny().features
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_teacher_s_stages_are_normalised():
    with torch.no_grad():
        maps = upernet().backbone(images(2, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 12, 8, 12), (2, 16, 4, 6), (2, 20, 2, 3)]
    for stage in maps:
        torch.testing.assert_close(stage.mean(dim=1), torch.zeros_like(stage[:, 0]), rtol=0, atol=1e-4)
        assert stage.var(dim=1, correction=0).median().item() == pytest.approx(1.0, abs=0.01)


def test_pyramid_pooling_shows_each_position_the_whole_map():
    pooling = PyramidPooling(4, 6).eval()
    maps = torch.randn(1, 4, 12, 18, requires_grad=True)
    out = pooling(maps)
    assert out.shape == (1, 6, 12, 18)
    out[..., 0, 0].sum().backward()
    assert (maps.grad.abs().sum(dim=1) > 0).all()


def test_pyramid_pooling_is_its_formula():
    pooling = PyramidPooling(4, 6).eval()
    maps = torch.randn(2, 4, 12, 18)
    with torch.no_grad():
        parts = [maps]
        for cells, (_, convolution) in zip((1, 2, 3, 6), pooling.branches, strict=True):
            averages = F.avg_pool2d(maps, (12 // cells, 18 // cells))
            parts.append(F.interpolate(convolution(averages), (12, 18), mode="bilinear", align_corners=False))
        torch.testing.assert_close(pooling(maps), pooling.bottleneck(torch.cat(parts, dim=1)))


def test_the_teacher_s_head_is_the_formula_of_a_feature_pyramid():
    head = UPerHead((4, 5, 6, 7), channels=8, classes=3).eval()
    c2, c3, c4, c5 = (torch.randn(2, c, 16 // s, 24 // s) for c, s in ((4, 1), (5, 2), (6, 4), (7, 8)))

    def up(maps, like):
        return F.interpolate(maps, like.shape[2:], mode="bilinear", align_corners=False)

    with torch.no_grad():
        p5 = head.pyramid(c5)
        p4 = head.lateral_convs[2](c4) + up(p5, c4)
        p3 = head.lateral_convs[1](c3) + up(p4, c3)
        p2 = head.lateral_convs[0](c2) + up(p3, c2)
        fine = [head.fpn_convs[0](p2), up(head.fpn_convs[1](p3), c2), up(head.fpn_convs[2](p4), c2), up(p5, c2)]
        expected = head.conv_seg(head.fusion(torch.cat(fine, dim=1)))
        torch.testing.assert_close(head([c2, c3, c4, c5]), expected)


@BOTH
def test_gradient_reaches_every_parameter(build):
    model = without_chance(build(auxiliary=True))
    logits, auxiliary = model.forward_with_auxiliary(images(4, 40, 56))
    labels = torch.randint(3, (4, 40, 56))
    (F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(auxiliary, labels)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


# --- sizes -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("size", [(33, 47), (32, 32), (64, 40)])
@pytest.mark.parametrize("training", [True, False])
def test_the_logits_have_the_size_of_the_images(build, size, training):
    logits = build(5, auxiliary=True).train(training)(images(2, *size))
    assert logits.shape == (2, 5, *size)
    assert logits.isfinite().all()
    assert logits.min() < 0 < logits.max()  # logits, not probabilities


@pytest.mark.parametrize("size", [(1, 1), (5, 31)])
def test_the_student_takes_any_size(size):
    assert pspnet()(images(2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(31, 64), (64, 8)])
def test_the_teacher_says_what_is_too_small(size):
    with pytest.raises(InputError, match=f"images are {size[0]} high and {size[1]} wide; .* at least 32x32"):
        upernet().eval()(images(2, *size))


TAPPED = {  # height and width of the logits, and of the auxiliary ones
    "teacher": (upernet, (64, 96), (16, 24), (4, 6)),
    "student": (pspnet, (64, 96), (8, 12), (8, 12)),
    "teacher, odd": (upernet, (33, 47), (8, 11), (2, 2)),
    "student, odd": (pspnet, (33, 47), (5, 6), (5, 6)),
}


@pytest.mark.parametrize(("build", "size", "logits", "auxiliary"), TAPPED.values(), ids=TAPPED)
def test_the_tapped_logits_are_at_a_quarter_and_an_eighth(build, size, logits, auxiliary):
    model = build(5, auxiliary=True)
    for training in (True, False):
        with Taps(model.train(training), [LOGITS]) as taps:
            model(images(2, *size))
        assert taps[LOGITS].shape == (2, 5, *logits)
    with Taps(model.train(), [AUXILIARY]) as taps:
        model(images(2, *size))
    assert taps[AUXILIARY].shape == (2, 5, *auxiliary)


@BOTH
def test_the_output_is_the_tapped_logits_enlarged(build):
    model = build().eval()
    with Taps(model, [LOGITS]) as taps:
        output = model(images(2, 40, 56))
    expected = F.interpolate(taps[LOGITS], (40, 56), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("build", "taps"),
    [
        (upernet, {"decode_head.fusion": (8, 16, 16), "backbone.norms.0": (8, 16, 16), "backbone.norms.3": (20, 2, 2)}),
        (pspnet, {"decode_head.pyramid": (10, 8, 8), "backbone.layer1": (8, 16, 16), "backbone.layer4": (64, 8, 8)}),
    ],
)
def test_the_documented_taps(build, taps):
    model = build()
    with Taps(model, taps) as found:
        model(images(2, 64, 64))
    assert {name: tuple(found[name].shape[1:]) for name in taps} == taps


# --- training mode ---------------------------------------------------------------------------------------------------


@BOTH
def test_chance_only_while_training(build):
    model, x = build(), images(4)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    without_chance(model)
    assert torch.equal(model(x), model(x))


@BOTH
def test_the_auxiliary_head_changes_nothing_but_itself(build):
    plain, both = build(), build(auxiliary=True)
    both.load_state_dict(plain.state_dict(), strict=False)
    x = images()
    torch.testing.assert_close(plain.eval()(x), both.eval()(x))
    torch.testing.assert_close(without_chance(plain)(x), without_chance(both)(x))
    logits, auxiliary = both.forward_with_auxiliary(x)
    torch.testing.assert_close(logits, both(x))
    assert auxiliary.shape == logits.shape
    assert not torch.allclose(auxiliary, logits)


@BOTH
def test_the_auxiliary_head_runs_in_training_alone(build):
    model = build(auxiliary=True).eval()
    with Taps(model, [AUXILIARY]) as taps:
        model(images())
    with pytest.raises(InputError, match="was not reached"):
        taps[AUXILIARY]
    with torch.no_grad():
        assert model.forward_with_auxiliary(images())[1].shape == (2, 3, 32, 48)  # unless asked for


@BOTH
def test_the_auxiliary_loss_trains_the_backbone(build):
    model = build(auxiliary=True)
    model.forward_with_auxiliary(images())[1].square().sum().backward()
    assert next(model.backbone.parameters()).grad.abs().sum() > 0
    assert next(model.decode_head.parameters()).grad is None


@BOTH
def test_no_auxiliary_head_unless_asked_for(build):
    model = build()
    assert not any(name.startswith("auxiliary") for name in model.state_dict())
    with pytest.raises(InputError, match="has no auxiliary head; build it with auxiliary=True"):
        model.forward_with_auxiliary(images())


@BOTH
@pytest.mark.parametrize("size", [(32, 32), (64, 40)])
def test_a_batch_of_one_trains_only_with_frozen_statistics(build, size):
    model, one = build(), images(1, *size)
    with pytest.raises(InputError, match="cannot train on a batch of one image. Raise the batch size"):
        model(one)
    assert model.eval()(one).shape == (1, 3, *size)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(one).shape == (1, 3, *size)


class AuxiliaryLoss(nn.Module):
    """Cross-entropy of a tapped head; it compares nothing with the teacher."""

    def forward(self, student, teacher, target):
        return F.cross_entropy(F.interpolate(student, target.shape[1:], mode="bilinear"), target)


def test_a_distiller_brings_an_eighth_and_a_quarter_together_and_trains_the_auxiliary_head():
    student, teacher = pspnet(auxiliary=True), upernet()
    x, labels = images(4, 40, 56), torch.randint(3, (4, 40, 56))
    distiller = Distiller(
        without_chance(student),
        teacher,
        terms=[
            Term("cwd", CWDLoss(), LOGITS, LOGITS, weight=3.0, teacher_connector=Resize((5, 7))),
            Term("auxiliary", AuxiliaryLoss(), AUXILIARY, LOGITS, weight=0.4),
        ],
        task=nn.CrossEntropyLoss(),
        example=(x, labels),
    )
    losses = distiller(x, labels)
    losses["total"].backward()
    assert losses["cwd"] > 0
    assert [name for name, p in student.named_parameters() if p.grad is None] == []
    assert all(p.grad is None for p in teacher.parameters())


# --- building and saving ---------------------------------------------------------------------------------------------

REFUSED = {
    "one class": (lambda: pspnet(1), "classes is 1; a segmenter needs at least 2"),
    "a teacher of one class": (lambda: upernet(1), "classes is 1"),
    "too narrow": (lambda: PSPNet(2, 7), "width is 7; wanted: the channels of the first stage, at least 8"),
    "three stages": (
        lambda: PSPNet(2, 8, (1, 1, 1)),
        r"blocks is \(1, 1, 1\); wanted: one number for each of the four",
    ),
    "an empty stage": (lambda: PSPNet(2, 8, (1, 1, 0, 1)), r"blocks is \(1, 1, 0, 1\); .* at least 1"),
    "one channel": (lambda: PSPNet(2, 8, channels=1), "channels is 1; the head needs at least 2"),
    "two widths": (lambda: UPerNet(2, (8, 8)), r"widths is \(8, 8\); wanted: one number for each of the four stages"),
    "no depth": (lambda: UPerNet(2, depths=(1, 1, 1, 0)), r"depths is \(1, 1, 1, 0\)"),
    "no channels": (lambda: UPerNet(2, (8,) * 4, (1,) * 4, 0), "channels is 0"),
    "unknown weights": (lambda: PSPNet(2, weights="coco"), "weights is 'coco'; wanted: 'auto', 'imagenet' or 'none'"),
    "unknown weights, narrow": (lambda: upernet(weights="coco"), "weights is 'coco'"),
    "no weights for it": (
        lambda: pspnet(weights="imagenet"),
        "no ImageNet weights for ResNet18 in other sizes .*'auto'",
    ),
    "nor for the teacher": (
        lambda: upernet(weights="imagenet"),
        "no ImageNet weights for ConvNeXt-Tiny in other sizes",
    ),
    "an unknown argument": (lambda: build_model({"name": "PSPNet", "depth": 3}), "'PSPNet' cannot be built from"),
    "a near name": (lambda: build_model({"name": "UperNet"}), "Did you mean 'UPerNet'"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_built_is_refused(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


@BOTH
@pytest.mark.parametrize("auxiliary", [True, False])
def test_a_saved_model_is_built_and_filled_again(build, auxiliary, tmp_path):
    model = build(5, auxiliary=auxiliary)
    model(images())  # statistics other than those of a new model
    save_model(
        tmp_path / "m.safetensors", model, ModelCard(model.architecture, tuple("abcde"), (0.5,) * 3, (0.5,) * 3, 32)
    )
    again, card = load_model(tmp_path / "m.safetensors")
    assert card.architecture == again.architecture == model.architecture
    assert repr(again) == repr(model)
    x = images()
    assert torch.equal(again(x), model.eval()(x))


@BOTH
def test_its_name_is_a_builder_s(build):
    model = build()
    assert BUILDERS[model.architecture["name"]] is type(model)
    assert model.weights_used == "none: a random start"


# --- the backbones' weights ------------------------------------------------------------------------------------------

TRAINED = {
    "UPerNet": (
        lambda weights: UPerNet(3, channels=8, weights=weights),
        torchvision.models.convnext_tiny, torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
        "features.", "ConvNeXt-Tiny",
    ),
    "PSPNet": (
        lambda weights: PSPNet(3, weights=weights),
        torchvision.models.resnet18, torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
        "", "ResNet18",
    ),
}  # fmt: skip
EACH = pytest.mark.parametrize(("build", "theirs", "source", "prefix", "name"), TRAINED.values(), ids=TRAINED)


def test_the_hash_of_downloaded_weights_is_checked(monkeypatch):
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1, "get_state_dict", lambda **options: options)
    assert trained(ResNet18_Weights.IMAGENET1K_V1)()["check_hash"]


@EACH
def test_offline_auto_takes_a_random_start_and_imagenet_is_refused(build, theirs, source, prefix, name, cache):
    timeout = socket.getdefaulttimeout()
    assert build("auto").weights_used.startswith("none: a random start, because the ImageNet weights could not be")
    with pytest.raises(InputError, match=f"ImageNet weights of {name} are not .* Connect to the internet, or choose"):
        build("imagenet")
    assert socket.getdefaulttimeout() == timeout


@EACH
def test_the_cached_weights_are_used(build, theirs, source, prefix, name, cache):
    with torch.device("meta"):
        trained = {key: value.shape for key, value in theirs().state_dict().items()}
    trained = {key: torch.rand(shape, dtype=torch.bfloat16) for key, shape in trained.items()}
    cache.mkdir(parents=True)
    torch.save(trained, cache / source.url.rpartition("/")[2])
    model = build("imagenet")
    assert model.weights_used == "imagenet"
    assert "weights" not in model.architecture  # a saved model is built again without them
    own = model.backbone.state_dict()
    expected = {key for key in trained if key.startswith(prefix) and not key.startswith("fc.")}
    assert expected == {key for key in own if not key.startswith("norms.")}
    assert all(torch.equal(own[key], trained[key].to(own[key].dtype)) for key in expected)


@EACH
def test_weights_of_another_network_are_no_traceback(build, theirs, source, prefix, name, cache):
    cache.mkdir(parents=True)
    torch.save({"fc.weight": torch.ones(1)}, cache / source.url.rpartition("/")[2])
    assert build("auto").weights_used.startswith("none: a random start, because")
    with pytest.raises(InputError, match="ImageNet weights"):
        build("imagenet")


@BOTH
def test_other_widths_start_at_random_and_say_so(build, cache):
    assert "because there are no ImageNet weights for" in build(weights="auto").weights_used
