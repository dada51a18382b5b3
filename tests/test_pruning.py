"""Pruning by gammas: what stays, what it costs, and that the smaller network computes what the masked one does."""

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdlab import InputError
from kdlab.files import load_tensors, save_tensors
from kdlab.pruning import (
    add_gamma_l1,
    gamma_l1_weight,
    gammas,
    masked,
    plan_pruning,
    prune,
    rebuild,
    structure,
    verify,
)
from kdlab.pruning.channels import follow_channels

EXAMPLE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.usefixtures("one_thread")


class ConvNorm(nn.Sequential):
    def __init__(self, before, after, size=3, activation=nn.SiLU, **options):
        convolution = nn.Conv2d(before, after, size, padding=size // 2, bias=False, **options)
        super().__init__(convolution, nn.BatchNorm2d(after), activation())


class Chain(nn.Sequential):
    """3 -> 16 -> 24 -> 5 channels, the last without BatchNorm: a map as output."""

    def __init__(self, activation=nn.SiLU):
        super().__init__(ConvNorm(3, 16, activation=activation), ConvNorm(16, 24, activation=activation))
        self.append(nn.Conv2d(24, 5, 1))


class Residual(nn.Module):
    """A stem and two blocks on its shortcut: stem, a.1 and b.1 share their 16 channels; a.0 and b.0 are free."""

    def __init__(self):
        super().__init__()
        self.stem = ConvNorm(3, 16)
        self.a = nn.Sequential(ConvNorm(16, 12), ConvNorm(12, 16))
        self.b = nn.Sequential(ConvNorm(16, 12), ConvNorm(12, 16))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images):
        maps = self.stem(images)
        maps = maps + self.a(maps)
        more = self.b(maps)
        more += maps
        return self.head(more)


class Concat(nn.Module):
    """Two branches, one pooled and brought back to size, beside each other."""

    def __init__(self):
        super().__init__()
        self.left, self.right = ConvNorm(3, 12), ConvNorm(3, 20)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.fuse = ConvNorm(32, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images):
        return self.head(self.fuse(torch.cat([self.left(images), self.up(self.pool(self.right(images)))], 1)))


class Chunk(nn.Module):
    """YOLOv8's C2f: the halves of one convolution, of which the second goes on through blocks."""

    def __init__(self, shortcut=False):
        super().__init__()
        self.shortcut = shortcut
        self.split = ConvNorm(3, 24, 1)
        self.blocks = nn.ModuleList(nn.Sequential(ConvNorm(12, 16), ConvNorm(16, 12)) for _ in range(2))
        self.fuse = ConvNorm(48, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images):
        parts = list(self.split(images).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]) if self.shortcut else block(parts[-1]))
        return self.head(self.fuse(torch.cat(parts, 1)))


class Gated(nn.Module):
    """One half opens and closes the other, channel by channel."""

    def __init__(self):
        super().__init__()
        self.both = ConvNorm(3, 24, activation=nn.Identity)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, images):
        value, gate = self.both(images).chunk(2, dim=1)
        return self.head(value * gate.sigmoid())


def depthwise():
    return nn.Sequential(
        ConvNorm(3, 16, 1), ConvNorm(16, 16, groups=16), ConvNorm(16, 32, groups=16), nn.Conv2d(32, 4, 1)
    )


def pooled():
    return nn.Sequential(
        ConvNorm(3, 16), ConvNorm(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 12),
        nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3),
    )  # fmt: skip


def flattened():
    return nn.Sequential(ConvNorm(3, 16), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16 * 4 * 4, 3))


def twice_normalised():
    return nn.Sequential(ConvNorm(3, 16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1, bias=False))


NETWORKS = {
    "chain": Chain, "residual": Residual, "concat": Concat, "chunk": Chunk, "chunk and shortcut": lambda: Chunk(True),
    "gated": Gated, "depthwise": depthwise, "pooled": pooled, "flattened": flattened,
    "normalised twice": twice_normalised,
}  # fmt: skip


