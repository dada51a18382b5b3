"""The checks of chapters 00 and 01."""

from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.classroom.check.grading import Answer, ask, ask_also, ask_gradient, compare, number, say, unrounded
from kdlab.classroom.response import soften
from kdlab.losses import KDLoss


def times_smaller(answer: Any, teacher: torch.nn.Module, student: torch.nn.Module) -> bool:
    """00: how many times fewer parameters the student has."""
    large, small = (sum(p.numel() for p in model.parameters()) for model in (teacher, student))
    answer = unrounded(answer, large / small)
    return say(compare(answer, large / small, {small / large: "you divided the small number by the large one."}))


def softened(answer: Answer) -> bool:
    """01, exercise 1: ``answer(logits (n, k), temperature)`` gives probabilities (n, k)."""
    logits = torch.tensor([[6.0, 2.0, -1.0], [0.0, 0.5, 400.0]])
    want = torch.softmax(logits / 4.0, dim=1)
    known = {
        torch.softmax(logits * 4.0, dim=1): "you multiplied by the temperature; a high temperature must soften.",
        torch.softmax(logits, dim=1): "the temperature has no effect yet.",
        torch.softmax(logits / 4.0, dim=0): "each column sums to 1; wanted: each row, because a row is an image.",
    }
    problem = ask(answer, (logits, 4.0), want, known)
    problem = ask_also(problem, answer, (logits, 2.0), torch.softmax(logits / 2.0, dim=1), "at a temperature of 2")
    if problem is not None and "not finite" in problem:
        problem = "not finite: exp alone overflows; subtract the row's largest logit first, or use torch.softmax."
    return say(problem)


def kd_loss(answer: Answer) -> bool:
    """01, exercise 2: ``answer(student (n, k), teacher (n, k), temperature)`` gives the KD loss, a scalar."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator) * 3 for _ in range(2))
    teacher.requires_grad_()
    T = 3.0
    want = KDLoss(T)(student, teacher)
    soft_cross_entropy = T**2 * F.cross_entropy(student / T, (teacher / T).softmax(dim=1))
    known = {
        want / T**2: "the T² is missing: at T = 20 the gradient would all but vanish.",
        want / T: "one factor T is missing: it is T squared.",
        soft_cross_entropy: "this is the cross-entropy with the teacher's answers: the same gradient, but not 0 where "
        "both agree; subtract the teacher's entropy.",
        KDLoss(1 / T)(student, teacher) * T**4: "you multiplied by the temperature; a high temperature must soften.",
        want * 6: "you summed over the images; wanted: their mean.",
        want / 5: "you took the mean over images and classes; wanted: the sum over classes, then the mean over images.",
        F.mse_loss(student, teacher): "this compares the logits themselves; wanted: the softened answers, by KL.",
        KDLoss(T)(teacher, student): "this is KL(student ‖ teacher); wanted: KL(teacher ‖ student).",
    }
    problem = ask(answer, (student, teacher, T), want, known)
    problem = ask_also(problem, answer, (student, teacher, 5.0), KDLoss(5.0)(student, teacher), "at a temperature of 5")
    return say(ask_gradient(problem, answer, (student.requires_grad_(), teacher, T), student, teacher, "logits"))


def total_loss(answer: Answer) -> bool:
    """01, exercise 3: ``answer(student, teacher, labels, temperature, alpha)`` gives the whole loss, a scalar."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(4, 3, generator=generator) * 2 for _ in range(2))
    labels = torch.tensor([0, 2, 1, 1])
    kd, task = KDLoss(2.0)(student, teacher), F.cross_entropy(student, labels)
    known = {
        0.2 * kd + 0.8 * task: "alpha and 1 - alpha are exchanged: alpha belongs to the teacher.",
        kd + task: "the two losses are not weighted yet.",
        task: "the teacher has no part in it yet.",
        0.8 * kd / 4 + 0.2 * task: "the T² is missing in the KD part.",
        0.8 * kd
        + 0.2 * F.cross_entropy(student / 2, labels): "the labels' cross-entropy takes the plain logits, T = 1.",
    }
    problem = ask(answer, (student, teacher, labels, 2.0, 0.8), 0.8 * kd + 0.2 * task, known)
    other = 0.3 * KDLoss(5.0)(student, teacher) + 0.7 * task
    problem = ask_also(problem, answer, (student, teacher, labels, 5.0, 0.3), other, "at a temperature of 5, alpha 0.3")
    arguments = (student.requires_grad_(), teacher, labels, 2.0, 0.8)
    return say(ask_gradient(problem, answer, arguments, student, teacher, "logits"))


def temperature_for(answer: Any, logits: Tensor, entropy: float) -> bool:
    """01, exercise 4: the temperature at which these logits (k) have this entropy, in nats, to 0.02."""
    if answer is None or answer is ...:
        return say("no answer yet.")
    temperature = number(answer)
    if temperature is None or not temperature > 0:
        return say(f"you gave {answer!r}; wanted: a number above 0.")
    got = soften(logits, logits, min(max(temperature, 1e-9), 1e9)).teacher_entropy  # beyond, it stays as it is
    if abs(got - entropy) <= 0.02:
        return say(None)
    way = "higher" if got < entropy else "lower"
    return say(f"at T = {temperature:g} the entropy is {got:.3f}, wanted {entropy:.3f}: the temperature must be {way}.")


def best_epoch(answer: Answer) -> bool:
    """01, exercise 5: ``answer(history)`` gives the epoch whose checkpoint to keep."""
    columns = ("epoch", "val_accuracy", "val_loss")
    history = pd.DataFrame(
        [(1, 0.80, 0.50), (2, 0.90, 0.45), (3, 0.92, 0.60), (4, 0.92, 0.55), (5, 0.91, 0.40)],
        columns=columns,
        index=range(10, 15),  # such as a part of a longer history has
    )
    index = "this is the row's place in the table, its index; wanted: its epoch."
    known = {
        3.0: "of the equally accurate epochs 3 and 4 the lower loss decides. (Or is it a position, counted from 0?)",
        5.0: "this is the last epoch, which has the lowest loss; wanted: the most accurate.",
        12.0: index,
        13.0: index,
        2.0: "this is the row's position, counted from 0; wanted: its epoch.",
    }
    problem = ask(answer, (history,), 4, known)
    if problem is None:
        earlier = history.assign(val_loss=[0.50, 0.45, 0.55, 0.60, 0.40])
        late = {4.0: "you chose 4; wanted: 3, whose loss is lower."}
        if (also := ask(answer, (earlier,), 3, late)) is not None:
            problem = f"where the earlier of two equals has the lower loss: {also}"
        unsure = history.assign(val_accuracy=[0.80, 0.90, 0.92, 0.93, 0.931], val_loss=[0.50, 0.45, 0.40, 0.50, 0.90])
        problem = ask_also(problem, answer, (unsure,), 5, "where the most accurate one has by far the highest loss")
        part = history.assign(epoch=range(11, 16))
        problem = ask_also(problem, answer, (part,), 14, "where the history is a part of a longer one, from epoch 11")
    return say(problem)
