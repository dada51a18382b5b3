"""All losses on whatever they may be given: the right value, with finite gradients, or a sentence that says why not.

Each loss gets 1,000 examples, the same at every run, which take under two minutes of one core for all; more would take
too much of the suite's time. For a longer search, of others:

    KDLAB_FUZZ=20000 python -m pytest tests/losses/test_fuzz.py

An example is one number, from which a generator draws the rest: Hypothesis' own draws would take most of the time.
"""

import copy
import math
import os
import random
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import config
from literal import literal
from torch import nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import kdlab.losses
from kdlab import InputError
from kdlab.losses import (
    ABLoss,
    ATLoss,
    CKTLoss,
    CRDLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    DMLLoss,
    FSPLoss,
    FTLoss,
    HCRLoss,
    HintLoss,
    KDLoss,
    KTLoss,
    LabelledCrossEntropy,
    LabLoss,
    LaplacianLoss,
    MGDLoss,
    OFDLoss,
    PixelCrossEntropy,
    PKTLoss,
    ReviewKDLoss,
    RKDLoss,
    SCRLoss,
    SPLoss,
    VIDLoss,
    ofd_margin,
)

EXAMPLES = int(os.environ.get("KDLAB_FUZZ", 1000))
FLOAT32 = torch.finfo(torch.float32).eps
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels last", "every second", "transposed", "expanded"]
SPOILS = ["size", "empty", "more dimensions", "fewer dimensions", "int64", "bool", "classes"]
VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "normal": lambda x: x,
    "zero": torch.zeros_like,
    "equal": torch.ones_like,
    "tiny": lambda x: x * 1e-30,
    "large": lambda x: x * 1e4,
    "negative": lambda x: -x.abs(),
    "far from zero": lambda x: x + 1e3,
    "duplicates": lambda x: x[:1].expand_as(x),
    "nearly duplicates": lambda x: x[:1] + x * 1e-7,
    "half zero": lambda x: torch.where(x > 0, x, 0),
    "peaked": lambda x: torch.where(x == x.amax(tuple(range(x.ndim))[1:], keepdim=True), 1e4, 0),
}


