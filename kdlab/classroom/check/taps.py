"""The checks of chapter 02."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.classroom.check.grading import Answer, ask, ask_also, compare, say
from kdlab.distill import ConvConnector, Tap, Taps
from kdlab.errors import InputError


def recorded(answer: Callable[[nn.Module, nn.Module, Tensor], Tensor]) -> bool:
    """02, exercise 1: ``answer(model, layer, images)`` gives what the layer puts out, and leaves no hook behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        model = nn.Sequential(nn.Linear(5, 4), layer, nn.ReLU(inplace=True), nn.Linear(3, 2))
        images = torch.randn(6, 5)
    before = model[0](images)
    want = layer(before).detach()
    known = {
        want.relu(): "these values were changed after you had recorded them: the ReLU works in place. Record a copy.",
        model(images): "this is the output of the whole model; wanted: the layer's.",
        before: "this is the layer's input; a forward hook gets (module, inputs, output).",
    }
    problem = ask(answer, (model, layer, images), want, known)
    if problem is None and any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        problem = "the value is right, but your hook is still there: remove it by its handle."
    return say(problem)


def connector_parameters(answer: Answer) -> bool:
    """02, exercise 2: ``answer(student_channels, teacher_channels, kernel_size, norm)`` gives a connector's count."""
    for norm in (False, True):
        a, b, k = 16, 64, 3
        weights, rest = a * b * k * k, 2 * b if norm else b
        built = ConvConnector(a, b, kernel_size=3, norm=norm)
        known = {
            float(a * b + rest): "a 3x3 kernel has nine weights for each pair of channels.",
            float(a * b * k + rest): "the kernel is square: k times k weights for a pair of channels.",
            float(weights): "the weights are right; what else is learnt? A bias, or BatchNorm's scale and shift.",
        }
        if norm:
            known[float(weights + b)] = "with BatchNorm there is no bias, but a scale and a shift for each channel."
            known[float(weights + 3 * b)] = "with BatchNorm the convolution has no bias: the shift would undo it."
        else:
            known[float(weights + a)] = "one bias for each channel that comes out, not that goes in."
        problem = ask(answer, (a, b, k, norm), sum(p.numel() for p in built.parameters()), known)
        pointwise = a * b + (2 * b if norm else b)
        problem = ask_also(problem, answer, (a, b, 1, norm), pointwise, "with a 1x1 kernel")
        if problem is not None:
            return say(f"with norm={norm}: {problem}")
    return say(None)


def second_call(answer: Any, model: nn.Module, images: Tensor) -> bool:
    """02, exercise 3: a tap that reads the second call of a layer of this model."""
    if not isinstance(answer, Tap):
        return say(f"you gave a {type(answer).__name__}; wanted: a Tap.")
    calls: list[Tensor] = []
    handle = model.get_submodule("shared").register_forward_hook(lambda module, inputs, output: calls.append(output))
    try:
        with torch.no_grad(), Taps(model, [answer]) as taps:
            model(images)
        got = taps[answer]
    except InputError as error:
        return say(f"kdlab says: {error}")
    finally:
        handle.remove()
    first = "this is the first call: calls are counted from 0."
    problem = compare(got, calls[1], {calls[0]: first})
    if problem is None and answer.what != "output":
        problem = "the numbers are right, but they are what a call is given; wanted: what the second one puts out."
    return say(problem)


def shrunk(answer: Answer) -> bool:
    """02, exercise 4: ``answer(maps (n, c, h, w), size)`` gives (n, c, size, size), each the mean of its area."""
    maps = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    want = F.interpolate(maps, 2, mode="area")
    known = {
        F.interpolate(maps, 2, mode="bilinear"): "bilinear looks at the four nearest positions only; wanted: all 16.",
        maps[:, :, ::4, ::4]: "you took every fourth position; wanted: the mean of all 16.",
        F.adaptive_max_pool2d(maps, 2): "you took the largest of each area; wanted: its mean.",
        want * 16: "you summed each area; wanted: its mean.",
    }
    larger = F.interpolate(maps, 4, mode="area")
    problem = ask_also(ask(answer, (maps, 2), want, known), answer, (maps, 4), larger, "for size 4")
    wide = torch.cat([maps, maps.flip(0)], dim=3)
    return say(ask_also(problem, answer, (wide, 4), F.interpolate(wide, 4, mode="area"), "for maps of 8 x 16"))


def dangerous(answer: Any, connectors: Mapping[str, nn.Module]) -> bool:
    """02, exercise 5: the names of the connectors that would be dangerous on the teacher's side."""
    if not isinstance(answer, set | frozenset | list | tuple) or not all(name in list(connectors) for name in answer):
        return say(f"you gave {answer!r}; wanted: a set of names among {', '.join(connectors)}.")
    for name, connector in connectors.items():
        learns = [key for key, p in connector.named_parameters() if p.requires_grad]
        if learns and name not in answer:
            return say(f"{name!r} can learn, its {learns[0]!r} among other things; nothing ties it to the teacher.")
        if name in answer and not learns:
            return say(f"{name!r} has nothing that learns: it shows every teacher in the same way, and is safe.")
    return say(None)
