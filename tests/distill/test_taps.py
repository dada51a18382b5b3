"""Taps: layers read by name, hooks that leave."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.distill import Tap, Taps
from kdlab.distill.reader import Reader
from kdlab.distill.taps import tensors_in


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_records_are_the_layers_outputs(model):
    x = torch.randn(5, 4)
    with Taps(model, ["0", "2", ""]) as taps:
        out = model(x)
    assert torch.equal(taps["0"], model[0](x))
    assert torch.equal(taps["2"], out)
    assert torch.equal(taps[""], out)


def test_the_gradient_flows_through_a_record(model):
    with Taps(model, ["0"]) as taps:
        model(torch.randn(5, 4))
    taps["0"].sum().backward()
    assert model[0].weight.grad is not None


def test_the_hooks_leave_also_after_an_error(model):
    with Taps(model, ["0", "2"]):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), Taps(model, ["0"]):
        model(torch.randn(5, 99))
    assert hooks(model) == 0


def test_entering_again_forgets_the_last_records(model):
    taps = Taps(model, ["0"])
    with taps:
        model(torch.randn(5, 4))
    with taps, pytest.raises(InputError, match="not reached"):
        taps["0"]
    x = torch.randn(5, 4)
    with taps:
        model(x)
    taps.drop_copies()
    assert torch.equal(taps["0"], model[0](x))


def test_an_unknown_layer_is_an_error_at_once_with_near_names():
    model = nn.Sequential()
    model.add_module("classifier", nn.Linear(2, 2))
    with pytest.raises(InputError, match="unknown layer of Sequential 'clasifier'. Did you mean 'classifier'"):
        Taps(model, ["clasifier"])


def test_without_a_near_name_the_networks_own_parts_are_named():
    model = nn.ModuleDict({"body": nn.Sequential(*(nn.ReLU() for _ in range(30))), "classifier": nn.Linear(2, 2)})
    with pytest.raises(InputError, match="unknown layer of ModuleDict 'xyz'. Known: 'body', 'classifier'."):
        Taps(model, ["xyz"])


def test_of_a_network_without_layers_its_own_name_is_said():
    with pytest.raises(InputError, match="Linear has no layers inside.*'clasifier'; wanted: \"\", the network itself"):
        Taps(nn.Linear(2, 2), ["clasifier"])


def test_a_text_for_the_list_of_names_is_refused(model):
    with pytest.raises(InputError, match=r"taps is '0'; wanted: a list of names, \['0'\]"):
        Taps(model, "0")


def test_reading_what_was_not_tapped_names_what_was(model):
    with Taps(model, ["0"]) as taps:
        model(torch.randn(5, 4))
    with pytest.raises(InputError, match="unknown tap '1'. Known: '0'"):
        taps["1"]


class Branches(nn.Module):
    """A layer called twice, with keywords, that puts out several tensors; one that is never called."""

    def __init__(self):
        super().__init__()
        self.block = Pair()
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        first = self.block(x, scale=torch.tensor(2.0))
        return self.block(first["sum"], scale=torch.tensor(3.0))["sum"]


class Handing(nn.Module):
    def forward(self, x):
        return x


class Pair(nn.Module):
    def forward(self, x, scale):
        return {"sum": x + scale, "both": (x, scale)}


def test_inputs_parameters_calls_and_items():
    model, x = Branches(), torch.zeros(2, 4)
    wanted = [
        Tap("block", call=0, item="sum"), Tap("block", call=1, item="sum"), Tap("block", "input", call=1),
        Tap("block", "input", call=0, item="scale"), Tap("unused.weight", "parameter"),
    ]  # fmt: skip
    with Taps(model, wanted) as taps:
        model(x)
    values = [taps[tap] for tap in wanted]
    assert [value.flatten()[0].item() for value in values[:4]] == [2.0, 5.0, 2.0, 2.0]
    assert values[4] is model.unused.weight
    assert len({str(tap) for tap in wanted}) == 5


def test_two_items_of_one_layer_are_two_taps():
    taps = [Tap("", item=0), Tap("", item=1)]
    model = Handing()
    with Taps(model, taps) as read:
        model((torch.zeros(2), torch.ones(2)))
    assert [read[tap].mean() for tap in taps] == [0, 1]


def test_a_pass_that_stops_waits_for_the_last_call_of_a_layer():
    model, reader = Branches(), Reader([Tap("block", call=1, item="sum")], stops=True)
    for _ in range(3):
        _, read = reader(model, torch.zeros(2, 4))
        assert next(iter(read.values())).mean() == 5


REFUSED = {
    "which call": (Tap("block"), "called 2 times.*Say which.*call=0"),
    "no such call": (Tap("block", call=2), "called 2 times; wanted: call 2"),
    "no such item": (Tap("block", call=0, item="product"), "no item 'product'. Known: 'sum', 'both'"),
    "no such position": (Tap("block", "input", call=0, item=1), "no item 1. Known: 0, 'scale'"),
    "item of one tensor": (Tap("", item=0), "one Tensor, which has no items"),
    "never reached": (Tap("unused"), "'unused' was not reached"),
}


@pytest.mark.parametrize(("tap", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_said_when_it_is_read(tap, said):
    model = Branches()
    with Taps(model, [tap]) as taps:
        model(torch.zeros(2, 4))
    with pytest.raises(InputError, match=said):
        taps[tap]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Tap("a", "outputs"), "Did you mean 'output'"),
        (lambda: Tap("a", call=-1), "counted from 0"),
        (lambda: Tap("a", "parameter", call=0), "neither calls nor items"),
        (lambda: Taps(nn.Linear(2, 2), [Tap("wieght", "parameter")]), "unknown parameter.*Did you mean 'weight'"),
    ],
)
def test_a_tap_that_makes_no_sense_is_refused_at_once(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.linear(x))
        out += 1
        return out


def test_a_record_survives_what_works_in_place_after_it():
    model, x = InPlace(), torch.randn(5, 4)
    with Taps(model, ["linear", "relu", ""]) as taps:
        model(x)
    expected = model.linear(x)
    assert torch.equal(taps["linear"], expected)
    assert torch.equal(taps["relu"], expected.relu())
    assert taps.overwritten == {"linear", "relu"}
    taps["linear"].sum().backward()
    assert model.linear.weight.grad is not None


def test_where_changes_are_not_counted_the_copy_stays():
    model, x = InPlace(), torch.randn(5, 4)
    with torch.inference_mode(), Taps(model, ["linear"]) as taps:
        model(x)
    taps.drop_copies()
    assert torch.equal(taps["linear"], model.linear(x))


def test_without_its_copy_the_record_is_the_layers_own_tensor():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(5, 4)
    with Taps(model, ["0", "1"], copied=()) as taps:
        out = model(x)
    assert taps["1"] is out


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def test_the_pass_stops_after_the_last_tap_when_the_calls_are_known():
    model = nn.Sequential(nn.Linear(4, 4), Counting(), nn.Linear(4, 4), Counting())
    x = torch.randn(2, 4)
    with Taps(model, ["0", "2"]) as whole:
        model(x)
    with Taps(model, ["0", "2"], calls=whole.calls) as taps:
        model(x)
        pytest.fail("the block should have been left")
    assert torch.equal(taps["2"], whole["2"])
    assert [model[1].calls, model[3].calls] == [2, 1]
    assert hooks(model) == 0


def test_a_layer_that_is_called_more_often_than_before_does_not_end_the_pass_too_early():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            for _ in range(len(x)):
                x = self.cell(x)
            return self.head(x)

    model, wanted = Steps(), [Tap("cell", call=0), "head"]
    with Taps(model, wanted) as short:
        model(torch.randn(2, 4))
    longer = torch.randn(5, 4)
    with Taps(model, wanted, calls=short.calls) as taps:
        model(longer)
    assert torch.equal(taps[wanted[0]], model.cell(longer))
    assert torch.equal(taps["head"], model(longer))


def test_items_are_attributes_too():
    @dataclass
    class Output:
        logits: torch.Tensor

    class Pair(NamedTuple):
        first: torch.Tensor
        second: torch.Tensor

    class Wraps(nn.Module):
        def forward(self, x):
            return x

    x = torch.randn(2, 3)
    for given, item in ((Output(x), "logits"), (Pair(x, -x), "first"), (Pair(-x, x), 1)):
        model, tap = Wraps(), Tap("", item=item)
        with Taps(model, [tap]) as taps:
            model(given)
        assert torch.equal(taps[tap], x)
    absent = Tap("", item="hidden")
    with Taps(model, [absent]) as taps:
        model(Output(x))
    with pytest.raises(InputError, match="no item 'hidden'. Known: 'logits'"):
        taps[absent]


def test_an_error_inside_the_block_is_not_swallowed():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ZeroDivisionError), Taps(model, ["0"], calls={"0": 1}):
        raise ZeroDivisionError


class Catching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        try:
            return self.linear(x)
        except Exception:
            return x


def test_a_model_that_catches_errors_is_stopped_all_the_same():
    model = Catching()
    with Taps(model, ["linear"], calls={"linear": 1}):
        model(torch.randn(2, 4))
        pytest.fail("the block should have been left")


@dataclass
class Output:
    maps: torch.Tensor


def test_all_tensors_are_found_also_in_what_is_inside_a_dataclass():
    one, two, three = torch.zeros(3)
    found = tensors_in([{"a": Output([one, Output(two)])}, (three, "no tensor")])
    assert [id(tensor) for tensor in found] == [id(one), id(two), id(three)]


class Several(nn.Module):
    """Puts its map out in a list, a dictionary or a dataclass."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(4, 3), how

    def forward(self, x):
        maps = self.linear(x)
        return {"list": [maps], "dict": {0: maps}, "dataclass": Output(maps)}[self.how]