class Pick:
    """Hyper-parameters, most of them good ones; ``good`` says whether all were."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.good = True

    def of(self, *good: Any, bad: tuple[Any, ...] = ()) -> Any:
        if bad and self.random.randrange(30) == 29:
            self.good = False
            return self.random.choice(bad)
        return self.random.choice(good)

    def positive(self, *more: float) -> float:
        return self.of(1.0, 4.0, 0.5, 20.0, *more, bad=(0.0, -1.0, math.inf, math.nan))

    def temperature(self) -> float:
        return self.positive(0.01, 1e3)

    def weight(self) -> float:
        return self.of(1.0, 0.0, 8.0, 1e3, bad=(-1.0, math.inf, math.nan))


@dataclass
class Given:
    """One tensor before it is made."""

    shape: tuple[int, ...]
    values: str
    layout: str
    dtype: torch.dtype
    seed: int

    @classmethod
    def draw(cls, pick: "Pick", shape: tuple[int, ...]) -> "Given":
        return cls(shape, pick.of(*VALUES), pick.of(*LAYOUTS), pick.of(*FLOATS), pick.of(*range(1000)))

    def made(self) -> torch.Tensor:
        shape = list(self.shape)
        if self.layout == "every second" and shape:
            shape[-1] *= 2
        if self.layout == "transposed":
            shape.reverse()
        if self.layout == "expanded" and shape:
            shape[0] = min(shape[0], 1)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        if x.numel() and x.ndim > 1:
            x = VALUES[self.values](x)
        x = x.clamp(-6e4, 6e4).to(self.dtype).contiguous()
        if self.layout == "channels last" and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.layout == "every second" and x.ndim:
            x = x[..., ::2]
        if self.layout == "transposed":
            x = x.permute(*reversed(range(x.ndim)))
        return x.expand(self.shape).requires_grad_(x.is_floating_point())


@dataclass
class Sizes:
    """What shapes are made of; a second layer or network has its own channels, height and width."""

    n: int
    c: int
    h: int
    w: int
    c2: int
    h2: int
    w2: int

    @property
    def map(self) -> tuple[int, ...]:
        return self.n, self.c, self.h, self.w

    @property
    def map2(self) -> tuple[int, ...]:
        return self.n, self.c2, self.h2, self.w2

    @property
    def least(self) -> int:
        """Positions of the smaller of the two in each direction."""
        return min(self.h, self.h2) * min(self.w, self.w2)


@dataclass(frozen=True)
class Case:
    """A loss: how to make it, the shapes that it takes, and which sizes it must accept."""

    make: Callable[[Pick, Sizes], nn.Module]
    shapes: Callable[[Pick, Sizes], list[Any]]
    accepts: Callable[[Sizes], bool] = lambda s: True
    classes: Callable[[Sizes], int] | None = None  # of a last argument: class indices, or places in a data set
    unlabelled: int | None = None  # the number of one without a class
    targets: Callable[[Sizes], tuple[int, ...]] = lambda s: (s.n,)  # the shape of that argument
    fixed: int = 0  # how many of the student's tensors, the last ones, get no gradient
    free: tuple[int, ...] = ()  # the dimensions whose size may differ between the sides: the loss resizes, or need not
    flattens: bool = False  # whether any number of dimensions after the batch is welcome


def logits(pick: Pick, s: Sizes) -> list[Any]:
    return [(s.n, s.c)] * 2


def embeddings(pick: Pick, s: Sizes) -> list[Any]:
    return [(s.n, s.c), (s.n, s.c2)]


def one_map(pick: Pick, s: Sizes) -> list[Any]:
    return [s.map] * 2


def one_map_or_row(pick: Pick, s: Sizes) -> list[Any]:
    return [pick.of((s.n, s.c), s.map)] * 2


def two_maps(pick: Pick, s: Sizes) -> list[Any]:
    return [s.map, s.map2]


def any_features(pick: Pick, s: Sizes) -> list[Any]:
    return [pick.of((s.n, s.c), s.map, s.map[:3]), pick.of((s.n, s.c2), s.map2)]


def stages(pick: Pick, s: Sizes) -> list[Any]:
    return [[s.map, s.map2, (s.n, s.c, 1, 1)][: pick.of(1, 2, 3)]] * 2


def pair(pick: Pick, s: Sizes) -> list[Any]:
    return [[s.map, s.map2], [(s.n, s.c, s.h2, s.w2), (s.n, s.c2, s.h, s.w)]]


def restored(pick: Pick, s: Sizes) -> list[Any]:
    images = (s.n, 3, s.h, s.w)
    return [[images, images], images]


def images(pick: Pick, s: Sizes) -> list[Any]:
    return [(s.n, 3, s.h, s.w)] * 2


class TwoMaps(nn.Module):
    """Maps of an image, for the losses that compare images by a frozen network's."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images.relu(), images.flip(1) / 2]


def ofd(pick: Pick, s: Sizes) -> nn.Module:
    batchnorm = nn.BatchNorm2d(s.c)
    with torch.no_grad():
        batchnorm.weight.fill_(pick.of(1.0, 0.0, -0.5, 1e-30, 1e4))
        batchnorm.bias.fill_(pick.of(0.0, 1.0, -1.0, 1e4, -1e4))
    return OFDLoss(ofd_margin(batchnorm))


def several_samples(s: Sizes) -> bool:
    return s.n > 1


