"""Teacher, student and the terms that compare them, as one module that returns its losses."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.distill.taps import Taps
from kdlab.errors import InputError

RESERVED = ("task", "total")


@dataclass(frozen=True)
class Term:
    """One comparison: this loss, between this layer of the student and this layer of the teacher, times a weight.

    Args:
        name: how the loss appears in the losses of a step; any name but "task" and "total".
        loss: a module whose forward takes ``student`` and ``teacher`` and, where it needs the labels, ``target``.
        student, teacher: dotted names of layers, as ``named_modules()`` gives them.
        weight: at least 0; 0 reports the loss without training on it.

    Raises:
        InputError: a reserved name, a negative weight, a loss with other arguments.
    """

    name: str
    loss: nn.Module
    student: str
    teacher: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.name in RESERVED or not self.name.isidentifier():
            raise InputError(f"a term is called {self.name!r}; wanted: an identifier other than 'task' and 'total'.")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"term {self.name!r} has weight {self.weight}; wanted: a finite number, 0 or above.")
        arguments = inspect.signature(self.loss.forward).parameters
        required = {n for n, a in arguments.items() if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD}
        if not {"student", "teacher"} <= set(arguments) or required - {"student", "teacher", "target"}:
            raise InputError(
                f"term {self.name!r}: the loss {type(self.loss).__name__} takes ({', '.join(arguments)}); "
                "wanted: forward(student, teacher) or forward(student, teacher, target)."
            )

    @property
    def needs_target(self) -> bool:
        return "target" in inspect.signature(self.loss.forward).parameters


class Distiller(nn.Module):
    """A student that learns from a task loss and from a frozen teacher.

    ``parameters()`` and ``state_dict()`` hold the student and every learnable part of a loss, and nothing of the
    teacher, which is frozen, always in eval mode (dropout and stochastic depth too) and moves along in ``to()``.

    >>> distiller = Distiller(student, teacher, task=nn.CrossEntropyLoss(), task_weight=0.3,
    ...                       terms=[Term("kd", KDLoss(4.0), student="classifier", teacher="classifier", weight=0.7)])
    >>> losses = distiller(images, labels)          # {"task": ..., "kd": ..., "total": ...}
    >>> losses["total"].backward()

    Args:
        student, teacher: two modules that take the same images.
        terms: what is compared; at least one.
        task: the loss between the student's output and the labels.
        task_weight: its weight, at least 0.
        example: (images, labels) for one dry run now, so that a wrong shape is found here and not at step one.

    Raises:
        InputError: no terms, two of one name, an unknown layer, a negative weight, shapes that do not meet.
    """

    teacher: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        terms: Sequence[Term],
        task: nn.Module,
        task_weight: float = 1.0,
        example: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise InputError("a distiller without terms would not distil; give at least one Term.")
        names = [term.name for term in terms]
        if len(set(names)) < len(names):
            raise InputError(f"terms are called {', '.join(names)}; every term needs a name of its own.")
        if not (math.isfinite(task_weight) and task_weight >= 0):
            raise InputError(f"task_weight is {task_weight}; wanted: a finite number, 0 or above.")
        if not task_weight and not any(term.weight for term in terms):
            raise InputError("task_weight and every term's weight are 0: there is nothing to learn from.")
        self.student = student
        self.task = task
        self.task_weight = task_weight
        self.terms = tuple(terms)
        self.losses = nn.ModuleDict({term.name: term.loss for term in terms})
        # Past nn.Module's registration: a teacher is no part of what is trained or saved.
        self.__dict__["teacher"] = teacher.requires_grad_(False).eval()
        self.student_taps = tuple(dict.fromkeys(term.student for term in terms))
        self.teacher_taps = tuple(dict.fromkeys(term.teacher for term in terms))
        Taps(student, self.student_taps)  # an unknown layer is an error here
        Taps(teacher, self.teacher_taps)
        if example is not None:
            self._dry_run(*example)

    @torch.no_grad()
    def observe_teacher(self, images: Tensor) -> dict[str, Tensor]:
        """What the teacher's tapped layers put out for these images, without gradient."""
        with Taps(self.teacher, self.teacher_taps) as taps:
            self.teacher(images)
        return {name: taps[name] for name in self.teacher_taps}

    def forward(
        self, images: Tensor, labels: Tensor, observed: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The losses of one batch: "task", each term by its name (unweighted), and "total", their weighted sum.

        Args:
            images: what both networks take.
            labels: what the task loss takes.
            observed: the teacher's tapped outputs for these images where they are known already, as
                :class:`TeacherCache` supplies them; the teacher then does not run.
        """
        if observed is None:
            observed = self.observe_teacher(images)
        with Taps(self.student, self.student_taps) as taps:
            output = self.student(images)
        losses = {"task": self.task(output, labels)}
        total = self.task_weight * losses["task"] if self.task_weight else losses["task"].new_zeros(())
        for term in self.terms:
            target: dict[str, Any] = {"target": labels} if term.needs_target else {}
            try:
                losses[term.name] = term.loss(taps[term.student], observed[term.teacher], **target)
            except InputError as error:
                layers = f"student {term.student!r} against teacher {term.teacher!r}"
                raise InputError(f"term {term.name!r} ({layers}): {error}") from error
            if term.weight:
                total = total + term.weight * losses[term.name]
        return losses | {"total": total}

    def _dry_run(self, images: Tensor, labels: Tensor) -> None:
        training = self.training
        self.eval()  # leaves BatchNorm's running statistics alone
        with torch.no_grad():
            self(images, labels)
        self.train(training)

    def _apply(self, fn: Any, recurse: bool = True) -> "Distiller":
        """All that moves or converts a module (``to``, ``cuda``, ``half``) passes here: take the teacher along."""
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)