class WritesInto(nn.Module):
    """Goes on in the container that its first layer has put out, as a feature pyramid does."""

    def __init__(self, how):
        super().__init__()
        self.first = Several(how)

    def forward(self, x):
        inside = self.first(x)
        if self.first.how == "dataclass":
            inside.maps.mul_(2)
            return inside.maps
        inside[0] = inside[0] * 2
        return inside[0]


@pytest.mark.parametrize("how", ["list", "dict", "dataclass"])
def test_a_record_is_what_the_layer_put_out_whatever_becomes_of_its_container(how):
    model, x = WritesInto(how), torch.randn(5, 4)
    tap = Tap("first", item="maps" if how == "dataclass" else 0)
    reader = Reader([tap])
    for _ in range(3):  # the first pass copies all, the others what they must
        out, read = reader(model, x)
        torch.testing.assert_close(read[str(tap)], model.first.linear(x))
        torch.testing.assert_close(out, 2 * model.first.linear(x))
    with Taps(model, [tap], copied=()) as taps:
        model(x)
    if how != "dataclass":
        torch.testing.assert_close(taps[tap], model.first.linear(x))


def test_a_layer_that_is_overwritten_only_later_on_is_noticed():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.overwrites = nn.Linear(4, 3), False

        def forward(self, x):
            maps = self.linear(x)
            return maps.mul_(2) if self.overwrites else maps * 2

    model, reader = Sometimes(), Reader([Tap("linear")])
    for _ in range(2):
        reader(model, torch.randn(5, 4))
    model.overwrites = True
    with pytest.raises(
        InputError, match="layer 'linear' of Sometimes: what it puts out is overwritten in place in this"
    ):
        reader(model, torch.randn(5, 4))
    model.eval()  # another mode, which is looked at by itself
    _, read = reader(model, x := torch.randn(5, 4))
    torch.testing.assert_close(read["linear"], model.linear(x))