CASES = {
    "KDLoss": Case(lambda p, s: KDLoss(p.temperature()), logits, lambda s: s.c > 1),
    "DMLLoss": Case(lambda p, s: DMLLoss(p.temperature()), logits, lambda s: s.c > 1),
    "LabelledCrossEntropy": Case(
        lambda p, s: LabelledCrossEntropy(), lambda p, s: [(s.n, s.c)], classes=lambda s: s.c, unlabelled=-100,
        free=(1,),
    ),
    "PixelCrossEntropy": Case(
        lambda p, s: PixelCrossEntropy(), lambda p, s: [s.map], classes=lambda s: s.c, unlabelled=255,
        targets=lambda s: (s.n, s.h, s.w), free=(1,),
    ),
    "DKDLoss": Case(
        lambda p, s: DKDLoss(p.weight(), p.weight(), p.temperature()),
        logits, lambda s: s.c > 1, lambda s: s.c, unlabelled=-100,
    ),
    "DISTLoss": Case(
        lambda p, s: DISTLoss(p.weight(), p.weight(), p.temperature()),
        one_map_or_row, lambda s: s.n > 1 and s.c > 1,
    ),
    "HintLoss": Case(lambda p, s: HintLoss(), one_map_or_row),
    "ATLoss": Case(
        lambda p, s: ATLoss(p.of(2, 1, 1.5, 4, 20, bad=(0.5, -1, math.inf, math.nan))), two_maps, lambda s: s.least > 1,
        free=(1, 2, 3),
    ),
    "ABLoss": Case(lambda p, s: ABLoss(p.positive(1e-30, 1e4)), one_map),
    "OFDLoss": Case(ofd, one_map),
    "FTLoss": Case(lambda p, s: FTLoss(p.of(1, 2, bad=(0, 3))), one_map),
    "VIDLoss": Case(lambda p, s: VIDLoss(s.c, s.c2, p.positive(2e-5, 1e4)), two_maps, free=(2, 3)),
    "ReviewKDLoss": Case(lambda p, s: ReviewKDLoss(), stages),
    "CWDLoss": Case(lambda p, s: CWDLoss(p.temperature()), one_map, lambda s: s.h * s.w > 1),
    "MGDLoss": Case(
        lambda p, s: MGDLoss(s.c, s.c2, p.of(0.65, 0.0, 1.0, bad=(-0.1, 1.1, math.nan)), p.of("spatial", "channel")),
        lambda p, s: [s.map, (s.n, s.c2, s.h, s.w)],
    ),
    "FSPLoss": Case(lambda p, s: FSPLoss(), pair, free=(2, 3)),
    "RKDLoss": Case(
        lambda p, s: RKDLoss(p.weight(), p.of(50.0, 1e-3, bad=(-1.0,))), embeddings, several_samples, free=(1,)
    ),
    "SPLoss": Case(lambda p, s: SPLoss(), any_features, several_samples, free=(1, 2, 3), flattens=True),
    "PKTLoss": Case(lambda p, s: PKTLoss(), embeddings, several_samples, free=(1,)),
    "CKTLoss": Case(lambda p, s: CKTLoss(detach=True), one_map),
    "SCRLoss": Case(
        lambda p, s: SCRLoss(
            TwoMaps(), (0.5, p.of(1.0, 0.0, bad=(-1.0, math.nan))), p.of("paired", "same_weather"),
            p.positive(1e-7),
        ),
        restored, fixed=1,
    ),
    "HCRLoss": Case(lambda p, s: HCRLoss(TwoMaps(), (1.0, 0.25), p.positive(1e-7)), restored, fixed=1),
    "KTLoss": Case(lambda p, s: KTLoss(), one_map),
    "LaplacianLoss": Case(
        lambda p, s: LaplacianLoss(p.of(2, 1, bad=(0, -1))), images, lambda s: min(s.h, s.w) > 1
    ),
    "LabLoss": Case(lambda p, s: LabLoss(), images),
    "CRDLoss": Case(
        lambda p, s: CRDLoss(
            s.c, s.c2, samples=9, dim=p.of(4, 1), negatives=p.of(5, 1, 20), temperature=p.positive(0.07, 0.01),
            momentum=p.of(0.5, 0.0, 1.0, bad=(-0.1, 1.1, math.nan)),
        ),
        embeddings, classes=lambda s: 9,
    ),
}  # fmt: skip


def drawn_classes(pick: Pick, s: Sizes, case: Case, spoilt: str | None) -> torch.Tensor | None:
    if case.classes is None:
        return None
    k = case.classes(s)
    classes = torch.randint(k, case.targets(s), generator=torch.Generator().manual_seed(pick.of(*range(9))))
    if case.unlabelled is not None and pick.of(False, True):
        classes[pick.of(*range(s.n)) :] = case.unlabelled
    if spoilt == "classes":
        way = pick.of("greater", "negative", "shape", "float", "bool")
        if way in ("greater", "negative"):
            classes.flatten()[0] = k if way == "greater" else -1
        elif way == "shape":
            classes = classes[None]
        else:
            classes = classes.to(torch.float32 if way == "float" else torch.bool)
    return classes