def lived_in(model, seed=1):
    """The model with numbers in its BatchNorms as training leaves them, in eval mode."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.uniform_(-1, 1, generator=random)
            module.running_var.uniform_(0.5, 2, generator=random)
    return model.eval()


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(2)
    return lived_in(NETWORKS[request.param]())


def numel(model):
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(EXAMPLE[:1])
    return counter.get_total_flops() // 2


def set_gammas(norm, values):
    norm.weight.data.copy_(torch.as_tensor(values, dtype=torch.float32))


# Sparsity


def test_gammas_are_the_sizes_of_the_scales_by_name():
    model = Chain()
    set_gammas(model[0][1], [-2.0] * 16)
    assert list(gammas(model)) == ["0.1", "1.1"]
    assert gammas(model)["0.1"].tolist() == [2.0] * 16
    assert not gammas(model)["0.1"].requires_grad


def test_a_model_without_gammas_is_refused():
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    for call in (gammas, lambda m: add_gamma_l1(m, 0.1), lambda m: plan_pruning(m, EXAMPLE, keep=0.5)):
        with pytest.raises(InputError, match="no BatchNorm with gammas"):
            call(bare)


def test_the_l1_adds_the_gradient_of_its_sum_and_nothing_else():
    model = Chain()
    set_gammas(model[0][1], [-0.5, 0.0, *[0.5] * 14])
    model[1][1].weight.requires_grad_(False)
    model(EXAMPLE).square().mean().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    add_gamma_l1(model, 0.1)
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    added = {name: after[name] - before[name] for name in before}
    torch.testing.assert_close(added.pop("0.1.weight"), torch.tensor([-0.1, 0.0, *[0.1] * 14]))
    assert all((difference == 0).all() for difference in added.values())
    assert model[1][1].weight.grad is None
    with pytest.raises(InputError, match="weight is -1"):
        add_gamma_l1(model, -1.0)


def test_the_l1_falls_to_a_tenth():
    assert [gamma_l1_weight(epoch, 50) for epoch in (0, 25, 50)] == pytest.approx([1e-2, 5.5e-3, 1e-3])
    assert gamma_l1_weight(0, 10, 0.3) == 0.3


# What stays


def test_the_largest_gammas_of_all_layers_stay():
    model = lived_in(Chain())
    plan = plan_pruning(model, EXAMPLE, keep=0.6, at_least=1)
    sizes = torch.cat([gammas(model)["0.1"], gammas(model)["1.1"]])
    largest = set(sizes.topk(24).indices.tolist())
    assert plan.outputs["0.0"] == plan.outputs["0.1"] == plan.inputs["1.0"] == sorted(i for i in largest if i < 16)
    assert plan.outputs["1.0"] == plan.inputs["2"] == sorted(i - 16 for i in largest if i >= 16)
    assert plan.outputs["2"] == [0, 1, 2, 3, 4]
    assert plan.inputs["0.0"] == [0, 1, 2]
    assert plan.keep == 24 / 40
    assert plan.threshold == pytest.approx(sizes.sort(descending=True).values[24].item())
    assert plan.prunable == ["0.0", "0.1", "1.0", "1.1"]


def test_costs_by_hand():
    plan = plan_pruning(lived_in(Chain()), EXAMPLE, keep=0.5, at_least=1)
    a, b = len(plan.outputs["0.0"]), len(plan.outputs["1.0"])
    assert a + b == 20
    assert plan.parameters == (3 * 9 * 16 + 2 * 16 + 16 * 9 * 24 + 2 * 24 + 24 * 5 + 5,
                               3 * 9 * a + 2 * a + a * 9 * b + 2 * b + b * 5 + 5)  # fmt: skip
    assert plan.macs == (256 * (27 * 16 + 144 * 24 + 24 * 5), 256 * (27 * a + 9 * a * b + 5 * b))


def test_the_table_has_a_row_a_layer():
    plan = plan_pruning(lived_in(Chain()), EXAMPLE, keep=0.5, at_least=4)
    table = plan.table()
    assert list(table.columns) == ["layer", "channels", "kept", "share", "prunable"]
    assert table["layer"].tolist() == ["0.0", "1.0", "2"]
    assert table["channels"].tolist() == [16, 24, 5]
    assert table["kept"].tolist() == [len(plan.outputs[name]) for name in table["layer"]]
    assert table["share"].tolist() == [len(plan.outputs["0.0"]) / 16, len(plan.outputs["1.0"]) / 24, 1.0]
    assert table["prunable"].tolist() == [True, True, False]


def test_the_plan_is_plain_data():
    plan = plan_pruning(lived_in(Chunk()), EXAMPLE, keep=0.6)
    again = json.loads(json.dumps(asdict(plan)))
    assert again["outputs"] == plan.outputs
    assert again["parameters"] == list(plan.parameters)


def test_a_layer_keeps_its_best_eight():
    model = Chain()
    set_gammas(model[0][1], torch.linspace(0.01, 0.02, 16))
    set_gammas(model[1][1], torch.linspace(1, 2, 24))
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    assert plan.outputs["0.0"] == list(range(8, 16))
    assert plan.outputs["1.0"] == list(range(12, 24))
    assert len(plan_pruning(model, EXAMPLE, keep=0.5, at_least=2).outputs["0.0"]) == 2


def test_a_narrow_layer_stays_whole():
    model = lived_in(nn.Sequential(ConvNorm(3, 6), ConvNorm(6, 32), nn.Conv2d(32, 2, 1)))
    assert len(plan_pruning(model, EXAMPLE, keep=0.5).outputs["0.0"]) == 6


def test_what_a_shortcut_ties_is_judged_together_by_the_mean():
    model = lived_in(Residual())
    plan = plan_pruning(model, EXAMPLE, keep=0.5, at_least=1)
    tied = ["stem.0", "a.1.0", "b.1.0", "stem.1", "a.1.1", "b.1.1"]
    assert len({tuple(plan.outputs[name]) for name in tied}) == 1
    assert plan.inputs["a.0.0"] == plan.inputs["b.0.0"] == plan.inputs["head"] == plan.outputs["stem.0"]
    assert plan.outputs["a.0.0"] != plan.outputs["b.0.0"]
    sizes = gammas(model)
    joint = (sizes["stem.1"] + sizes["a.1.1"] + sizes["b.1.1"]) / 3
    assert plan.outputs["stem.0"] == (joint > plan.threshold).nonzero().flatten().tolist()


def test_a_concatenation_shifts_the_second_part():
    plan = plan_pruning(lived_in(Concat()), EXAMPLE, keep=0.5, at_least=1)
    assert plan.inputs["fuse.0"] == plan.outputs["left.0"] + [12 + index for index in plan.outputs["right.0"]]


def test_of_the_halves_of_a_chunk_equally_many_stay_the_best_of_each():
    model = Chunk()
    set_gammas(model.split[1], [*torch.linspace(0.1, 1.2, 12), *torch.linspace(1.2, 0.1, 12)])
    for block in model.blocks:
        set_gammas(block[0][1], [9.0] * 16)
        set_gammas(block[1][1], [9.0] * 12)
    set_gammas(model.fuse[1], [9.0] * 16)
    plan = plan_pruning(model, EXAMPLE, keep=1 - 8 / 96, at_least=1)
    stays = plan.outputs["split.0"]
    assert stays == [*range(4, 12), *range(12, 20)]
    assert plan.inputs["blocks.0.0.0"] == list(range(8))
    assert plan.inputs["fuse.0"] == [*stays, *range(24, 48)]


def test_a_depthwise_convolution_goes_with_what_it_reads():
    plan = plan_pruning(lived_in(depthwise()), EXAMPLE, keep=0.5, at_least=4)
    stays = plan.outputs["0.0"]
    assert plan.outputs["1.0"] == plan.inputs["1.0"] == plan.inputs["2.0"] == stays
    assert plan.outputs["2.0"] == [index for channel in stays for index in (2 * channel, 2 * channel + 1)]


def test_a_flattened_map_takes_all_its_positions_along():
    plan = plan_pruning(lived_in(flattened()), EXAMPLE, keep=0.5)
    assert plan.inputs["3"] == [16 * channel + place for channel in plan.outputs["0.0"] for place in range(16)]


# What stays whole


class Whole(nn.Module):
    """``use`` says how three layers are used, before others that can be pruned."""

    def __init__(self, use):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        self.scale, self.eye = nn.Parameter(torch.ones(16, 1, 1)), nn.Parameter(torch.eye(16))
        self.after, self.head = ConvNorm(16, 16), nn.Conv2d(16, 4, 1)
        self.use = use

    def forward(self, images):
        return self.head(self.after(self.use(self, self.one(images))))


def read_twice(m, x):
    maps = m.two(x)
    return m.norm(maps) + maps.abs()


def tied_to_bare(m, x):
    maps = m.norm(x)
    return maps + m.two(maps.relu())


def half_mixed(m, x):
    one, other = m.norm(m.two(x)).chunk(2, 1)
    return torch.cat([one.softmax(1), other], 1)


def changed_in_part(m, x):
    maps = m.norm(m.two(x))
    maps[:, :8] += 1
    return maps


WHOLE = {
    "no BatchNorm": lambda m, x: m.norm(m.two(x).relu()),
    "written for nothing": lambda m, x: (m.two(x), m.norm(x))[1],
    "read without its BatchNorm": read_twice,
    "tied to what has no BatchNorm": tied_to_bare,
    "called twice": lambda m, x: m.norm(m.two(m.two(x))),
    "split at a fixed number": lambda m, x: torch.cat(m.norm(m.two(x)).split(8, 1)[::-1], 1),
    "chunks of two sizes": lambda m, x: torch.cat(m.norm(m.two(x)).chunk(3, 1)[::-1], 1),
    "chunk of which one half has to stay": half_mixed,
    "indexed": lambda m, x: m.norm(m.two(x))[:, [*range(8), *range(8)]],
    "changed in part": changed_in_part,
    "mixed": lambda m, x: m.norm(m.two(x)).softmax(1),
    "sorted": lambda m, x: m.norm(m.two(x)).sort(1).values,
    "rolled over": lambda m, x: m.norm(m.two(x)).cummax(1).values,
    "scaled by a parameter": lambda m, x: m.norm(m.two(x)) * m.scale,
    "normalised over channels": lambda m, x: nn.functional.group_norm(m.norm(m.two(x)), 4),
    "convolved outside a layer": lambda m, x: nn.functional.conv2d(m.norm(m.two(x)), m.eye[..., None, None]),
}


@pytest.mark.parametrize("use", WHOLE.values(), ids=WHOLE)
def test_what_cannot_be_followed_stays_whole(use):
    model = lived_in(Whole(use))
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    assert plan.prunable == ["after.0", "after.1"]
    torch.testing.assert_close(prune(model, EXAMPLE, plan, compensate=False)(EXAMPLE), masked(model, plan)(EXAMPLE))


def test_what_a_grouped_convolution_reads_and_writes_stays_whole():
    model = lived_in(nn.Sequential(ConvNorm(3, 16), ConvNorm(16, 16, groups=4), ConvNorm(16, 16), nn.Conv2d(16, 4, 1)))
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    assert plan.prunable == ["2.0", "2.1"]
    prune(model, EXAMPLE, plan)


def test_the_model_s_outputs_stay_whole_unless_told_otherwise():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = ConvNorm(3, 16), nn.Sequential(ConvNorm(16, 16), nn.Conv2d(16, 4, 1))

        def forward(self, images):
            maps = self.body(images)
            return {"out": self.head(maps), "maps": maps}

    model = lived_in(Two())
    assert len(plan_pruning(model, EXAMPLE, keep=0.5).outputs["body.0"]) == 16
    picked = {"outputs": lambda given: given["out"]}
    plan = plan_pruning(model, EXAMPLE, keep=0.6, **picked)
    pruned = prune(model, EXAMPLE, plan, compensate=False, **picked)
    assert pruned(EXAMPLE)["maps"].shape[1] == len(plan.outputs["body.0"]) < 16
    torch.testing.assert_close(pruned(EXAMPLE)["out"], masked(model, plan)(EXAMPLE)["out"])


def tied_layers():
    """Two convolutions with one weight, and a chain beside them that can be pruned."""
    model = nn.Sequential(ConvNorm(3, 16), ConvNorm(16, 16), ConvNorm(16, 16), ConvNorm(16, 16), nn.Conv2d(16, 4, 1))
    model[2][0].weight = model[1][0].weight
    return model


class TiedToEmbedding(nn.Module):
    """A linear layer behind a BatchNorm, whose weight is an embedding's."""

    def __init__(self):
        super().__init__()
        self.body, self.pool = nn.Sequential(ConvNorm(3, 20), ConvNorm(20, 16)), nn.AdaptiveAvgPool2d(1)
        self.words, self.head = nn.Embedding(10, 16), nn.Linear(16, 10)
        self.head.weight = self.words.weight

    def forward(self, images):
        return self.head(self.pool(self.body(images)).flatten(1)) + self.words.weight.mean()


