"""Distiller and Term: what they compute, own, freeze and refuse."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.ops import StochasticDepth

from kdlab import InputError
from kdlab.distill import Cosine, Distiller, From, Indexed, Resize, Tap, Teacher, TeacherCache, Term, Until, WarmUp
from kdlab.losses import HintLoss, KDLoss, LabelledCrossEntropy
from kdlab.models import StudentCNN

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


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
    d = distiller(terms=[Term("hint", Gap(), "classifier", "classifier", weight=0.0)])
    losses = d(IMAGES, LABELS, observed={"classifier": torch.full((4, 3), float("inf"))})
    assert losses["hint"].isinf()  # reported all the same
    torch.testing.assert_close(losses["total"], 0.3 * losses["task"])


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


def test_a_teacher_put_into_training_mode_goes_back_to_eval_mode():
    d = distiller()
    before = copy.deepcopy(d.teacher.state_dict())
    d.teacher.train()
    d(IMAGES, LABELS)
    assert not d.teacher.training
    assert all(torch.equal(before[name], value) for name, value in d.teacher.state_dict().items())
    d.teacher.features.train()
    d.train()
    assert not any(module.training for module in d.teacher.modules())


def test_the_teacher_moves_and_converts_with_the_distiller():
    d = distiller(task=nn.CrossEntropyLoss(weight=torch.ones(3))).double()
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
    two = stages([Term("lists", OnLists(), ["first", "second"], ["first", "second"])]).eval()
    part = {"first": two.observe_teacher(IMAGES)["first"]}  # not all that the term compares: the teacher runs
    assert two(IMAGES, LABELS, part)["lists"] == two(IMAGES, LABELS)["lists"]


def test_one_layer_may_serve_several_terms():
    terms = [kd(0.5), Term("kd_sharp", KDLoss(1.0), "classifier", "classifier", 0.2)]
    d = distiller(terms=terms)
    assert list(d(IMAGES, LABELS)) == ["task", "kd", "kd_sharp", "total"]
    assert d.teacher_taps == (Tap("classifier"),)


def test_a_teacher_may_have_no_weights():
    d = stages([hint(student=Tap("first", "input"), teacher="0", weight=0.0)], teacher=nn.Sequential(nn.Identity()))
    assert d(IMAGES, LABELS)["hint"] == 0


def test_a_function_is_no_loss(shapes_unchecked):
    with pytest.raises(InputError, match="the loss is a builtin_function_or_method; wanted: a module whose forward"):
        Term("x", torch.dist, "a", "b")


class InPlace(nn.Module):
    def forward(self, output, labels):
        return output.sigmoid_().mean()


def test_a_task_loss_that_works_in_place_is_refused():
    d = distiller(terms=[kd(student="", teacher="")], task=InPlace())
    for _ in range(2):  # the first pass reads copies
        with pytest.raises(InputError, match="the task loss InPlace works in place"):
            d(IMAGES, LABELS)


def test_a_term_on_a_frozen_layer_is_refused_where_it_should_teach():
    d = stages([hint()])
    d.student.first.requires_grad_(False)
    with pytest.raises(InputError, match="term 'hint' cannot teach the student: what it puts out at first has no grad"):
        d(IMAGES, LABELS)
    assert d.eval()(IMAGES, LABELS)["hint"] > 0
    d.train().student.requires_grad_(False)
    assert d(IMAGES, LABELS)["hint"] > 0  # nobody is to learn
    learns = stages([hint(student_connector=nn.Conv2d(4, 4, 1))])
    learns.student.first.requires_grad_(False)
    with pytest.raises(InputError, match="term 'hint' cannot teach the student"):  # it would teach its connector alone
        learns(IMAGES, LABELS)


def test_a_list_of_which_one_layer_learns_may_teach_and_without_gradients_a_term_is_looked_at():
    d = stages([Term("lists", OnLists(), ["first", "second"], ["first", "second"])])
    d.student.first.requires_grad_(False)
    assert d(IMAGES, LABELS)["lists"].requires_grad
    with torch.no_grad():
        assert stages([hint()])(IMAGES, LABELS)["hint"] > 0


def test_the_documented_weights_are_the_defaults():
    assert (hint().weight, hint().reconstruction_weight) == (1.0, 0.05)


def test_the_dry_run_finds_shapes_that_do_not_meet_and_changes_nothing(shapes_unchecked):
    with pytest.raises(InputError, match="'kd' .student 'classifier' .4, 3. against teacher 'classifier' .4, 5..:"):
        Distiller(student(3), student(5), [kd()], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    output = Term("kd", KDLoss(), "", "classifier")
    with pytest.raises(InputError, match="'kd' .student output .4, 3. against teacher 'classifier' .4, 5..:"):
        Distiller(student(3), student(5), [output], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    mine = student()
    before = copy.deepcopy(mine.state_dict())
    d = Distiller(mine, student(), [kd()], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    assert d.training
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())


class TwoOutputs(nn.Module):
    def forward(self, a, b):
        return a


class Optional(nn.Module):
    def forward(self, student, teacher, targets=None):
        return (student - teacher).mean()


def reported_twice():
    both = {"teacher_connector": nn.Conv2d(4, 2, 1), "reconstruction": nn.Conv2d(2, 4, 1)}
    stages([hint(**both), Term("hint_reconstruction", Gap(), "first", "first")])


def second_teachers_layer():
    layer = nn.Conv2d(3, 4, 3)
    teachers = {"rain": nn.Sequential(nn.Conv2d(3, 4, 3)), "haze": nn.Sequential(layer)}
    Distiller(nn.Sequential(layer), teachers, [kd(student="0", teacher="0")], nn.CrossEntropyLoss())


def one_network():
    layer = nn.Linear(3, 3)
    try:
        Distiller(nn.Sequential(layer), nn.Sequential(layer, nn.ReLU()), [hint()], nn.CrossEntropyLoss())
    finally:
        assert layer.weight.requires_grad


REFUSED = {
    "no terms": (lambda: distiller(terms=[]), "at least one Term"),
    "two of one name": (lambda: distiller(terms=[kd(), kd()]), "kd, kd.*a name of its own"),
    "reserved name": (lambda: Term("total", KDLoss(), "a", "b"), "called 'total'"),
    "name of a history's column": (
        lambda: Term("lr", KDLoss(), "a", "b"),
        "called 'lr'; wanted: .*'total', 'epoch', 'lr'",
    ),
    "name of a module's own": (lambda: Term("keys", KDLoss(), "a", "b"), "called 'keys'; wanted: .*such as 'type'"),
    "name of a reconstruction": (lambda: reported_twice(), "hint, hint_reconstruction, hint_reconstruction; every"),
    "name of a metric": (lambda: Term("val_loss", KDLoss(), "a", "b"), "what begins with 'val_'"),
    "name with a dot": (lambda: Term("k.d", KDLoss(), "a", "b"), "identifier"),
    "negative weight": (lambda: kd(-1.0), "weight of term 'kd' is -1.0"),
    "negative weight of a reconstruction": (
        lambda: hint(reconstruction_weight=-1.0),
        "reconstruction_weight of term 'hint' is -1.0",
    ),
    "weight that could learn": (
        lambda: kd(nn.Parameter(torch.tensor(0.5))),
        r"(?s)weight of term 'kd' is Parameter .*wanted: a finite number, 0 or above, and no tensor",
    ),
    "weights in a tensor": (lambda: kd(torch.ones(2)), r"weight of term 'kd' is tensor.*and no tensor"),
    "weight not a number": (lambda: kd(float("nan")), "weight of term 'kd' is nan"),
    "negative task weight": (lambda: distiller(task_weight=-0.1), "task_weight is -0.1"),
    "all weights zero": (lambda: distiller(terms=[kd(0.0)], task_weight=0.0), "nothing to learn from"),
    "student's layer": (lambda: distiller(terms=[kd(student="clasifier")]), "Did you mean 'classifier'"),
    "teacher's layer": (lambda: distiller(terms=[kd(teacher="head")]), "unknown layer of StudentCNN 'head'"),
    "student and teacher in one": (lambda: one_network(), "parameter '0.weight' belongs to the teacher, too.*deepcopy"),
    "student and second teacher in one": (second_teachers_layer, "parameter '0.weight' belongs to teacher 'haze', too"),
    "a loss with other arguments": (lambda: Term("x", TwoOutputs(), "a", "b"), r"takes \(a, b\); wanted"),
    "a loss of one argument": (lambda: Term("x", nn.ReLU(), "a", "b"), "wanted: forward"),
    "an optional argument misspelt": (lambda: Term("x", Optional(), "a", "b"), "Did you mean 'target'"),
    "a single term": (lambda: distiller(terms=kd()), r"terms is Term\(name='kd'.*wanted: a list of terms"),
    "a list of others": (lambda: distiller(terms=[KDLoss()]), r"terms is \[KDLoss.*wanted: a list of terms"),
    "no layer": (lambda: kd(student=None), "'kd': student names the layer None; wanted: a dotted name"),
    "a list with no layer": (lambda: kd(teacher=["a", 3]), "'kd': teacher names the layer 3; wanted: a dotted name"),
    "a function for a connector": (
        lambda: hint(student_connector=torch.relu),
        "'hint': the student_connector is a builtin_function_or_method; wanted: a module",
    ),
    "weight in words": (lambda: kd("0.7"), "weight of term 'kd' is '0.7'; wanted: a finite number"),
    "task weight in words": (lambda: distiller(task_weight="1"), "task_weight is '1'; wanted: a finite number"),
    "a class for the task loss": (
        lambda: Distiller(StudentCNN(3), StudentCNN(3), [kd()], nn.CrossEntropyLoss),
        "the task loss is the class CrossEntropyLoss; wanted: a module",
    ),
    "nothing for the task loss": (
        lambda: Distiller(StudentCNN(3), StudentCNN(3), [kd()], None),
        "the task loss is a NoneType; wanted: a module",
    ),
    "images alone for the example": (
        lambda: distiller(example=torch.zeros(2, 3, 8, 8)),
        r"the example is a Tensor; wanted: a batch, \(images, labels\)",
    ),
    "cross-entropy as a term": (lambda: Term("x", LabelledCrossEntropy(), "a", "b"), "wanted: forward"),
}


@pytest.mark.parametrize(("build", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_found_when_it_is_built(build, said, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build()


class Stages(nn.Module):
    """Two convolutions, one linear layer, and a count of how often each end was reached."""

    def __init__(self, channels=4):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(channels, 3)
        self.ends = 0

    def forward(self, images):
        maps = self.drop(self.relu(self.second(self.relu(self.first(images)))))
        self.ends += 1
        return self.classifier(maps.mean(dim=(2, 3)))


class Gap(nn.Module):
    """The mean absolute difference."""

    def forward(self, student, teacher):
        return (student - teacher.detach()).abs().mean()


def hint(**options):
    layers = {"student": "first", "teacher": "first"}
    return Term("hint", Gap(), **{**layers, **options})


def stages(terms, teacher=None, **options):
    return Distiller(Stages(), teacher or Stages(), terms, task=nn.CrossEntropyLoss(), **options)


def test_the_teacher_stops_after_its_last_tap_and_says_the_same():
    d = stages([hint(teacher="first")])
    whole = d.observe_teacher(IMAGES)
    stopped = d.observe_teacher(IMAGES)
    assert d.teacher.ends == 1
    assert torch.equal(whole["first"], stopped["first"])
    to_the_end = stages([hint(student="", teacher="")])
    for _ in range(2):
        to_the_end(IMAGES, LABELS)
    assert to_the_end.teacher.ends == 2


def test_the_student_runs_to_its_end_and_what_it_overwrites_in_place_is_kept():
    d = stages([hint()]).eval()
    expected = (d.student.first(IMAGES) - d.teacher.first(IMAGES)).abs().mean()
    for _ in range(2):  # the first pass copies all, the second what it must
        torch.testing.assert_close(d(IMAGES, LABELS)["hint"], expected)
    assert d.student.ends == 2


def test_a_first_pass_in_inference_mode_teaches_nothing_wrong():
    d = stages([hint()]).eval()
    expected = (d.student.first(IMAGES) - d.teacher.first(IMAGES)).abs().mean()
    with torch.inference_mode():
        torch.testing.assert_close(d(IMAGES, LABELS)["hint"], expected)
    for _ in range(2):
        torch.testing.assert_close(d(IMAGES, LABELS)["hint"], expected)
    assert d.teacher.ends == 2  # in inference mode and in the first pass after it; then it stops


class AsksForNoGradient(nn.Module):
    def forward(self, student, teacher):
        assert student.requires_grad
        assert not teacher.requires_grad
        return (student - teacher).abs().mean()


def test_the_teacher_is_read_without_a_gradient_even_where_it_could_have_one():
    d = stages([Term("hint", AsksForNoGradient(), "first", "first")])
    d.teacher.requires_grad_(True)
    d(IMAGES, LABELS)
    assert not d.observe_teacher(IMAGES)["first"].requires_grad


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), StochasticDepth(0.5, "row")])
def test_dropout_and_droppath_of_the_teacher_are_off(drop):
    teacher = Stages()
    teacher.drop = drop
    d = stages([hint(student="classifier", teacher="classifier")], teacher=teacher)
    torch.testing.assert_close(d.train().observe_teacher(IMAGES), d.observe_teacher(IMAGES))


def test_connectors_stand_between_and_are_trained_and_saved():
    d = stages([hint(student_connector=nn.Conv2d(4, 6, 1))], teacher=Stages(6))
    d(IMAGES, LABELS)["total"].backward()
    assert d.student_connectors["hint"].weight.grad is not None
    assert {"student_connectors.hint.weight"} <= set(d.state_dict())
    half = stages([hint(teacher_connector=Resize(4), student_connector=Resize(4))])
    expected = (Resize(4)(half.student.first(IMAGES)) - Resize(4)(half.teacher.first(IMAGES))).abs().mean()
    torch.testing.assert_close(half.eval()(IMAGES, LABELS)["hint"], expected)


def test_what_takes_a_registered_modules_place_is_used():
    class Doubled(nn.Module):
        def forward(self, student, teacher):
            return 2 * Gap()(student, teacher)

    parts = {
        "student_connector": nn.Identity(),
        "teacher_connector": nn.Conv2d(4, 4, 1),
        "reconstruction": nn.Identity(),
    }
    d = stages([hint(**parts)]).eval()
    for registered in (d.student_connectors, d.teacher_connectors, d.reconstructions):
        registered["hint"] = nn.Hardtanh(3.0, 4.0)  # of what is about 0 it makes 3
    d.losses["hint"] = Doubled()
    losses = d(IMAGES, LABELS)
    assert losses["hint"] < 1
    assert losses["hint_reconstruction"] > 2
    d.student_connectors["hint"] = nn.Hardtanh(5.0, 6.0)
    assert d(IMAGES, LABELS)["hint"] > 3


def test_what_was_observed_in_inference_mode_teaches():
    d = stages([Term("hint", HintLoss(), "first", "first")])
    with torch.inference_mode():
        observed = d.observe_teacher(IMAGES)
    d(IMAGES, LABELS, observed)["total"].backward()
    assert d.student.first.weight.grad.abs().sum() > 0


def test_a_full_memory_is_no_matter_of_shapes():
    class Full(nn.Module):
        def forward(self, student, teacher):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        stages([Term("full", Full(), "first", "first")])(IMAGES, LABELS)


def test_a_learning_connector_of_the_teacher_needs_a_reconstruction_which_is_in_the_total():
    with pytest.raises(InputError, match=r"'hint'.*Conv2d learns.*would fall to 0.*Resize.*reconstruction"):
        hint(teacher_connector=nn.Conv2d(4, 4, 1))
    frozen = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.9)).requires_grad_(False)
    stages([hint(teacher_connector=frozen)]).train()
    assert not any(module.training for module in frozen.modules())
    there, back = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
    d = stages([hint(student_connector=nn.Conv2d(4, 2, 1), teacher_connector=there, reconstruction=back, weight=2.0,
                     reconstruction_weight=0.5)])  # fmt: skip
    losses = d(IMAGES, LABELS)
    torch.testing.assert_close(
        losses["total"], losses["task"] + 2 * losses["hint"] + 0.5 * losses["hint_reconstruction"]
    )
    raw = d.observe_teacher(IMAGES)["first"]
    torch.testing.assert_close(losses["hint_reconstruction"], (back(there(raw)) - raw).abs().mean())
    losses["total"].backward()
    assert there.training
    assert {"teacher_connectors.hint.weight", "reconstructions.hint.weight"} <= dict(d.named_parameters()).keys()
    assert there.weight.grad.abs().sum() > 0
    assert back.weight.grad.abs().sum() > 0


def learning(**options):
    """A hint whose teacher's connector learns."""
    parts = {"teacher_connector": nn.Conv2d(4, 4, 1), "reconstruction": nn.Conv2d(4, 4, 1)}
    return stages([hint(**parts, **options)])


