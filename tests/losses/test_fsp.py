"""FSPLoss by its laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, randn

from kdlab import InputError
from kdlab.losses.relation import FSPLoss


def maps(seed, n=3, c=(2, 4), sizes=((4, 4), (4, 4)), scale=1.0, dtype=torch.float64):
    return tuple(
        randn(n, ch, *size, seed=seed + i, scale=scale, dtype=dtype)
        for i, (ch, size) in enumerate(zip(c, sizes, strict=True))
    )


def literal(student, teacher):
    """The mean product over the positions, for each pair of channels of each image; the mean squared difference."""
    squares = []
    for n in range(len(student[0])):
        for i in range(student[0].shape[1]):
            for j in range(student[1].shape[1]):
                flows = [(first[n, i] * last[n, j]).mean() for first, last in (student, teacher)]
                squares.append((flows[0] - flows[1]) ** 2)
    return sum(squares) / len(squares)


def test_equals_the_literal_formula_in_float64():
    torch.testing.assert_close(FSPLoss()(maps(1), maps(5)), literal(maps(1), maps(5)))


@pytest.mark.parametrize("sizes", [((8, 6), (4, 3)), ((4, 3), (8, 6)), ((8, 3), (4, 6))])
def test_the_larger_of_a_pair_is_average_pooled(sizes):
    """Max pooling, and a sum in place of the mean, are in use too: values 1e4 times larger."""
    pooled = [tuple(F.adaptive_avg_pool2d(x, (4, 3)) for x in maps(seed, sizes=sizes)) for seed in (1, 5)]
    torch.testing.assert_close(FSPLoss()(maps(1, sizes=sizes), maps(5, sizes=sizes)), literal(*pooled))


def test_the_networks_may_have_maps_of_different_sizes():
    """G is channels by channels: repeating every pixel leaves it as it is."""
    larger = tuple(x.repeat_interleave(2, 2).repeat_interleave(3, 3) for x in maps(1))
    torch.testing.assert_close(FSPLoss()(larger, maps(5)), FSPLoss()(maps(1), maps(5)))


def test_the_common_laws():
    check_common(FSPLoss(), maps(1, c=(2, 3)), maps(5, c=(2, 3)))
    check_half_precision(FSPLoss(), maps(1), maps(5))


def test_lists_do_as_well_as_tuples():
    assert FSPLoss()(list(maps(1)), list(maps(5))) == FSPLoss()(maps(1), maps(5))


def test_zero_at_a_perfect_match_and_nowhere_below():
    assert FSPLoss()(maps(1), maps(1)) == 0
    for seed in range(2, 12):
        assert FSPLoss()(maps(seed), maps(1)) > 0


def test_the_same_move_of_all_pixels_changes_nothing():
    order = torch.randperm(16)
    moved = tuple(x.flatten(2)[:, :, order].view_as(x) for x in maps(1))
    torch.testing.assert_close(FSPLoss()(moved, maps(5)), FSPLoss()(maps(1), maps(5)))


def test_doubling_the_batch_keeps_the_mean():
    double = [tuple(x.repeat(2, 1, 1, 1) for x in maps(seed)) for seed in (1, 5)]
    torch.testing.assert_close(FSPLoss()(*double), FSPLoss()(maps(1), maps(5)))


@pytest.mark.parametrize(("scale", "dtype"), [(1e4, torch.float32), (1e4, torch.float16), (0.0, torch.float32)])
def test_finite_at_extreme_features(scale, dtype):
    check_finite(FSPLoss(), maps(1, scale=scale, dtype=dtype), maps(5, scale=scale, dtype=dtype))


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 4), c=st.integers(1, 4), size=st.integers(1, 5), other=st.integers(1, 5), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, c, size, other, scale, dtype, seed):
    sides = [maps(seed + i, n, (c, 2), ((size, other), (other, size)), scale, dtype) for i in (0, 9)]
    check_any(FSPLoss(), *sides)


def test_what_is_no_pair_is_refused(shapes_unchecked):
    for wrong in ((), maps(1)[:1], (*maps(1), maps(1)[0])):
        with pytest.raises(InputError, match=f"the teacher gives {len(wrong)} maps.*wanted: two"):
            FSPLoss()(maps(1), wrong)
    with pytest.raises(InputError, match="the student's tensor is .* wanted: 4 dimensions"):
        FSPLoss()((torch.zeros(2, 3), torch.zeros(2, 3)), maps(1))


def test_other_channels_or_images_are_refused_with_a_way_out(shapes_unchecked):
    with pytest.raises(InputError, match=r"\[\(3, 2\), \(3, 5\)\].*\[\(3, 2\), \(3, 4\)\].*connectors"):
        FSPLoss()(maps(1, c=(2, 5)), maps(5))
    with pytest.raises(InputError, match="one batch"):
        FSPLoss()(maps(1, n=4), maps(5))
    uneven = (maps(1)[0], maps(1, n=4)[1])
    with pytest.raises(InputError, match="one batch"):
        FSPLoss()(uneven, uneven)
