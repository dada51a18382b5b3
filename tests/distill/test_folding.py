"""fold_batchnorm: the same outputs from a copy with fewer layers."""

import copy
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import densenet121, mobilenet_v3_small, resnet18

from kdlab import InputError
from kdlab.distill import Distiller, Taps, Term, fold_batchnorm
from kdlab.losses import KDLoss
from kdlab.models import PSPNet, UPerNet

IMAGES = (2, 3, 64, 64)


def trained(network, seed=0):
    """With statistics, gammas and betas as training leaves them; in eval mode, in float64."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for values, least, most in (("running_mean", -1, 1), ("running_var", 0.5, 2), ("weight", 0.5, 1.5)):
                if getattr(module, values) is not None:
                    nn.init.uniform_(getattr(module, values), least, most)
            if module.affine:
                nn.init.uniform_(module.bias, -1, 1)
    return network.double().eval()


def norms(network):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


@torch.no_grad()
def check_alike(network, *shape, left):
    """The copy puts out the same, and has so many BatchNorms left; the network is what it was."""
    before, given = copy.deepcopy(network.state_dict()), torch.randn(*shape, dtype=torch.float64)
    folded = fold_batchnorm(network, given[:1])
    wanted = network(given)
    torch.testing.assert_close(folded(given), wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert norms(folded) == left
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (resnet18, 0),
        (mobilenet_v3_small, 0),
        (densenet121, 62),  # one before each layer and transition, and the last: they read what others read too
        (lambda: UPerNet(4, (8, 16, 16, 32), (1, 1, 1, 1), 16), 0),
        (lambda: UPerNet(4, (8, 16, 16, 32), (1, 1, 1, 1), 16, auxiliary=True), 1),  # not reached in eval mode
        (lambda: PSPNet(4, 8, (1, 1, 1, 1), 16), 0),
    ],
)
def test_networks_put_out_the_same(build, left):
    check_alike(trained(build()), *IMAGES, left=left)


class Sole(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)


class ReadTwice(Sole):
    def forward(self, x):
        x = self.first(x)
        return self.norm(x) + x


class NormedTwice(Sole):
    def forward(self, x):
        x = self.first(x)
        return self.norm(x) * self.other(x)


class OverwrittenBefore(Sole):
    def forward(self, x):
        return self.norm(self.first(x).relu_())


class SharedByTwo(Sole):
    def forward(self, x):
        return self.norm(self.first(x)) + self.norm(self.second(x))


class SharedWithAnInput(Sole):
    def forward(self, x):
        return self.norm(self.first(x)) + self.norm(torch.cat([x, x[:, :1]], dim=1))[:, :, 1:-1, 1:-1]


class SharedWithOneReadTwice(Sole):
    def forward(self, x):
        second = self.second(x)
        return self.norm(self.first(x)) + self.norm(second) + second


class SharedWithAnothersLayer(Sole):
    def forward(self, x):
        first = self.first(x)
        return self.other(first) + self.norm(first) + self.norm(self.second(x))


class CalledTwice(Sole):
    def forward(self, x):
        return self.norm(self.first(x)) + self.other(self.first(x.flip(3)))


class PutOutToo(Sole):
    def forward(self, x):
        x = self.first(x)
        return torch.stack([self.norm(x), x])


@pytest.mark.parametrize(
    "kind",
    [
        ReadTwice, NormedTwice, OverwrittenBefore, SharedByTwo, SharedWithAnInput, SharedWithOneReadTwice,
        SharedWithAnothersLayer, CalledTwice, PutOutToo,
    ],
)  # fmt: skip
def test_a_norm_stays_where_folding_it_would_change_something(kind):
    check_alike(trained(kind()), 2, 3, 8, 8, left=2)


class Activating(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class Standardised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, (weight - weight.mean()) / weight.std(), bias)


def hooked(network, layer, hook):
    getattr(network[layer], f"register_forward_{hook}")(lambda _, inputs, *output: (*inputs, *output)[-1].relu())
    return network


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), Activating(4)),
        nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)),
        hooked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0, "hook"),
        hooked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 1, "hook"),
        hooked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 1, "pre_hook"),
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
    ],
)
def test_what_does_more_than_pytorchs_own_layers_stays(network):
    check_alike(trained(network), 2, 3, 8, 8, left=1)


class FromAList(Sole):
    def __init__(self):
        super().__init__()
        self.steps = [self.first, self.norm]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


class ByItsWeight(Sole):
    def forward(self, x):
        return self.norm(self.first(x)) + nn.functional.conv2d(x.flip(3), self.first.weight)


class ByItsGamma(Sole):
    def forward(self, x):
        return self.norm(self.first(x)) * self.norm.weight.sum()


@dataclass
class Out:
    logits: torch.Tensor
    raw: torch.Tensor


class PutOutInADataclass(Sole):
    def forward(self, x):
        x = self.first(x)
        return Out(self.norm(x), x)


@pytest.mark.parametrize("kind", [FromAList, ByItsWeight, ByItsGamma, PutOutInADataclass])
def test_a_use_that_cannot_be_seen_is_refused(kind):
    with pytest.raises(InputError, match=f"^{kind.__name__} cannot do without the BatchNorms .* Take it as it is.$"):
        fold_batchnorm(trained(kind()), torch.randn(1, 3, 8, 8))


class UnderAnotherName(Sole):
    def __init__(self):
        super().__init__()
        self.norm = self.other
        self.steps = nn.Sequential(self.first, self.norm)

    def forward(self, x):
        return self.steps(x)


def test_a_norm_goes_from_every_place_that_it_has():
    check_alike(trained(UnderAnotherName()), 2, 3, 8, 8, left=0)


def test_tied_weights_part():
    """One weight under two norms: each layer gets one of its own."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network[2].weight = network[0].weight
    check_alike(trained(network), 2, 3, 4, 4, left=0)


