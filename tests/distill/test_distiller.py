"""Distiller and Term: what they compute, own, freeze and refuse."""

import copy

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.distill import Distiller, Term
from kdlab.losses import KDLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN

IMAGES, LABELS = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])


def student(classes=3):
    return StudentCNN(classes, (4, 4, 4, 4))


def kd(weight=0.7, T=4.0, **layers):
    return Term("kd", KDLoss(T), **{"student": "classifier", "teacher": "classifier", **layers}, weight=weight)


def distiller(**options):
    settings = {"terms": [kd()], "task": nn.CrossEntropyLoss(), "task_weight": 0.3}
    return Distiller(student(), student(), **{**settings, **options})


def test_the_total_is_the_weighted_sum_of_the_reported_losses():
    d = distiller().eval()
    losses = d(IMAGES, LABELS)
    assert list(losses) == ["task", "kd", "total"]
    torch.testing.assert_close(losses["total"], 0.3 * losses["task"] + 0.7 * losses["kd"])
    torch.testing.assert_close(losses["task"], nn.CrossEntropyLoss()(d.student(IMAGES), LABELS))
    torch.testing.assert_close(losses["kd"], KDLoss(4.0)(d.student(IMAGES), d.teacher(IMAGES)))


@pytest.mark.parametrize(("alpha", "only"), [(0.0, "task"), (1.0, "kd")])
def test_alpha_zero_is_the_labels_alone_and_alpha_one_the_teacher_alone(alpha, only):
    losses = distiller(terms=[kd(alpha)], task_weight=1 - alpha)(IMAGES, LABELS)
    torch.testing.assert_close(losses["total"], losses[only])


def test_a_weight_of_zero_keeps_what_is_not_finite_out_of_the_total():
    losses = distiller(terms=[kd(1.0)], task_weight=0.0)(
        IMAGES, torch.full((4,), -100)
    )  # cross-entropy of nothing: NaN
    assert losses["task"].isnan()
    assert losses["total"].isfinite()


def test_it_owns_the_student_and_the_losses_and_nothing_of_the_teacher():
    d = distiller()
    assert {id(p) for p in d.parameters()} == {id(p) for p in d.student.parameters()}
    assert all(name.startswith("student.") for name in d.state_dict())


class LearnableLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, target):
        return (self.scale * (student - teacher)).pow(2).mean() * target.float().mean()


def test_learnable_parts_of_a_loss_are_trained_saved_and_given_the_target():
    d = distiller(terms=[Term("mine", LearnableLoss(), "classifier", "classifier")])
    losses = d(IMAGES, LABELS)
    losses["total"].backward()
    assert d.losses["mine"].scale.grad != 0
    assert "losses.mine.scale" in d.state_dict()
    assert any(p is d.losses["mine"].scale for p in d.parameters())


def test_the_teacher_is_frozen_in_eval_mode_and_stays_so():
    d = distiller()
    before = copy.deepcopy(d.teacher.state_dict())
    for _ in range(2):
        d.train()(IMAGES, LABELS)["total"].backward()
    assert not any(module.training for module in d.teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in d.teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in d.teacher.state_dict().items())
    assert all(p.grad is not None for p in d.student.parameters())


def test_the_teacher_moves_and_converts_with_the_distiller():
    d = distiller().double()
    assert next(d.teacher.parameters()).dtype == torch.float64
    assert d(IMAGES.double(), LABELS)["total"].dtype == torch.float64
    d.to("meta")
    assert next(d.teacher.parameters()).device.type == "meta"


def test_a_deep_copy_is_whole_and_independent():
    d = distiller().eval()
    twin = copy.deepcopy(d)
    torch.testing.assert_close(twin(IMAGES, LABELS)["total"], d(IMAGES, LABELS)["total"])
    assert twin.teacher is not d.teacher
    with torch.no_grad():
        for p in twin.student.parameters():
            p.zero_()
    assert any(p.abs().sum() > 0 for p in d.student.parameters())


def test_observed_outputs_take_the_teachers_place():
    d = distiller().eval()
    observed = d.observe_teacher(IMAGES)
    d.teacher.forward = None  # it must not run
    known = d(IMAGES, LABELS, observed)
    torch.testing.assert_close(known["kd"], KDLoss(4.0)(d.student(IMAGES), observed["classifier"]))


def test_one_layer_may_serve_several_terms():
    terms = [kd(0.5), Term("kd_sharp", KDLoss(1.0), "classifier", "classifier", 0.2)]
    assert list(distiller(terms=terms)(IMAGES, LABELS)) == ["task", "kd", "kd_sharp", "total"]


def test_the_dry_run_finds_shapes_that_do_not_meet_and_changes_nothing(shapes_unchecked):
    with pytest.raises(InputError, match=r"term 'kd' \(student 'classifier' against teacher 'classifier'\).*\(4, 3\)"):
        Distiller(student(3), student(5), [kd()], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    mine = student()
    before = copy.deepcopy(mine.state_dict())
    d = Distiller(mine, student(), [kd()], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    assert d.training
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())


class TwoOutputs(nn.Module):
    def forward(self, a, b):
        return a


REFUSED = {
    "no terms": (lambda: distiller(terms=[]), "at least one Term"),
    "two of one name": (lambda: distiller(terms=[kd(), kd()]), "kd, kd.*a name of its own"),
    "reserved name": (lambda: Term("total", KDLoss(), "a", "b"), "called 'total'"),
    "name with a dot": (lambda: Term("k.d", KDLoss(), "a", "b"), "identifier"),
    "negative weight": (lambda: kd(-1.0), "weight -1.0"),
    "weight not a number": (lambda: kd(float("nan")), "weight nan"),
    "negative task weight": (lambda: distiller(task_weight=-0.1), "task_weight is -0.1"),
    "all weights zero": (lambda: distiller(terms=[kd(0.0)], task_weight=0.0), "nothing to learn from"),
    "student's layer": (lambda: distiller(terms=[kd(student="clasifier")]), "Did you mean 'classifier'"),
    "teacher's layer": (lambda: distiller(terms=[kd(teacher="head")]), "unknown layer of StudentCNN 'head'"),
    "a loss with other arguments": (lambda: Term("x", TwoOutputs(), "a", "b"), r"takes \(a, b\); wanted"),
    "a loss of one argument": (lambda: Term("x", nn.ReLU(), "a", "b"), "wanted: forward"),
    "cross-entropy as a term": (lambda: Term("x", LabelledCrossEntropy(), "a", "b"), "wanted: forward"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_found_when_it_is_built(build, said):
    with pytest.raises(InputError, match=said):
        build()