def test_of_a_term_that_is_only_reported_the_reconstruction_is_too():
    losses = learning(weight=0.0)(IMAGES, LABELS)
    assert losses["hint_reconstruction"] > 0
    assert losses["total"] == losses["task"]


def test_a_reconstruction_of_weight_0_is_only_reported():
    d = learning(reconstruction_weight=0.0)
    nn.init.constant_(d.reconstructions["hint"].bias, float("inf"))
    losses = d(IMAGES, LABELS)
    assert losses["hint_reconstruction"].isinf()
    assert losses["total"].isfinite()


def test_a_parameter_is_whole_whatever_part_of_the_batch_a_teacher_speaks_about():
    part = Teacher(student(), part=lambda images, labels: labels == 0)
    weight = Tap("classifier.3.weight", "parameter")
    d = Distiller(student(), part, [Term("weights", HintLoss(), weight, weight)], nn.CrossEntropyLoss())
    mine, its = (net.classifier[3].weight for net in (d.student, d.teacher))
    torch.testing.assert_close(d(IMAGES, LABELS)["weights"], (mine - its).square().mean())


def test_a_term_that_has_not_begun_reports_its_reconstruction_too():
    d = learning(weight=From(1.0, epoch=1))
    names = []
    for epoch in (0, 1):
        d.set_epoch(epoch, 2)
        names.append(list(d(IMAGES, LABELS)))
    assert names == [["task", "hint", "hint_reconstruction", "total"]] * 2