@pytest.mark.parametrize(
    ("layers", "shape", "left"),
    [
        ([nn.Linear(5, 4), nn.BatchNorm1d(4)], (3, 5), 0),
        ([nn.Conv1d(5, 4, 3, bias=False), nn.BatchNorm1d(4)], (3, 5, 9), 0),
        ([nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)], (2, 2, 5, 5, 5), 0),
        ([nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)], (2, 4, 6, 6), 0),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)], (2, 3, 6, 6), 1),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)], (2, 3, 6, 6), 1),
        ([nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)], (2, 3, 6, 6), 1),
        ([nn.Linear(4, 4), nn.BatchNorm1d(4)], (3, 4, 4), 1),  # it scales positions, and the layer puts out features
    ],
)
def test_kinds_of_layers(layers, shape, left):
    check_alike(trained(nn.Sequential(*layers)), *shape, left=left)


def test_the_copy_is_frozen_and_evaluates():
    network = trained(resnet18()).train()
    folded = fold_batchnorm(network, torch.randn(1, 3, 32, 32))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(module.training for module in folded.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def test_a_folded_teacher_teaches_the_same():
    """Its layers keep their names, and what is tapped behind a pair is what it was."""
    teacher, student, images = (
        trained(resnet18(num_classes=4)),
        trained(resnet18(num_classes=4), 1),
        torch.randn(IMAGES),
    )
    losses = []
    for one in (teacher, fold_batchnorm(teacher, images)):
        with torch.no_grad(), Taps(one, ["layer2.0"]) as taps:
            one(images.double())
        terms = [Term("kd", KDLoss(4.0), "", "")]
        distiller = Distiller(copy.deepcopy(student), one, terms, task=nn.CrossEntropyLoss()).train()
        losses.append([distiller(images.double(), torch.tensor([0, 3]))["kd"].item(), taps["layer2.0"]])
    torch.testing.assert_close(losses[1], losses[0])


def test_an_example_that_the_network_does_not_take_is_refused():
    with pytest.raises(InputError, match=r"ResNet cannot be run on an example of shape \(1, 5, 64, 64\)"):
        fold_batchnorm(resnet18(), torch.randn(1, 5, 64, 64))


def test_who_does_not_fold_does_not_wait_for_pandas():
    code = "import sys, kdlab.distill; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("when", ["hook", "pre_hook"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_somebody_listens_to_stays(layer, when):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    getattr(network[layer], f"register_forward_{when}")(lambda *seen: None)
    check_alike(trained(network), 2, 3, 8, 8, left=1)