@pytest.mark.parametrize(("build", "tied"), [(tied_layers, ["1.0", "2.0"]), (TiedToEmbedding, ["head", "words"])])
def test_layers_with_one_weight_keep_it_whole_and_in_common(build, tied):
    model = lived_in(build())
    plan = plan_pruning(model, EXAMPLE, keep=0.7, at_least=2)
    pruned = prune(model, EXAMPLE, plan)
    assert numel(pruned) == plan.parameters.after < numel(model)
    weights = [pruned.get_submodule(name).weight for name in tied]
    assert weights[0] is weights[1]
    assert weights[0].shape == model.get_submodule(tied[0]).weight.shape


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.attend = nn.Sequential(ConvNorm(3, 20), ConvNorm(20, 16)), nn.MultiheadAttention(16, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        rows = self.body(images).flatten(2).permute(2, 0, 1)
        return self.head(self.attend(rows, rows, rows)[0].mean(0))


def test_what_attention_reads_stays_whole():
    model = lived_in(Attentive())
    plan = plan_pruning(model, EXAMPLE, keep=0.6, at_least=2)
    assert plan.prunable == ["body.0.0", "body.0.1"]
    assert numel(prune(model, EXAMPLE, plan)) == plan.parameters.after < numel(model)


# The smaller network


def test_it_computes_what_the_masked_one_computes(network):
    plan = plan_pruning(network, EXAMPLE, keep=0.6, at_least=4)
    if isinstance(network, Gated):  # sigmoid(0) is not 0, but times 0 it is
        assert len(plan.outputs["both.0"]) < 24
    pruned = prune(network, EXAMPLE, plan, compensate=False)
    torch.testing.assert_close(pruned(EXAMPLE), masked(network, plan)(EXAMPLE))
    assert not torch.allclose(pruned(EXAMPLE), network(EXAMPLE), rtol=0.01, atol=0.01)
    assert numel(pruned) <= plan.parameters.after < plan.parameters.before == numel(network)
    assert numel(prune(network, EXAMPLE, plan)) == plan.parameters.after  # with the biases that it adds
    assert macs(pruned) == plan.macs.after < plan.macs.before == macs(network)
    assert plan.keep == pytest.approx(0.6, abs=0.06)


def test_keeping_all_changes_nothing(network):
    plan = plan_pruning(network, EXAMPLE, keep=1)
    assert plan.keep == 1
    assert plan.parameters.after == plan.parameters.before
    assert torch.equal(prune(network, EXAMPLE, plan)(EXAMPLE), network(EXAMPLE))


def interior(maps, border=4):
    return maps[..., border:-border, border:-border] if maps.ndim == 4 else maps


def test_the_compensated_one_computes_what_the_masked_one_with_betas_does(network):
    plan = plan_pruning(network, EXAMPLE, keep=0.6, at_least=4)
    pruned = prune(network, EXAMPLE, plan)
    if not any(isinstance(m, nn.AdaptiveAvgPool2d | nn.AvgPool2d) for m in network.modules()):
        wanted = masked(network, plan, betas=False)(EXAMPLE)
        torch.testing.assert_close(interior(pruned(EXAMPLE)), interior(wanted), rtol=1e-4, atol=1e-4)
        lossy = prune(network, EXAMPLE, plan, compensate=False)(EXAMPLE)
        assert not torch.allclose(interior(lossy), interior(wanted), rtol=0.01, atol=0.01)
    verify(pruned, network, EXAMPLE, plan)


def test_only_a_padded_border_feels_the_compensation():
    model = lived_in(Chain())
    plan = plan_pruning(model, EXAMPLE, keep=0.6)
    difference = (prune(model, EXAMPLE, plan)(EXAMPLE) - masked(model, plan, betas=False)(EXAMPLE)).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-4 < 1e-2 < difference[0].max()


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Hardswish, nn.GELU, nn.Softplus])
def test_any_activation_is_compensated(activation):
    model = lived_in(Chain(activation))
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    wanted = masked(model, plan, betas=False)(EXAMPLE)
    torch.testing.assert_close(interior(prune(model, EXAMPLE, plan)(EXAMPLE)), interior(wanted), rtol=1e-4, atol=1e-4)