def test_of_several_teachers_those_run_whose_outputs_are_not_known():
    rain, haze = Stages(), Stages()
    d = stages([hint(of="rain"), Term("other", Gap(), "first", "first", of="haze")], {"rain": rain, "haze": haze})
    d(IMAGES, LABELS, {"rain/first": torch.zeros(4, 4, 16, 16)})
    assert (rain.ends, haze.ends) == (0, 1)


def test_a_batch_without_a_teachers_part_is_refused():
    teachers = {f"of_{label}": Teacher(student(), part=lambda x, y, label=label: y == label) for label in range(4)}
    terms = [Term(f"kd_{name}", KDLoss(), "classifier", "classifier", of=name) for name in teachers]
    d = Distiller(student(), teachers, terms, nn.CrossEntropyLoss())
    with pytest.raises(InputError, match=r"no sample of this batch is the part of teacher 'of_3'.*StratifiedBatches"):
        d(IMAGES, LABELS)


@pytest.mark.parametrize("third", [torch.arange(4), ("a", "b", "c", "d")])
def test_a_third_item_that_is_not_the_teachers_is_named(third, shapes_unchecked):
    with pytest.raises(InputError, match=f"the third item of a batch is {type(third).__name__}; wanted there.*Indexed"):
        stages([hint()])(IMAGES, LABELS, third)