def spoil(pick: Pick, spoilt: str, tensor: Given, case: Case) -> bool:
    """Change the tensor; whether the loss may still take it: a size that is free, or dimensions that it flattens."""
    if spoilt in ("int64", "bool"):
        tensor.dtype = getattr(torch, spoilt)
    elif spoilt == "more dimensions":
        tensor.shape += (2,)
        return case.flattens
    elif spoilt == "fewer dimensions":
        tensor.shape = tensor.shape[:-1]
        return case.flattens and len(tensor.shape) > 1
    elif spoilt in ("size", "empty"):
        dim = pick.of(*range(len(tensor.shape)))
        size = tensor.shape[dim] + 1 if spoilt == "size" else 0
        tensor.shape = (*tensor.shape[:dim], size, *tensor.shape[dim + 1 :])
        return spoilt == "size" and dim in case.free
    return spoilt == "classes" and case.classes is None


@contextmanager
def shapes_checked(checked: bool):
    config.update("jaxtyping_disable", not checked)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def test_every_loss_is_here():
    assert set(CASES) | {"ofd_margin", "srgb_to_lab"} == set(kdlab.losses.__all__)


@pytest.mark.parametrize("name", CASES)
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck),
    derandomize="KDLAB_FUZZ" not in os.environ,
)  # fmt: skip
@given(seed=st.integers(0, 2**32 - 1))
def test_the_right_value_or_a_sentence(name, seed):
    case, pick = CASES[name], Pick(seed)
    sizes = Sizes(pick.of(2, 3, 1), *(pick.of(2, 3, 5, 1) for _ in range(6)))
    shapes = case.shapes(pick, sizes)
    inputs = tree_map(partial(Given.draw, pick), shapes, is_leaf=lambda x: isinstance(x, tuple))
    if shapes[0] == shapes[-1] and pick.of(*[False] * 9, True):
        inputs[-1] = copy.deepcopy(inputs[0])  # a perfect match
    spoilt = pick.of(*[None] * len(SPOILS), *SPOILS)
    classes = drawn_classes(pick, sizes, case, spoilt)
    givens, structure = tree_flatten(inputs)
    fits = not spoilt or spoil(pick, spoilt, pick.of(*givens), case)
    tensors = [one.made() for one in givens]
    sides = tree_unflatten(tensors, structure)
    of_student = len(tree_leaves(inputs[0])) - case.fixed
    checked = pick.of(*[False] * 99, True)
    rest = [] if classes is None else [classes]

    loss = value = refusal = None
    with shapes_checked(checked):
        try:
            # torch.manual_seed also keeps the call for CUDA, with its stack: a quarter of an example's time.
            torch.default_generator.manual_seed(0)
            loss = case.make(pick, sizes)
            before = copy.deepcopy(loss).double()
            torch.default_generator.manual_seed(0)
            value = loss(*sides, *rest)
        except InputError as error:
            refusal = str(error)
        except TypeError:  # jaxtyping's
            assert checked

    if refusal is not None:
        assert refusal.endswith(".")
        assert re.search(r"\d|torch\.|nan|inf", refusal)  # what was given

    if not pick.good or not fits:
        assert value is None
    elif not spoilt and case.accepts(sizes):
        assert value is not None
    if value is not None:
        assert value.shape == ()
        assert value.isfinite()
        compared = [x.to(tensors[0].dtype) for x in tensors] if hasattr(loss, "features") else tensors  # as documented
        exact = tree_unflatten([x.detach().double() for x in compared], structure)
        wanted, size = literal(name, before, *exact, *rest)
        if math.isfinite(wanted):
            allowed = 100 * rounding(loss, tensors[:of_student]) * (abs(wanted) + size)
            assert abs(value.item() - wanted) <= allowed + 1e-20  # "tiny" is 0 in float16, and its square in float32
        value.backward()
        for tensor in tensors[:of_student]:  # a gradient to float16 is infinite from 65504 on
            assert not tensor.grad.isnan().any()
            assert tensor.grad.isfinite().all() or tensor.dtype == torch.float16
        assert all(tensor.grad is None for tensor in tensors[of_student:])