def test_a_layer_without_bias_and_batchnorm_gets_a_bias():
    model = lived_in(twice_normalised())
    model[3].requires_grad_(False)
    pruned = prune(model, EXAMPLE, plan_pruning(model, EXAMPLE, keep=0.5))
    assert model[3].bias is None
    assert pruned[3].bias.shape == (4,)
    assert not pruned[3].bias.requires_grad
    assert rebuild(twice_normalised(), structure(pruned))[3].bias.shape == (4,)
    assert rebuild(twice_normalised().half(), structure(pruned))[3].bias.dtype == torch.float16


def test_a_batchnorm_that_keeps_no_statistics_takes_the_constant_with_the_mean():
    norm = nn.BatchNorm2d(16, track_running_stats=False)
    nn.init.uniform_(norm.weight, 0.1, 1)
    model = nn.Sequential(lived_in(ConvNorm(3, 16)), nn.Conv2d(16, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    verify(prune(model, EXAMPLE, plan), model, EXAMPLE, plan)


class ReadTwice(nn.Module):
    """What the second convolution puts out goes through a BatchNorm, and around it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = ConvNorm(3, 16), nn.Conv2d(16, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, images):
        maps = self.second(self.first(images))
        return self.norm(maps).relu() + maps


def test_the_running_mean_takes_no_constant_that_others_need():
    model = lived_in(ReadTwice())
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    pruned = prune(model, EXAMPLE, plan)
    torch.testing.assert_close(pruned(EXAMPLE), masked(model, plan, betas=False)(EXAMPLE), rtol=1e-4, atol=1e-4)
    assert torch.equal(pruned.norm.running_mean, model.norm.running_mean)


def test_the_original_stays_and_its_modes_go_along(network):
    network.train()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    layers[0].requires_grad_(False)
    next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    before = copy.deepcopy(network)
    plan = plan_pruning(network, EXAMPLE, keep=0.6, at_least=4)
    pruned, dense = prune(network, EXAMPLE, plan), masked(network, plan)
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    assert structure(network) == structure(before) == structure(dense)
    for model in (network, pruned, dense):
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {name for name, p in before.named_parameters() if not p.requires_grad} != set()
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_it_trains(network):
    plan = plan_pruning(network, EXAMPLE, keep=0.6, at_least=4)
    pruned = prune(network, EXAMPLE, plan).train()
    pruned(EXAMPLE).square().mean().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in pruned.parameters())


def test_a_pruned_model_is_rebuilt_from_its_structure_and_loads_strictly(network, tmp_path):
    pruned = prune(network, EXAMPLE, plan_pruning(network, EXAMPLE, keep=0.6, at_least=4))
    save_tensors(tmp_path / "pruned.safetensors", pruned.state_dict(), {"structure": structure(pruned)})
    tensors, meta = load_tensors(tmp_path / "pruned.safetensors")
    fresh = copy.deepcopy(network)
    for parameter in fresh.parameters():
        parameter.data.normal_()
    again = rebuild(fresh, meta["structure"])
    again.load_state_dict(tensors, strict=True)
    assert torch.equal(again(EXAMPLE), pruned(EXAMPLE))
    assert structure(fresh) == structure(network) != structure(again) == structure(pruned)


# Targets


@pytest.mark.parametrize("what", ["parameters", "macs"])
@pytest.mark.parametrize("share", [0.35, 0.5, 0.9])
def test_a_target_is_met_within_one_channel(what, share):
    model = lived_in(Chunk(True))
    dense = getattr(plan_pruning(model, EXAMPLE, keep=1), what).before
    target = int(share * dense)
    plan = plan_pruning(model, EXAMPLE, **{what: target}, at_least=2)
    assert getattr(plan, what).after <= target
    wider = (plan_pruning(model, EXAMPLE, keep=plan.keep + k / 96, at_least=2) for k in range(1, 5))
    assert getattr(next(step for step in wider if step.keep > plan.keep), what).after > target


def test_a_target_counts_the_biases_that_compensation_adds():
    layers = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 64, 1, bias=False)
    model = lived_in(nn.Sequential(*layers))
    dense = numel(model)
    for target in range(dense - 80, dense, 7):  # the first channel that goes saves fewer weights than biases come
        plan = plan_pruning(model, EXAMPLE, parameters=target, at_least=1)
        assert numel(prune(model, EXAMPLE, plan)) == plan.parameters.after <= target


def test_the_ends_of_a_target_are_reached_and_no_more():
    model = lived_in(Chain())
    assert plan_pruning(model, EXAMPLE, parameters=numel(model)).keep == 1
    with pytest.raises(InputError, match="parameters is 1; wanted: from 869, the smallest possible .* to 4,093"):
        plan_pruning(model, EXAMPLE, parameters=1)
    assert plan_pruning(model, EXAMPLE, parameters=869).parameters.after == 869
    with pytest.raises(InputError, match=r"to 1,026,048 \(0.00205 GFLOPs\), the model as it is"):
        plan_pruning(model, EXAMPLE, macs=10**9)


def test_the_smallest_keep_is_named_and_works():
    model = lived_in(Chain())
    with pytest.raises(InputError, match="keep is 0.1, but the smallest possible is 0.4:"):
        plan_pruning(model, EXAMPLE, keep=0.1)
    plan = plan_pruning(model, EXAMPLE, keep=0.4)
    assert [len(plan.outputs[name]) for name in ("0.0", "1.0")] == [8, 8]


# Refusals


@pytest.mark.parametrize("keep", [0, -0.5, 1.01, float("nan")])
def test_keep_is_a_fraction(keep):
    with pytest.raises(InputError, match=f"keep is {keep}; wanted: the fraction"):
        plan_pruning(Chain(), EXAMPLE, keep=keep)


def test_exactly_one_target():
    with pytest.raises(InputError, match="given: no target"):
        plan_pruning(Chain(), EXAMPLE)
    with pytest.raises(InputError, match="given: keep and macs"):
        plan_pruning(Chain(), EXAMPLE, keep=0.5, macs=100)
    with pytest.raises(InputError, match="at_least is 0"):
        plan_pruning(Chain(), EXAMPLE, keep=0.5, at_least=0)


def test_an_example_of_the_wrong_shape_is_refused():
    with pytest.raises(InputError, match="cannot be run on an example of shape \\(2, 4, 16, 16\\)"):
        plan_pruning(Chain(), torch.rand(2, 4, 16, 16), keep=0.5)


def test_a_model_without_a_prunable_channel_is_refused():
    with pytest.raises(InputError, match="no channel that could go"):
        plan_pruning(ConvNorm(3, 16), EXAMPLE, keep=0.5)


def test_layers_that_eval_mode_does_not_reach_are_refused():
    model = Whole(lambda m, x: m.norm(x))
    with pytest.raises(InputError, match="Whole does not reach two in eval mode"):
        plan_pruning(model, EXAMPLE, keep=0.5)


def test_a_plan_of_another_model_is_refused():
    plan = plan_pruning(lived_in(Chain()), EXAMPLE, keep=0.5)
    wide = nn.Sequential(ConvNorm(3, 32), ConvNorm(32, 24), nn.Conv2d(24, 5, 1))
    for call in (lambda m: prune(m, EXAMPLE, plan), lambda m: masked(m, plan)):
        with pytest.raises(InputError, match="another model: unknown layer '0.0'"):
            call(Residual())
        with pytest.raises(InputError, match="another model: in it, 0.0 has 16 channels"):
            call(wide)


def test_a_structure_of_another_model_is_refused():
    small = structure(Chain())
    with pytest.raises(InputError, match="structure is of another model than Residual"):
        rebuild(Residual(), small)
    with pytest.raises(InputError, match="structure is of another model: 0.0 is"):
        rebuild(Chain(), {**small, "0.0": {"outputs": 17, "inputs": 3, "bias": False}})


def test_a_wrong_index_is_found():
    model = lived_in(Concat())
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    stays = plan.inputs["fuse.0"]
    shifted = sorted({(index + 1) % 32 for index in stays})
    for compensate in (False, True):
        with pytest.raises(InputError, match="does not compute what the masked model does"):
            prune(model, EXAMPLE, replace(plan, inputs={**plan.inputs, "fuse.0": shifted}), compensate=compensate)
    with pytest.raises(InputError, match="the pruned model and the plan do not fit"):
        prune(model, EXAMPLE, replace(plan, inputs={**plan.inputs, "fuse.0": stays[1:]}), compensate=False)


def test_a_changed_weight_is_found():
    model = lived_in(Chain())
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    pruned = prune(model, EXAMPLE, plan)
    verify(pruned, model, EXAMPLE, plan)
    pruned[1][0].weight.data[0, 0] += 0.01
    with pytest.raises(InputError, match="differs by up to"):
        verify(pruned, model, EXAMPLE, plan)


def test_a_number_of_channels_in_the_forward_is_found():
    class Fixed(nn.Sequential):
        def forward(self, images):
            return self[2](self[1](images).view(-1, 256))

    model = lived_in(Fixed(nn.Identity(), nn.Sequential(ConvNorm(3, 16), nn.AvgPool2d(4)), nn.Linear(256, 3)))
    plan = plan_pruning(model, EXAMPLE, keep=0.5)
    with pytest.raises(InputError, match=r"states a number of channels"):
        prune(model, EXAMPLE, plan)


# Beside a peer


def separable():
    return nn.Sequential(ConvNorm(3, 16, 1), ConvNorm(16, 16, groups=16), nn.Conv2d(16, 4, 1))


@pytest.mark.parametrize("build", [Chain, Residual, Concat, separable, pooled, flattened])
def test_torch_pruning_ties_the_same_channels(build):
    peer = pytest.importorskip("torch_pruning")
    model = lived_in(build())
    graph = peer.DependencyGraph().build_dependency(model, EXAMPLE[:1], verbose=False)
    own = follow_channels(model, EXAMPLE, lambda given: given)
    modules = dict(model.named_modules())
    for layer in own.inputs:
        group = own.outputs[layer][-1]
        if not own.prunable[group]:
            continue
        root = graph.get_pruner_of_module(modules[layer]).prune_out_channels
        theirs = {
            (dependency.target.module, dependency.handler.__name__): sorted(indices)
            for dependency, indices in graph.get_pruning_group(modules[layer], root, [len(own.outputs[layer]) - 1])
        }
        for side, layers in (("out", own.outputs), ("in", own.inputs)):
            for other, groups in layers.items():
                if side == "out" or getattr(modules[other], "groups", 1) == 1:  # for them, depthwise has but one side
                    found = theirs.get((modules[other], f"prune_{side}_channels"), [])
                    assert (groups == group).nonzero()[0].tolist() == found, (layer, other, side)


@pytest.mark.parametrize("compensated", [True, False])
def test_a_weight_that_was_changed_a_little_is_noticed(compensated):
    model, example = Chain().eval(), torch.randn(1, 3, 16, 16)
    plan = plan_pruning(model, example, keep=0.5, at_least=1)
    pruned = prune(model, example, plan, compensate=compensated)
    verify(pruned, model, example, plan, compensated=compensated)
    with torch.no_grad():
        next(pruned.parameters()).mul_(1.001)
    with pytest.raises(InputError, match="does not compute what the masked model does"):
        verify(pruned, model, example, plan, compensated=compensated)


def test_a_layer_whose_weight_is_computed_stays_whole():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3)), nn.BatchNorm2d(16), nn.ReLU(),
    ).eval()  # fmt: skip
    for norm in (model[1], model[4], model[7]):
        nn.init.uniform_(norm.weight, 0.1, 1)
    plan = plan_pruning(model, torch.randn(1, 3, 12, 12), keep=0.6)
    assert plan.prunable == ["0", "1"]
    pruned = prune(model, torch.randn(1, 3, 12, 12), plan)
    assert pruned[6].weight.shape == model[6].weight.shape


class GivesItsMapToo(nn.Module):
    """Beside its answer what a layer puts out before its BatchNorm, which nobody asks for."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.second, self.other = nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, images):
        raw = self.second(self.norm(self.first(images)).relu())
        return self.head(self.other(raw).relu().mean(dim=(2, 3))), raw


def test_an_output_that_is_not_picked_changes_nothing_of_what_is_compensated_where():
    model, example = GivesItsMapToo().eval(), torch.randn(1, 3, 12, 12)
    for norm in (model.norm, model.other):
        nn.init.uniform_(norm.weight, 0.1, 1)
        nn.init.uniform_(norm.bias, 0.1, 1)
    plan = plan_pruning(model, example, keep=0.6, outputs=lambda given: given[0])
    pruned = prune(model, example, plan, outputs=lambda given: given[0])
    assert sum(p.numel() for p in pruned.parameters()) == plan.parameters.after < plan.parameters.before
    assert pruned.second.bias is None


def test_gammas_that_are_all_alike_are_told_of(recwarn):
    model, example = Chain().eval(), torch.randn(1, 3, 16, 16)  # as PyTorch makes it
    with pytest.warns(UserWarning, match="all gammas are 1, and say nothing about which channels matter"):
        plan_pruning(model, example, keep=0.5, at_least=1)
    nn.init.uniform_(model[0][1].weight)
    recwarn.clear()
    plan_pruning(model, example, keep=0.5, at_least=1)
    assert not recwarn.list