def test_a_part_can_be_taken_of_a_tensor_alone():
    part = Teacher(Stages(), sees=lambda images, labels: {"images": images}, part=lambda images, labels: labels == 0)
    d = Distiller(Stages(), part, [hint()], nn.CrossEntropyLoss())
    with pytest.raises(InputError, match="speaks about a part of the batch, and is given a dict"):
        d(IMAGES, LABELS)


def test_several_teachers_each_with_its_own_input_and_part():
    rain, haze = Stages(), Stages()
    d = stages(
        [hint(of="rain"), Term("other", Gap(), "first", "first", of="haze")],
        teacher={"rain": Teacher(rain, sees=lambda x, y: 2 * x, part=lambda x, y: y == 0), "haze": haze},
    ).eval()
    losses = d(IMAGES, LABELS)
    mine = d.student.first(IMAGES)
    torch.testing.assert_close(losses["hint"], (mine[LABELS == 0] - rain.first(2 * IMAGES[LABELS == 0])).abs().mean())
    torch.testing.assert_close(losses["other"], (mine - haze.first(IMAGES)).abs().mean())
    assert list(d.observe_teacher(IMAGES, LABELS)) == ["rain/first", "haze/first"]
    for only in ("teacher", "teacher_taps"):
        with pytest.raises(InputError, match="several teachers: rain, haze"):
            getattr(d, only)
    with pytest.raises(InputError, match="observed holds 'first', and there are several .* as in 'rain/first'"):
        d(IMAGES, LABELS, {"first": mine})


