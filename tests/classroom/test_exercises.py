"""Exercises: every folded solution passes its check, every placeholder does not, and known slips get their hint."""

import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.classroom import check
from kdlab.classroom.check.grading import compare
from kdlab.losses import KDLoss
from kdlab.models import StudentCNN

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


def exercises():
    """(notebook, solution, the cell that it answers)"""
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for place, cell in enumerate(cells):
            if cell.cell_type == "markdown" and (found := SOLUTION.search(cell.source)):
                yield pytest.param(found.group(1), cells[place + 1].source, id=f"{path.stem[:2]}-{place}")


def names():
    """What the notebooks have in scope where the exercises begin."""

    def soften(logits, T):
        return torch.softmax(logits / T, dim=-1)

    def entropy(p):
        return -(p * p.clamp(min=1e-12).log()).sum(dim=-1)

    teacher, student = StudentCNN(10), StudentCNN(10, (8, 16, 32, 64))
    scope = {"torch": torch, "nn": nn, "F": F, "KDLoss": KDLoss, "check": check, "soften": soften, "entropy": entropy}
    return scope | {"teacher": teacher, "student": student}


def outcome(cell, capsys, solution=None):
    """What the check of an exercise's cell says, with the learner's part as it stands or solved."""
    call = next(line for line in cell.splitlines() if line.startswith("check."))
    before, _, _ = cell.partition(call)
    scope = names()
    exec(before, scope)
    if solution is not None:
        exec(solution, scope)
    capsys.readouterr()
    result = eval(call.rstrip(";"), scope)
    return result, capsys.readouterr().out


def test_there_are_exercises():
    assert len(list(exercises())) >= 6


@pytest.mark.parametrize(("solution", "cell"), list(exercises()))
def test_the_solution_passes_and_the_placeholder_does_not(solution, cell, capsys):
    assert outcome(cell, capsys, solution) == (True, "✓ Right.\n")
    result, said = outcome(cell, capsys)
    assert result is False
    assert said.startswith("✗ Not yet: ")
    assert "raised" not in said  # a placeholder is valid, and wrong


ODD = (
    "None", "0.123", "float('nan')", "float('inf')", "10**400", "1j", "'x'", "{'A': [1]}", "[[1], [2, 3]]", "[None]",
    "[[99] * 6]", "[torch.ones(2), torch.ones(3)]", "torch.ones(2, 3)", "torch.tensor(1.0, device='meta')",
    "torch.tensor(1.0, requires_grad=True)",
)  # fmt: skip


@pytest.mark.parametrize("cell", [pytest.param(exercise.values[1], id=exercise.id) for exercise in exercises()])
def test_whatever_an_answer_is_or_returns_the_check_says_what_is_wrong(cell, capsys):
    name = re.search(r"^check\.\w+\((\w+)", cell, re.MULTILINE).group(1)
    for odd in ODD:
        result, said = outcome(cell, capsys, f"{name} = (lambda *of: {odd}) if callable({name}) else {odd}")
        assert result is False, odd
        assert said.startswith("✗ Not yet: "), odd


def overwritten(loss):
    """The loss itself, written over what its gradient needs."""
    root = loss.square().sqrt()
    root *= 1
    return root


