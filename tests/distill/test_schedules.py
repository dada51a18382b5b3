"""Weights that change during a run."""

import pytest

from kdlab import InputError
from kdlab.distill import Cosine, From, Until, WarmUp


def test_warming_up_is_linear_and_then_constant():
    weights = [WarmUp(8.0, epochs=4)(epoch, 10) for epoch in (0, 1, 2.5, 4, 9)]
    assert weights == [0.0, 2.0, 5.0, 8.0, 8.0]
    assert WarmUp(1.0).epochs == 20


def test_the_cosine_spans_the_run():
    falling = [Cosine(2.0)(epoch, 8) for epoch in (0, 2, 4, 8, 12)]
    assert falling == pytest.approx([2.0, 1 + 2**-0.5, 1.0, 0.0, 0.0])
    assert [Cosine(0.0, end=2.0)(epoch, 8) for epoch in (0, 4, 8)] == pytest.approx([0.0, 1.0, 2.0])


def test_until_stops_at_its_epoch():
    assert [Until(3.0, epoch=2)(epoch, 9) for epoch in (0, 1.99, 2, 5)] == [3.0, 3.0, 0.0, 0.0]


def test_from_starts_at_its_epoch_where_until_stops():
    weights = [(From(3.0, epoch=2)(epoch, 9), Until(5.0, epoch=2)(epoch, 9)) for epoch in (0, 1.99, 2, 5)]
    assert weights == [(0.0, 5.0), (0.0, 5.0), (3.0, 0.0), (3.0, 0.0)]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: WarmUp(-1.0), "weight is -1.0"),
        (lambda: WarmUp(1.0, epochs=0), "epochs is 0"),
        (lambda: WarmUp(1.0, epochs=float("inf")), "epochs is inf"),
        (lambda: Cosine(-1.0), "weight is -1.0"),
        (lambda: Until(-1.0, epoch=1), "weight is -1.0"),
        (lambda: Cosine(1.0, end=float("inf")), "end is inf"),
        (lambda: Until(1.0, epoch=0), "epoch is 0.*leave the term out"),
        (lambda: From(1.0, epoch=0), "epoch is 0.*the weight itself"),
        (lambda: From(-1.0, epoch=1), "weight is -1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(build, said):
    with pytest.raises(InputError, match=said):
        build()
