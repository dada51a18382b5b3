"""Pruning a real YOLOv8: what its C2f blocks and its head allow, and that the smaller one computes the same."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.files import load_tensors, save_tensors
from kdlab.pruning import gammas, masked, plan_pruning, prune, rebuild, structure, verify

tasks = pytest.importorskip("ultralytics.nn.tasks")

EXAMPLE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
DETECTIONS = {"outputs": lambda given: (given[1]["boxes"], given[1]["scores"])}  # and not the maps that its head reads

pytestmark = pytest.mark.usefixtures("one_thread")


def yolov8n():
    torch.manual_seed(0)
    return tasks.DetectionModel("yolov8n.yaml", verbose=False)


@pytest.fixture(scope="module")
def model():
    model = yolov8n()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 1)
            module.bias.data.uniform_(-0.5, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def plan(model):
    return plan_pruning(model, EXAMPLE, keep=0.5, **DETECTIONS)


@pytest.fixture(scope="module")
def pruned(model, plan):
    return prune(model, EXAMPLE, plan, **DETECTIONS)


def test_all_that_has_a_batchnorm_can_be_pruned(model, plan):
    assert plan.parameters.before == sum(p.numel() for p in model.parameters()) == 3_157_200
    assert set(gammas(model)) == {name for name in plan.prunable if name.endswith(".bn")}
    whole = [name for name in plan.table().query("not prunable")["layer"]]
    assert whole == [*(f"model.22.cv2.{k}.2" for k in range(3)), *(f"model.22.cv3.{k}.2" for k in range(3)),
                     "model.22.dfl.conv"]  # fmt: skip
    assert plan.table().set_index("layer")["kept"].loc[whole].tolist() == [64, 64, 64, 80, 80, 80, 1]
    assert plan.keep == pytest.approx(0.5, abs=0.002)
    assert plan.table()["kept"].loc[plan.table()["prunable"]].min() >= 8


def test_the_halves_of_a_c2f_stay_equal_and_its_shortcuts_tied(plan):
    first, second = plan.outputs["model.4.cv1.conv"], plan.inputs["model.4.m.0.cv1.conv"]
    assert [index - 32 for index in first if index >= 32] == second
    assert len(second) == len([index for index in first if index < 32])
    assert second == plan.outputs["model.4.m.0.cv2.conv"] == plan.outputs["model.4.m.1.cv2.conv"]
    assert plan.outputs["model.4.m.0.cv1.conv"] != plan.outputs["model.4.m.1.cv1.conv"]


def test_the_head_reads_what_its_levels_still_have(plan):
    for level, layer in enumerate((15, 18, 21)):
        stays = plan.outputs[f"model.{layer}.cv2.conv"]
        assert plan.inputs[f"model.22.cv2.{level}.0.conv"] == plan.inputs[f"model.22.cv3.{level}.0.conv"] == stays


def test_it_detects_what_the_masked_one_detects(model, plan):
    pruned = prune(model, EXAMPLE, plan, compensate=False, **DETECTIONS)
    found, wanted = pruned(EXAMPLE), masked(model, plan)(EXAMPLE)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1]["scores"], wanted[1]["scores"], rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in pruned.parameters()) == plan.parameters.after < 0.5 * plan.parameters.before


def test_a_wrong_index_is_found(model, plan):
    stays = plan.inputs["model.22.cv3.0.0.conv"]
    wrong = [index for index in range(64) if index not in stays][: len(stays)]
    wrong = sorted([*stays[: len(stays) - len(wrong)], *wrong])
    broken = replace(plan, inputs={**plan.inputs, "model.22.cv3.0.0.conv": wrong})
    for compensate in (False, True):
        with pytest.raises(InputError, match="does not compute what the masked model does"):
            prune(model, EXAMPLE, broken, compensate=compensate, **DETECTIONS)


def test_it_is_rebuilt_from_the_yaml_and_loads_strictly(model, pruned, plan, tmp_path):
    save_tensors(tmp_path / "pruned.safetensors", pruned.state_dict(), {"structure": structure(pruned)})
    tensors, meta = load_tensors(tmp_path / "pruned.safetensors")
    again = rebuild(yolov8n(), meta["structure"]).eval()
    again.load_state_dict(tensors, strict=True)
    assert torch.equal(again(EXAMPLE)[0], pruned(EXAMPLE)[0])
    verify(again, model, EXAMPLE, plan, **DETECTIONS)


def test_it_trains_at_another_size(pruned):
    again = rebuild(yolov8n(), structure(pruned)).train()
    maps = again(torch.rand(2, 3, 96, 96))
    assert maps["scores"].shape == (2, 80, 12 * 12 + 6 * 6 + 3 * 3)
    maps["scores"].mean().backward()
    assert again.model[0].conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("what", ["parameters", "macs"])
def test_targets_are_met(model, plan, what):
    target = getattr(plan, what).before // 3
    met = getattr(plan_pruning(model, EXAMPLE, **{what: target}, **DETECTIONS), what).after
    assert 0.99 * target < met <= target