def rounding(loss: nn.Module, students: list[torch.Tensor]) -> float:
    """Of one operation, relative: that of the widest type that all steps have, float32's for half precision."""
    if hasattr(loss, "features"):  # a network, in the images' own type; then float32
        return max(torch.finfo(students[0].dtype).eps, FLOAT32)
    exact = all(x.dtype == torch.float64 for x in students) and not list(loss.parameters())
    return torch.finfo(torch.float64).eps if exact else FLOAT32


# What this search has found.


def test_a_target_of_true_and_false_is_no_class():
    for loss, sides in ((LabelledCrossEntropy(), 1), (DKDLoss(), 2)):
        with shapes_checked(False), pytest.raises(InputError, match=r"target has dtype torch\.bool"):
            loss(*[torch.zeros(2, 3)] * sides, torch.tensor([True, False]))


@pytest.mark.parametrize(
    ("logits", "target", "sentence"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "target has numbers from 0 to 3; all must be of 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "target has numbers from -1 to 0"),
        (torch.zeros(2, 3), torch.zeros(3).long(), r"target is \(3,\); wanted: \(2\)"),
        (torch.zeros(2, 3), torch.zeros(2, device="meta").long(), r"target is on meta.*target.to\('cpu'\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2).long(), r"tensor is \(2, 3, 4\); wanted: 2 dimensions"),
    ],
)
def test_cross_entropy_names_a_target_that_does_not_fit(logits, target, sentence):
    with shapes_checked(False), pytest.raises(InputError, match=sentence):
        LabelledCrossEntropy()(logits, target)


def test_the_classes_of_any_integer_are_what_they_are():
    logits = torch.randn(3, 200)
    for loss, sides in ((LabelledCrossEntropy(), [logits]), (DKDLoss(), [logits, 2 * logits])):
        classes = torch.tensor([156, 0, 199])  # in uint8 156 and -100 are one number
        with shapes_checked(False):
            torch.testing.assert_close(loss(*sides, classes.to(torch.uint8)), loss(*sides, classes))
    with shapes_checked(False), pytest.raises(InputError, match="a mask has the number -1"):
        PixelCrossEntropy()(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), -1, dtype=torch.int8))


@pytest.mark.parametrize("loss", [KDLoss(), DISTLoss(), HintLoss(), SPLoss(), ATLoss()])
def test_what_is_no_tensor_is_named(loss):
    with shapes_checked(False), pytest.raises(InputError, match=r"the student gives a tuple; wanted: one.*item="):
        loss((torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))


def test_fsp_takes_layers_of_two_precisions():
    first, last = torch.randn(2, 2, 3, 3), torch.randn(2, 4, 3, 3)
    teacher = [torch.randn(2, 2, 3, 3), torch.randn(2, 4, 3, 3)]
    value = FSPLoss()([first, last.double()], teacher)
    torch.testing.assert_close(value, FSPLoss()([first, last], teacher))


class Usual(Pick):
    """The first of what may be chosen."""

    def of(self, *good: Any, bad: tuple[Any, ...] = ()) -> Any:
        return good[0]


@pytest.mark.parametrize("side", [0, -1], ids=["student", "teacher"])
@pytest.mark.parametrize("name", CASES)
def test_one_nan_is_not_hidden(name, side):
    case, pick, sizes = CASES[name], Usual(0), Sizes(3, 3, 3, 3, 3, 3, 3)
    torch.manual_seed(0)
    sides = tree_map(torch.randn, case.shapes(pick, sizes), is_leaf=lambda x: isinstance(x, tuple))
    tree_leaves(sides[side])[0].flatten()[4] = math.nan
    rest = [] if case.classes is None else [torch.zeros(case.targets(sizes), dtype=torch.int64)]
    assert case.make(pick, sizes)(*sides, *rest).isnan()
