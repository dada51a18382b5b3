"""PixelCrossEntropy by its laws."""

import math

import pytest
import torch
import torch.nn.functional as F

from kdlab import InputError
from kdlab.losses import PixelCrossEntropy

LOSS = PixelCrossEntropy()


def drawn(n=2, k=4, h=3, w=5):
    torch.manual_seed(0)
    return torch.randn(n, k, h, w, dtype=torch.float64, requires_grad=True), torch.randint(k, (n, h, w))


def test_it_is_the_mean_over_the_pixels_that_have_a_class():
    logits, mask = drawn()
    torch.testing.assert_close(LOSS(logits, mask), F.cross_entropy(logits, mask))
    mask[0] = 255
    torch.testing.assert_close(LOSS(logits, mask), F.cross_entropy(logits[1:], mask[1:]))
    mask[1, :, :2] = 255
    torch.testing.assert_close(LOSS(logits, mask), F.cross_entropy(logits[1:, :, :, 2:], mask[1:, :, 2:]))


def test_of_more_than_255_classes_the_one_of_that_number_is_none():
    logits, mask = drawn(k=300)
    mask[0] = 255
    torch.testing.assert_close(LOSS(logits, mask), F.cross_entropy(logits, mask, ignore_index=255))


def test_small_integers_and_half_precision_give_what_wide_ones_do():
    logits, mask = drawn()
    mask[0] = 255
    torch.testing.assert_close(LOSS(logits, mask.to(torch.uint8)), LOSS(logits, mask))
    large = torch.zeros(1, 4, 300, 300, dtype=torch.float16)  # a sum over its pixels is more than float16 holds
    assert LOSS(large, torch.zeros(1, 300, 300, dtype=torch.long)).item() == pytest.approx(math.log(4))


def test_without_any_class_it_is_zero_and_so_is_its_gradient():
    logits, mask = drawn()
    value = LOSS(logits, torch.full_like(mask, 255))
    value.backward()
    assert value == 0
    assert not logits.grad.any()


def test_pixels_to_ignore_get_no_gradient():
    logits, mask = drawn()
    mask[:, 0] = 255
    LOSS(logits, mask).backward()
    assert not logits.grad[:, :, 0].any()
    assert logits.grad[:, :, 1:].abs().amin() > 0


def test_a_batch_of_one_class_is_learnt_as_any_other():
    logits, mask = drawn()
    LOSS(logits, torch.zeros_like(mask)).backward()
    assert (logits.grad[:, 0] < 0).all()


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.full((2, 3, 5), 4), "a mask has the number 4; all must be of 0 to 3, or 255"),
        (torch.full((2, 3, 5), -1), "a mask has the number -1"),
        (torch.full((2, 3, 5), -1, dtype=torch.int8), "a mask has the number -1"),
        (torch.zeros(2, 5, 3, dtype=torch.long), r"masks are \(2, 5, 3\).*wanted: masks of \(2, 3, 5\)"),
        (torch.zeros(2, 3, 5), r"dtype torch\.float32"),
        (torch.zeros(2, 3, 5, dtype=torch.bool), r"dtype torch\.bool"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, sentence, shapes_unchecked):
    with pytest.raises(InputError, match=sentence):
        LOSS(drawn()[0], mask)
