"""What a classifier and a segmenter are judged by: equal to the definitions, written down."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import InputError
from kdlab.training import classification_metrics, half_interval, predict_logits, segmentation_metrics


class Fixed(nn.Module):
    """Logits that are the images."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images


class Restless(Fixed):
    """Another one in training mode."""

    def forward(self, images):
        return -images if self.training else images


def measured(logits, masks, batch_size=2, model=None):
    loader = DataLoader(TensorDataset(logits, masks), batch_size)
    return segmentation_metrics(model or Fixed(), loader, logits.shape[1])


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    logits, masks = torch.randn(5, 4, 6, 7), torch.randint(4, (5, 6, 7))
    masks[0, :3] = 255
    masks[3] = 255
    return logits, masks


def test_the_metrics_are_those_of_the_definitions_over_all_pixels(drawn):
    logits, masks = drawn
    values, by_class = measured(logits, masks)
    known = masks != 255
    answer, truth = logits.argmax(dim=1)[known], masks[known]
    iou, dice = [], []
    for k in range(4):
        both = ((answer == k) & (truth == k)).sum().item()
        sizes = (answer == k).sum().item() + (truth == k).sum().item()
        iou.append(both / (sizes - both))
        dice.append(2 * both / sizes)
    assert values["miou"] == pytest.approx(sum(iou) / 4)
    assert values["mdice"] == pytest.approx(sum(dice) / 4)
    assert by_class.tolist() == pytest.approx(iou)
    assert values["pixel_accuracy"] == pytest.approx((answer == truth).float().mean().item())
    assert values["loss"] == pytest.approx(F.cross_entropy(logits, masks, ignore_index=255).item(), rel=1e-5)


def test_how_the_images_are_batched_changes_nothing(drawn):
    one, all_at_once = measured(*drawn, batch_size=1)[0], measured(*drawn, batch_size=5)[0]
    assert one == pytest.approx(all_at_once, rel=1e-5)


def test_a_class_that_is_nowhere_is_in_no_mean(drawn):
    logits, masks = drawn
    logits[:, 3] = -100
    masks[masks == 3] = 0
    values, by_class = measured(logits, masks)
    assert by_class[3] == 0
    assert values["miou"] == pytest.approx(by_class[:3].mean().item())


def test_a_perfect_answer_and_an_image_without_any_known_pixel():
    masks = torch.randint(3, (2, 4, 4))
    perfect = 50 * F.one_hot(masks, 3).permute(0, 3, 1, 2).float()
    values, _ = measured(perfect, masks)
    assert [values[name] for name in ("miou", "mdice", "pixel_accuracy")] == [1, 1, 1]
    assert values["loss"] == pytest.approx(0, abs=1e-6)
    assert measured(perfect, torch.full_like(masks, 255))[0]["loss"] == 0


def test_the_model_computes_in_eval_mode_and_is_left_in_its_own(drawn):
    model, (logits, masks) = Restless().train(), drawn
    assert measured(logits, masks, model=model)[0] == measured(logits, masks)[0]
    assert model.training
    images, labels = torch.randn(5, 4), torch.randint(4, (5,))
    assert torch.equal(predict_logits(model, DataLoader(TensorDataset(images, labels), 2))[0], images)
    assert model.training


def test_the_calibration_error_is_that_of_fifteen_bins():
    logits, labels = torch.randn(200, 4), torch.randint(4, (200,))
    confidence, answer = logits.softmax(dim=1).max(dim=1)
    gap, bins = (answer == labels).float() - confidence, (15 * confidence).long()
    error = sum(gap[bins == one].sum().abs().item() for one in range(15)) / 200
    assert classification_metrics(logits, labels)["calibration_error"] == pytest.approx(error, rel=1e-4)


def test_the_interval_is_students_t():
    values = np.array([0.8, 0.9, 0.85, 0.95, 0.75])
    assert half_interval(values) == pytest.approx(2.776445 * values.std(ddof=1) / 5**0.5, rel=1e-6)
    assert np.isnan(half_interval(values[:1]))


def test_a_loader_that_yields_nothing_is_named():
    with pytest.raises(InputError, match="the loader yields no batch to predict; wanted: at least one"):
        predict_logits(nn.Linear(2, 2), [])


def test_logits_are_float32_and_labels_int64_whatever_the_model_and_the_loader_give():
    half = nn.Linear(2, 3).bfloat16()
    batch = (torch.randn(4, 2).bfloat16(), torch.arange(4, dtype=torch.int32) % 3)
    logits, labels = predict_logits(half, [batch])
    assert (logits.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert predict_logits(half, [(batch[0], [0, 1, 2, 0])])[1].tolist() == [0, 1, 2, 0]