LOG = torch.log_softmax
SLIPS = {
    "multiplied by T": (check.softened, lambda z, T: torch.softmax(z * T, 1), "must soften"),
    "wrong dimension": (check.softened, lambda z, T: torch.softmax(z / T, 0), "a row is an image"),
    "overflow": (check.softened, lambda z, T: z.exp() / z.exp().sum(1, keepdim=True), "exp alone overflows"),
    "divided by 0": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t) / 0, "not finite: a division by 0"),
    "logarithms": (check.softened, lambda z, T: LOG(z / T, 1), "sign"),
    "one number": (check.softened, lambda z, T: z.sum(), r"shape: yours is \(\), wanted \(2, 3\)"),
    "a temperature that is always 4": (check.softened, lambda z, T: torch.softmax(z / 4, 1), "at a temperature of 2: "),
    "nothing yet": (check.softened, lambda z, T: None, "no answer yet"),
    "a string": (check.softened, lambda z, T: "soft", "you gave a str"),
    "an error": (check.softened, lambda z, T: z / 0 + missing, "raised NameError"),
    "no T squared": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t) / T**2, "T² is missing"),
    "one T": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t) / T, "T squared"),
    "a sum": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t) * len(s), "summed over the images"),
    "element mean": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t) / 5, "over images and classes"),
    "direction": (check.kd_loss, lambda s, t, T: KDLoss(T)(t, s), "this is KL"),
    "nothing": (check.kd_loss, lambda s, t, T: 0.0, "your answer is 0 everywhere"),
    "scaled": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t) * 7, "scale: your answer is 7"),
    "not detached": (
        check.kd_loss,
        lambda s, t, T: T**2 * (LOG(t / T, 1).exp() * (LOG(t / T, 1) - LOG(s / T, 1))).sum(1).mean(),
        "detach",
    ),
    "alpha exchanged": (
        check.total_loss,
        lambda s, t, y, T, a: (1 - a) * KDLoss(T)(s, t) + a * F.cross_entropy(s, y),
        "exchanged",
    ),
    "no gradient at all": (check.kd_loss, lambda s, t, T: KDLoss(T)(s.detach(), t), "no gradient reaches the student"),
    "a plain number": (check.kd_loss, lambda s, t, T: KDLoss(T)(s, t).item(), "no gradient reaches the student"),
    "a student detached": (
        check.total_loss,
        lambda s, t, y, T, a: (a * KDLoss(T)(s, t) + (1 - a) * F.cross_entropy(s, y)).detach(),
        "no gradient reaches the student",
    ),
    "a loss at a temperature of 3": (check.kd_loss, lambda s, t, T: KDLoss(3.0)(s, t), "at a temperature of 5: "),
    "a loss at an alpha of 0.8": (
        check.total_loss,
        lambda s, t, y, T, a: 0.8 * KDLoss(T)(s, t) + 0.2 * F.cross_entropy(s, y),
        "at a temperature of 5, alpha 0.3: ",
    ),
    "a loss by numpy": (
        check.total_loss,
        lambda s, t, y, T, a: (a * KDLoss(T)(s, t) + (1 - a) * F.cross_entropy(s, y)).numpy(),
        "raised RuntimeError",
    ),
    "a gradient that is lost": (
        check.total_loss,
        lambda s, t, y, T, a: overwritten(a * KDLoss(T)(s, t) + (1 - a) * F.cross_entropy(s, y)),
        "raised RuntimeError",
    ),
    "last of equals": (
        check.best_epoch,
        lambda history: int(history.sort_values("val_accuracy", kind="stable").epoch.iloc[-1]),
        "the earlier of two equals has the lower loss: you chose 4; wanted: 3",
    ),
    "the logits": (check.kd_loss, lambda s, t, T: F.mse_loss(s, t), "compares the logits themselves"),
    "the labels alone": (check.total_loss, lambda s, t, y, T, a: F.cross_entropy(s, y), "the teacher has no part"),
    "maps by numbers": (check.dense.cwd_loss, lambda s, t, T: F.mse_loss(s, t), "number by number"),
    "right pixels": (
        check.dense.mean_iou,
        lambda said, mask, k: (said == mask).double().mean(),
        "share of right pixels",
    ),
    "first of equals": (
        check.best_epoch,
        lambda history: history.epoch[history.val_accuracy.idxmax()],
        "equally accurate",
    ),
    "a place for an epoch": (
        check.best_epoch,
        lambda history: history.sort_values(["val_accuracy", "val_loss"], ascending=[True, False]).index[-1],
        "its index; wanted: its epoch",
    ),
    "a bargain": (
        check.best_epoch,
        lambda history: history.epoch[(history.val_accuracy - 0.05 * history.val_loss).idxmax()],
        "by far the highest loss",
    ),
    "a place from 1 for an epoch": (
        check.best_epoch,
        lambda history: np.lexsort((-history.val_loss, history.val_accuracy))[-1] + 1,
        "from epoch 11: ",
    ),
    "a hook before the layer": (
        check.recorded,
        lambda model, layer, images: (model[0].register_forward_pre_hook(print), layer(model[0](images)).detach())[1],
        "your hook is still there",
    ),
    "the soft cross-entropy": (
        check.kd_loss,
        lambda s, t, T: -(T**2) * (LOG(t / T, 1).exp() * LOG(s / T, 1)).sum(1).mean(),
        "the same gradient, but not 0 where both agree",
    ),
    "a loss of sharpened answers": (
        check.kd_loss,
        lambda s, t, T: T**2 * F.kl_div(LOG(s * T, 1), (t * T).softmax(1), reduction="batchmean"),
        "you multiplied by the temperature",
    ),
    "the first of equals, by its index": (
        check.best_epoch,
        lambda history: history.val_accuracy.idxmax(),
        "its index; wanted: its epoch",
    ),
    "the first of equals, by its position": (
        check.best_epoch,
        lambda history: history.val_accuracy.argmax(),
        "row's position",
    ),
    "lowest loss": (check.best_epoch, lambda history: int(history.epoch.iloc[-1]), "most accurate"),
}