def test_a_loss_that_is_no_number_is_found_in_the_dry_run(shapes_unchecked):
    class Squares(nn.Module):
        def forward(self, student, teacher):
            return (student - teacher).square()

    with pytest.raises(InputError, match=r"term 'squares' .*the loss is of shape \(4, 3\); wanted: one number"):
        distiller(terms=[Term("squares", Squares(), "classifier", "classifier")], example=(IMAGES, LABELS))


ELSEWHERE = {
    "labels": (lambda d: d(IMAGES, LABELS.float()), r"in the task loss \(.* and \(4,\) float32 on cpu\)"),
    "images": (lambda d: d.observe_teacher(IMAGES[:, 0]), r"in the forward pass of the teacher \(StudentCNN on"),
    "the student's": (
        lambda d: d(IMAGES.double(), LABELS, {"classifier": torch.zeros(4, 3)}),
        r"in the student's forward pass \(StudentCNN on \(4, 3, 16, 16\) float64 on cpu\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("use", "said"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_an_error_of_pytorchs_says_in_whose_pass_it_was_and_on_what(use, said, shapes_unchecked):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        use(distiller())
    assert re.search(said, caught.value.__notes__[0])


@pytest.mark.parametrize("indices", [False, True])
def test_a_term_of_several_teachers_joins_their_parts(indices):
    def part(label):
        return lambda x, y: (y == label).nonzero().flatten() if indices else y == label

    teachers = {f"of_{label}": Teacher(Stages(), part=part(label)) for label in range(3)}
    joined = stages([hint(of=["of_2", "of_0"])], teacher=teachers).eval()
    order = torch.cat([(label == LABELS).nonzero().flatten() for label in (2, 0)])
    told = torch.cat([teachers[f"of_{label}"].model.first(IMAGES[label == LABELS]) for label in (2, 0)])
    losses = joined(IMAGES, LABELS)
    torch.testing.assert_close(losses["hint"], (joined.student.first(IMAGES)[order] - told).abs().mean())
    known = joined.observe_teacher(IMAGES, LABELS)
    assert joined(IMAGES, LABELS, observed=known)["hint"] == losses["hint"]
    asked = stages([Term("kd", AsksForTheLabels(), "classifier", "classifier", of=["of_2", "of_0"])], teacher=teachers)
    assert asked(IMAGES, LABELS)["kd"].item() == LABELS[order].float().mean().item()


class TeacherFirst(nn.Module):
    def forward(self, teacher, student):
        return student.sum() - teacher.sum()


class TeacherByKeyword(nn.Module):
    def forward(self, student, *, teacher):
        return student.sum() - teacher.sum()


@pytest.mark.parametrize("loss", [TeacherFirst(), TeacherByKeyword()])
def test_a_loss_gets_its_two_sides_by_their_names(loss):
    d = distiller(terms=[Term("x", loss, "classifier", "classifier")]).eval()
    torch.testing.assert_close(d(IMAGES, LABELS)["x"], d.student(IMAGES).sum() - d.teacher(IMAGES).sum())


class AsksForTheLabels(nn.Module):
    def forward(self, student, teacher, target):
        assert len(student) == len(teacher) == len(target)
        return target.float().mean()


class OnLists(nn.Module):
    def forward(self, student, teacher):
        return sum((s - t).abs().mean() for s, t in zip(student, teacher, strict=True))


def test_a_term_may_compare_several_layers_and_any_kind_of_tap():
    d = stages([
        Term("lists", OnLists(), ["first", "second"], ["first", "second"]),
        Term("inputs", Gap(), Tap("classifier", "input"), Tap("classifier", "input")),
        Term("weights", Gap(), Tap("classifier.weight", "parameter"), Tap("classifier.weight", "parameter")),
    ]).eval()  # fmt: skip
    losses = d(IMAGES, LABELS)
    s, t = d.student, d.teacher
    torch.testing.assert_close(losses["weights"], (s.classifier.weight - t.classifier.weight).abs().mean())
    assert losses["lists"] > losses["inputs"] > 0


class Remembering(nn.Module):
    def forward(self, student, teacher, index):
        return (student - teacher).abs().mean() * index.float().mean()


def test_a_loss_that_asks_for_the_index_gets_it_from_the_data_set():
    d = distiller(terms=[Term("memory", Remembering(), "classifier", "classifier")]).eval()
    data = TensorDataset(IMAGES, LABELS)
    cache = TeacherCache.build(d.teacher, ["classifier"], data)
    for dataset in (Indexed(data), Indexed(cache.attach(data))):
        (batch,) = DataLoader(dataset, batch_size=4)
        assert set(batch[2]) == ({"classifier"} if dataset.dataset is not data else set())
        gap = (d.student(IMAGES) - d.teacher(IMAGES)).abs().mean()
        torch.testing.assert_close(d(*batch)["memory"], gap * 1.5)
    with pytest.raises(InputError, match="Remembering wants the index.*Indexed"):
        d(IMAGES, LABELS)


def test_of_a_part_a_loss_gets_the_index_of_its_samples():
    class Index(nn.Module):
        def forward(self, student, teacher, index):
            return index.float().mean() + 0 * student.sum()

    part = Teacher(student(), part=lambda images, labels: labels == 0)
    d = Distiller(student(), part, [Term("index", Index(), "classifier", "classifier")], nn.CrossEntropyLoss())
    assert d(IMAGES, LABELS, index=torch.tensor([1, 5, 6, 2]))["index"] == 1.5  # the first and the last


class Patient(nn.Module):
    def forward(self, student, teacher, index=None):
        return (student - teacher).abs().mean() * (1.0 if index is None else index.float().mean())


def test_a_loss_that_can_do_without_the_index_does():
    d = distiller(terms=[Term("patient", Patient(), "classifier", "classifier")]).eval()
    without = d(IMAGES, LABELS)["patient"]
    torch.testing.assert_close(d(IMAGES, LABELS, index=torch.arange(4))["patient"], without * 1.5)


def test_a_weight_follows_its_schedule_and_a_stopped_term_costs_nothing():
    d = stages([hint(weight=Until(2.0, epoch=1)), Term("b", Gap(), "second", "second", WarmUp(1.0, 2))],
               task_weight=Cosine(1.0)).eval()  # fmt: skip
    with pytest.raises(InputError, match=r"distiller.set_epoch\(epoch, epochs\)"):
        d(IMAGES, LABELS)
    for epoch, weights in ((0.0, (1.0, 2.0, 0.0)), (0.5, (0.8535534, 2.0, 0.25)), (1.0, (0.5, 0.0, 0.5))):
        d.set_epoch(epoch, 2)
        losses = d(IMAGES, LABELS)
        expected = sum(w * losses[name] for w, name in zip(weights, ("task", "hint", "b"), strict=True))
        torch.testing.assert_close(losses["total"], expected)
    assert losses["hint"] == 0
    only = stages([hint(weight=Until(2.0, epoch=1))])
    only.set_epoch(1.0, 2)
    only(IMAGES, LABELS)
    assert only.teacher.ends == 0


def test_the_dry_run_finds_what_is_wrong_with_a_term_that_starts_later(shapes_unchecked):
    for schedule in (WarmUp(1.0), From(1.0, epoch=2)):
        with pytest.raises(InputError, match="'hint' .student 'first' .4, 4, 16, 16."):
            stages([hint(weight=schedule)], teacher=Stages(6), example=(IMAGES, LABELS))


def test_after_the_dry_run_the_schedules_wait_for_the_real_one():
    d = stages([hint(weight=From(1.0, epoch=2))], example=(IMAGES, LABELS))
    with pytest.raises(InputError, match="set_epoch"):
        d(IMAGES, LABELS)
    d.set_epoch(0, 5)
    assert d(IMAGES, LABELS)["hint"] == 0


def test_a_dry_run_that_fails_leaves_the_statistics_as_they_were(shapes_unchecked):
    mine = student(3)
    before = copy.deepcopy(mine.state_dict())
    with pytest.raises(InputError):
        Distiller(mine, student(5), [kd()], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())


def test_the_dry_run_leaves_statistics_and_random_numbers_as_they_were():
    mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    teacher = student()
    before, state = copy.deepcopy(mine.state_dict()), torch.get_rng_state()
    Distiller(mine, teacher, [kd(student="4")], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in mine.state_dict().items())


def test_a_saved_distiller_comes_back_to_the_same_bits():
    torch.manual_seed(1)
    d = stages([hint(student_connector=nn.Conv2d(4, 4, 1))]).eval()
    torch.manual_seed(2)
    other = stages([hint(student_connector=nn.Conv2d(4, 4, 1))], teacher=d.teacher).eval()
    other.load_state_dict(d.state_dict())
    assert torch.equal(other(IMAGES, LABELS)["total"], d(IMAGES, LABELS)["total"])


def test_no_hook_stays_behind():
    d = stages([hint()])
    for _ in range(2):
        d(IMAGES, LABELS)
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        d(IMAGES[:, :2], LABELS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (d.student, d.teacher) for m in net.modules())


def nan_teacher():
    teacher = Stages()
    nn.init.constant_(teacher.first.bias, float("nan"))
    return teacher


class Surplus(nn.Module):
    def forward(self, student, teacher, targets):
        return (student - teacher).mean()


class Misspelt(nn.Module):
    def forward(self, student, teacher):
        return (student - teacher).men()


class SeveralLosses(nn.Module):
    def forward(self, output, labels):
        return {"ce": output.sum()}


def teachers_by_name():
    return {"rain": Stages(), "haze": Stages()}


AT_THE_CALL = {
    "shapes": (
        lambda run: run(stages, [hint(teacher="classifier")]),
        r"'hint'.*'first' \(4, 4, 16, 16\).*'classifier' \(4, 3\).*Give the term a connector made for these shapes",
    ),
    "connector": (
        lambda run: run(stages, [hint(student_connector=nn.Conv2d(9, 4, 1))]),
        r"'hint'.*to have 9 channels.*[^.]\. Give the term a connector made for these shapes, or tap other layers\.$",
    ),
    "an error in the loss itself": (
        lambda run: run(stages, [Term("mine", Misspelt(), "first", "first")]),
        r"'mine' .student 'first' \(4, 4, 16, 16\) against.*no attribute 'men'[^.]*\.$",
    ),
    "a task loss of several": (
        lambda run: run(distiller, task=SeveralLosses()),
        "the task loss SeveralLosses returns a dict; wanted: one number",
    ),
    "student's connector in place": (
        lambda run: run(stages, [hint(student_connector=nn.ReLU(inplace=True))]),
        r"'hint' .student 'first'.*works in place.*inplace=False.$",
    ),
    "teacher's connector in place": (
        lambda run: run(stages, [hint(teacher_connector=nn.ReLU(inplace=True))]),
        "works in place",
    ),
    "teacher not finite": (
        lambda run: run(stages, [hint()], teacher=nan_teacher()),
        "'first' of Stages holds numbers that are not finite",
    ),
    "frozen layer": (lambda run: run(frozen), "'hint' cannot teach the student"),
    "frozen layer of a term that starts with 0": (
        lambda run: run(frozen, weight=WarmUp(1.0)),
        "'hint' cannot teach the student",
    ),
    "several tensors": (
        lambda run: run(recurrent, HintLoss(), images=SEQUENCES),
        r"'hint' .student '0' tuple against.*gives a tuple; wanted: one tensor.*Tap\(layer, item=...\)",
    ),
    "several tensors to a connector": (
        lambda run: run(recurrent, HintLoss(), student_connector=nn.Flatten(), images=SEQUENCES),
        "'hint' .student '0' tuple against.*'tuple' object has no attribute",
    ),
    "two devices": (
        lambda run: run(stages, [hint()], teacher=Stages().to("meta")),
        r"student is on cpu and the teacher on meta.*distiller.to\('cpu'\)",
    ),
    "batch of one": (
        lambda run: run(batch_of_one, images=IMAGES[:1], labels=LABELS[:1]),
        "BatchNorm cannot train on a batch of one sample.*drop_last",
    ),
    "batch of one to a connector": (
        lambda run: run(
            distiller,
            images=IMAGES[:1],
            labels=LABELS[:1],
            terms=[Term("kd", KDLoss(), "classifier", "classifier", student_connector=nn.BatchNorm1d(3))],
        ),
        "'kd'.*BatchNorm cannot train on a batch of one sample.*drop_last",
    ),
}

WHEN_BUILT = {
    "no such teacher": (lambda: stages([hint(of="rian")], teacher=teachers_by_name()), "Did you mean 'rain'"),
    "which teacher": (
        lambda: stages([hint()], teacher=teachers_by_name()),
        "does not say which teacher it means: give it of=, one of 'rain'",
    ),
    "joined, of the whole batch": (
        lambda: stages([hint(of=["rain", "haze"])], teacher={"rain": Stages(), "haze": Stages()}),
        "joins the teachers rain, haze, and 'rain' speaks about the whole batch; wanted: .*part=",
    ),
    "no teacher": (lambda: Distiller(Stages(), {}, [hint()], nn.CrossEntropyLoss()), "teacher is dict; wanted"),
    "nothing compared": (lambda: hint(student=[]), "compares nothing"),
    "a misspelt argument": (lambda: Term("x", Surplus(), "a", "b"), "Did you mean 'target'"),
    "reconstruction of nothing": (lambda: hint(reconstruction=nn.Identity()), "leave it out"),
    "a schedule below zero": (
        lambda: run_started([hint(weight=lambda epoch, epochs: -1.0)]),
        "weight of term 'hint' at epoch 0 of 2 is -1.0",
    ),
    "the task's schedule": (
        lambda: run_started([hint()], task_weight=lambda epoch, epochs: float("nan")),
        "task_weight at epoch 0 of 2 is nan",
    ),
    "a negative epoch": (lambda: stages([hint()]).set_epoch(-1, 5), "at epoch -1 of 5; wanted"),
    "an endless epoch": (lambda: stages([hint()]).set_epoch(float("inf"), 5), "at epoch inf of 5; wanted"),
    "a run without epochs": (lambda: stages([hint()]).set_epoch(0, 0), "at epoch 0 of 0; wanted"),
}


SEQUENCES = torch.zeros(4, 6, 8)


class Last(nn.Module):
    def forward(self, read):
        return read[0][:, -1]


def recurrent(loss, example=None, **connectors):
    networks = [nn.Sequential(nn.LSTM(8, 3, batch_first=True), Last()) for _ in range(2)]
    return Distiller(*networks, [Term("hint", loss, "0", "0", **connectors)], nn.CrossEntropyLoss(), example=example)


def frozen(weight=1.0, **options):
    mine = Stages()
    mine.first.requires_grad_(False)
    return Distiller(mine, Stages(), [hint(weight=weight)], nn.CrossEntropyLoss(), **options)


def batch_of_one(**options):
    mine = nn.Sequential(nn.Conv2d(3, 3, 16), nn.BatchNorm2d(3), nn.Flatten())
    return Distiller(mine, student(), [kd(student="")], nn.CrossEntropyLoss(), **options)


def run_started(terms, **options):
    d = stages(terms, **options)
    d.set_epoch(0, 2)
    d(IMAGES, LABELS)


def at_the_call(build, *what, images=IMAGES, labels=LABELS, **options):
    d = build(*what, **options)
    d.set_epoch(1, 5)
    d(images, labels)


def at_construction(build, *what, images=IMAGES, labels=LABELS, **options):
    build(*what, **options, example=(images, labels))


@pytest.mark.parametrize("run", [at_the_call, at_construction])
@pytest.mark.parametrize(("build", "said"), AT_THE_CALL.values(), ids=AT_THE_CALL)
def test_what_goes_wrong_says_what_where_and_how_to_mend_it(build, said, run, shapes_unchecked):
    with pytest.raises(InputError, match=said):
        build(run)


@pytest.mark.parametrize(("build", "said"), WHEN_BUILT.values(), ids=WHEN_BUILT)
def test_what_is_wrong_with_teachers_terms_and_schedules_says_how_to_mend_it(build, said):
    with pytest.raises(InputError, match=said):
        build()


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_the_first_real_batch_is_looked_at_as_closely_as_the_example(side):
    d = stages([hint()], example=(IMAGES, LABELS))
    nn.init.constant_(getattr(d, side).first.bias, float("inf"))
    with pytest.raises(InputError, match="'first' of Stages holds numbers that are not finite"):
        d(IMAGES, LABELS)


def test_the_example_is_all_that_forward_takes():
    memory = Term("memory", Remembering(), "classifier", "classifier")
    distiller(terms=[memory], example=(IMAGES, LABELS, {}, torch.arange(4)))
    with pytest.raises(InputError, match="Remembering wants the index"):
        distiller(terms=[memory], example=(IMAGES, LABELS))


class Branching(nn.Module):
    """A layer that three others read, so that the order in which their gradients are added shows in the bits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.ways = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, images):
        x = self.stem(images)
        return sum(way(x) for way in self.ways).mean(dim=(2, 3))[:, :3]


def test_the_first_step_has_the_gradient_of_every_later_one_to_the_bit():
    torch.manual_seed(0)
    flat = {"student_connector": nn.Flatten(), "teacher_connector": nn.Flatten()}
    term = Term("kd", KDLoss(), student="stem", teacher="stem", **flat)
    d = Distiller(Branching(), Branching(), [term], nn.CrossEntropyLoss())
    gradients = []
    for _ in range(3):
        d.zero_grad()
        d(IMAGES, LABELS)["total"].backward()
        gradients.append([p.grad.clone() for p in d.parameters()])
    for later in gradients[1:]:
        assert all(map(torch.equal, gradients[0], later))


def test_the_dry_run_finds_a_frozen_layer_also_where_gradients_are_off():
    mine, hint = student(), Term("hint", HintLoss(), "features.1", "features.1")
    mine.features.requires_grad_(False)
    with torch.no_grad(), pytest.raises(InputError, match="term 'hint' cannot teach the student"):
        Distiller(mine, student(), [hint], nn.CrossEntropyLoss(), example=(IMAGES, LABELS))