@pytest.mark.parametrize(("graded", "answer", "hint"), SLIPS.values(), ids=SLIPS)
def test_a_known_slip_gets_its_hint(graded, answer, hint, capsys):
    assert graded(answer) is False
    assert re.search(hint, capsys.readouterr().out)


def test_the_first_number_that_is_wrong_is_told():
    said = compare(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 2.0, 3.0]), {})
    assert said == "value: number 3 of 3 is 5, wanted 3."


def test_a_list_of_numbers_with_a_gradient_is_taken_without_a_word(recwarn):
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        assert compare([torch.tensor(1.0, requires_grad=True), 2.0], [1.0, 2.0], {}) is None
    finally:
        torch.set_warn_always(before)
    assert not recwarn


def test_what_is_off_by_a_little_is_no_scale():
    said = compare(torch.tensor([1.0012, 9.003]), torch.tensor([1.0, 9.0]), {})
    assert said == "value: number 1 of 2 is 1.001, wanted 1."


@pytest.mark.parametrize("factor", [2, 1 / 16, 1000, 8_388_608])
def test_of_one_number_a_plain_factor_is_a_scale(factor):
    assert compare(3.0 * factor, 3.0, {}).startswith("scale: ")


@pytest.mark.parametrize("factor", [2.676, 0.069])
def test_of_one_number_any_other_factor_is_none_that_was_forgotten(factor):
    assert compare(3.0 * factor, 3.0, {}) == f"value: yours is {3 * factor:.4g}, {factor:.4g} times what is wanted."


def test_a_number_that_people_write_rounded_may_be(capsys):
    large, small = nn.Linear(78, 2, bias=False), nn.Linear(5, 2, bias=False)  # 15.6 times
    assert check.times_smaller(16, large, small)
    assert not check.times_smaller(17, large, small)
    assert check.densest_haze(2.32)
    assert check.densest_haze(2.3)
    assert not check.densest_haze(2.2)
    assert not check.densest_haze(math.log(10))


def test_four_of_the_eight_positions_are_not_enough(capsys):
    def turned(network, x):
        return torch.stack([network(x.rot90(k, (2, 3))).rot90(-k, (2, 3)) for k in range(4)]).mean(dim=0)

    assert not check.self_ensembled(turned)


def test_hits_are_numbers_as_in_the_chapter(capsys):
    def area(hits, objects):
        right, wrong = hits.cumsum(0), (1 - hits).cumsum(0)
        precision = right / (right + wrong)
        return (precision.flip(0).cummax(0).values.flip(0) * hits).sum() / objects

    assert check.average_precision(area)


WRONG_TEMPERATURES = [
    (0.5, "must be higher"), (40.0, "must be lower"), (-1.0, "you gave -1.0; wanted: a number above 0"),
    (None, "no answer yet"), (..., "no answer yet"), ("warm", "you gave 'warm'"),
    (math.inf, "you gave inf"), (torch.tensor(0.5), "must be higher"),
    (1e-300, "must be higher"), (1e300, "must be lower"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "hint"), WRONG_TEMPERATURES)
def test_a_wrong_temperature_is_told_which_way_to_go(answer, hint, capsys):
    assert check.temperature_for(answer, torch.tensor([5.0, 2.0, 0.0, -1.0]), 0.8) is False
    assert hint in capsys.readouterr().out


def test_the_history_of_the_checkpoint_exercise_is_a_data_frame():
    seen = []
    check.best_epoch(lambda history: seen.append(history) or 4)
    assert isinstance(seen[0], pd.DataFrame)


def test_an_answer_that_writes_into_its_arguments_changes_nothing_of_what_is_asked_next(capsys):
    def in_place(gradient, gamma, strength, max_norm):
        gradient.mul_(min(1.0, max_norm / gradient.norm().item()))
        return gradient.add_(gamma.sign(), alpha=strength)

    assert check.sparse_gradient(in_place), capsys.readouterr().out
