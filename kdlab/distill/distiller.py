"""Teachers, student and the terms that compare them, as one module that returns its losses."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.distill.reader import Reader, refuse_too_few_samples
from kdlab.distill.schedules import Schedule, check_weight, weight_at
from kdlab.distill.taps import Tap, Taps, tensors_in, version
from kdlab.distill.term import Term, on_side
from kdlab.errors import InputError, unknown

Chooses = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Teacher:
    """A teacher that sees something else than the student, or speaks only about a part of the batch.

    Args:
        model: the network.
        sees: from (images, labels) to its own input, of the same samples; None: the images.
        part: from (images, labels) to the samples that it speaks about: a mask or indices; None: all.
    """

    model: nn.Module
    sees: Chooses | None = None
    part: Chooses | None = None


class _Keys(NamedTuple):
    """The names of a term's teachers and of its tensors."""

    teachers: tuple[str, ...]
    read: list[str]
    known: list[list[str]]  # for each tap, one of each teacher


class Distiller(nn.Module):
    """A student that learns from a task loss and from one frozen teacher or several.

    ``parameters()`` and ``state_dict()`` hold the student, the connectors and every learnable part of a loss, and
    nothing of a teacher, which is frozen, always in eval mode (dropout and stochastic depth too) and moves along in
    ``to()``. A teacher's forward pass ends after its last tapped layer.

    >>> distiller = Distiller(student, teacher, task=nn.CrossEntropyLoss(), task_weight=0.3,
    ...                       terms=[Term("kd", KDLoss(4.0), student="classifier", teacher="classifier", weight=0.7)])
    >>> losses = distiller(images, labels)          # {"task": ..., "kd": ..., "total": ...}
    >>> losses["total"].backward()

    ``torch.save(distiller.student.state_dict(), path)`` keeps the student alone. To compile the student, call
    ``student.compile()``, which leaves its layers their names. On several processes :func:`kdlab.training.fit` shares
    the work by itself; in a loop of your own wrap the whole distiller in ``DistributedDataParallel`` with
    ``find_unused_parameters=True``: a term whose weight is 0 leaves its connectors without a gradient.

    Args:
        student: takes the images.
        teacher: a module that takes the images, a :class:`Teacher`, or a mapping of several of these by name.
        terms: what is compared; at least one.
        task: the loss between the student's output and the labels, a module or a function.
        task_weight: its weight, at least 0, or a schedule.
        example: what ``forward`` takes, (images, labels[, observed[, index]]), for one dry run of every term now, so
            that a wrong shape or a frozen layer is found here and not at step one. It leaves weights, statistics and
            random numbers as they were.

    Raises:
        InputError: no terms, two of one name, an unknown layer or teacher, a negative weight, a parameter that student
            and teacher share, a task loss that is a class; with an example, what ``forward`` raises.
    """

    teachers: dict[str, Teacher]

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Teacher | Mapping[str, nn.Module | Teacher],
        terms: Sequence[Term],
        task: nn.Module,
        task_weight: float | Schedule = 1.0,
        example: tuple[Any, ...] | None = None,
    ) -> None:
        super().__init__()
        if not callable(task_weight):
            check_weight("task_weight", task_weight)
        _check_terms(terms, task_weight)
        if isinstance(task, type) or not callable(task):
            what = f"the class {task.__name__}" if isinstance(task, type) else f"a {type(task).__name__}"
            raise InputError(f"the task loss is {what}; wanted: a module, such as nn.CrossEntropyLoss().")
        if not isinstance(example, tuple | list | None):
            raise InputError(f"the example is a {type(example).__name__}; wanted: a batch, (images, labels).")
        self.student = student
        self.task = task
        self.task_weight = task_weight
        self.terms = tuple(terms)
        self.losses = nn.ModuleDict({term.name: term.loss for term in terms})
        self.student_connectors = _by_term(terms, "student_connector")
        self.teacher_connectors = _by_term(terms, "teacher_connector")
        self.reconstructions = _by_term(terms, "reconstruction")
        # Past nn.Module's registration: a teacher is no part of what is trained or saved.
        self.__dict__["teachers"] = {name: _as_teacher(one) for name, one in _named(teacher).items()}
        _check_apart(student, self.teachers)
        for one in self.teachers.values():
            one.model.requires_grad_(False)
        self._now: tuple[float, int] | None = None
        self._dry = False
        self._keys = {term.name: self._keys_of(term) for term in terms}
        self._student_reader = Reader(tap for term in terms for tap in term.student_taps)
        self._teacher_readers = {name: Reader(self._taps_of(name), stops=True) for name in self.teachers}
        Taps(student, self._student_reader.taps)  # an unknown layer is an error here
        for name, reader in self._teacher_readers.items():
            Taps(self.teachers[name].model, reader.taps)
        self.train()
        if example is not None:
            self._dry_run(*example)

    @property
    def teacher(self) -> nn.Module:
        """The only teacher's network.

        Raises:
            InputError: there are several.
        """
        return self.teachers[self._only_name].model

    @property
    def teacher_taps(self) -> tuple[Tap, ...]:
        """What is read of the only teacher.

        Raises:
            InputError: there are several.
        """
        return self._teacher_readers[self._only_name].taps

    @property
    def _only_name(self) -> str:
        if len(self.teachers) > 1:
            raise InputError(f"there are several teachers: {', '.join(self.teachers)}. Take one from `teachers`.")
        return next(iter(self.teachers))

    def set_epoch(self, epoch: float, epochs: int) -> None:
        """Say where the run is, for weights that have a schedule; :func:`kdlab.training.fit` does it at each step.

        Args:
            epoch: from 0; the part after the point is how far the epoch has got.
            epochs: of the whole run, at least 1.

        Raises:
            InputError: a negative epoch, a run without epochs.
        """
        if not 0 <= epoch < math.inf or epochs < 1:
            raise InputError(f"the run is at epoch {epoch} of {epochs}; wanted: an epoch from 0 up, of at least one.")
        self._now = (epoch, epochs)

    def observe_teacher(self, images: Any, labels: Any = None) -> dict[str, Any]:
        """What the tapped layers of the teachers put out for these images, without gradient.

        With several teachers each name is that of the teacher, a slash, and the tap.
        """
        observed: dict[str, Any] = {}
        for name in self.teachers:
            observed |= self._observe(name, images, labels)
        return observed

    def forward(
        self, images: Any, labels: Any, observed: Mapping[str, Any] | None = None, index: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The losses of one batch: "task", each term by its name (unweighted), and "total", their weighted sum.

        A term that learns a connector on the teacher's side reports its reconstruction error as
        "NAME_reconstruction". A term whose schedule has come to 0 is not computed and reports 0. While every weight is
        0 the total has no gradient: in a loop of your own, skip such a step.

        Args:
            images: what the student takes.
            labels: what the task loss takes; a term's loss that asks for the target gets them whole.
            observed: the teacher's tapped outputs for these images where they are known already, as
                :class:`TeacherCache` supplies them; a teacher whose taps are all among them does not run.
            index: the samples' places in the data set, for a loss that asks for them; :class:`Indexed` supplies it.

        Raises:
            InputError: a schedule without :meth:`set_epoch`, or of a negative or infinite weight; a loss that wants an
                index and gets none; shapes that do not meet; a connector that overwrites its input; networks on two
                devices; a batch of one where a BatchNorm trains; a task loss that works in place, or returns no tensor;
                a term whose layer of the student has no gradient.
        """
        if observed is not None and not isinstance(observed, Mapping):
            raise InputError(
                f"the third item of a batch is {type(observed).__name__}; wanted there: what the teacher put out, as "
                "TeacherCache.attach supplies it. Let the data set yield (image, label); for the samples' places wrap "
                "it in kdlab.distill.Indexed."
            )
        weights = {term.name: self._weight(term.weight_at) for term in self.terms}
        # A dry run is for the terms that start later, too.
        active = [term for term in self.terms if weights[term.name] or not callable(term.weight) or self._dry]
        known = self._observed_for(active, images, labels, observed or {})
        try:
            output, read = self._student_reader(self.student, images)
        except Exception as error:
            refuse_too_few_samples(error)
            error.add_note(f"This was in the student's forward pass ({_described(self.student, images)}).")
            raise
        losses = {"task": self._task_loss(output, labels, read)}
        task_weight = self._weight(partial(weight_at, "task_weight", self.task_weight))
        parts = [task_weight * losses["task"]] if task_weight else []
        for term in self.terms:
            if term not in active:
                losses |= dict.fromkeys(term.reports, losses["task"].new_zeros(()))
                continue
            mine = self._compare(term, read, known, images, labels, index)
            losses |= mine
            if weights[term.name] or callable(term.weight):
                self._check_gradient(term, read)
            if weights[term.name]:
                parts.append(weights[term.name] * mine[term.name])
                if term.reconstruction is not None and term.reconstruction_weight:
                    parts.append(term.reconstruction_weight * mine[f"{term.name}_reconstruction"])
        return losses | {"total": sum(parts[1:], parts[0]) if parts else losses["task"].new_zeros(())}

    def train(self, mode: bool = True) -> "Distiller":
        """Training mode for the student, the losses and what learns; not for a teacher, nor its frozen connector."""
        super().train(mode)
        for teacher in self.teachers.values():
            teacher.model.eval()
        for connector in self.teacher_connectors.values():
            if not any(p.requires_grad for p in connector.parameters()):
                connector.eval()
        return self

    def _task_loss(self, output: Any, labels: Any, read: Mapping[str, Any]) -> Tensor:
        who = f"the task loss {type(self.task).__name__}"
        before = _versions(read.values())
        try:
            loss = self.task(output, labels)
        except Exception as error:
            error.add_note(f"This was in the task loss ({_described(self.task, output, labels)}).")
            raise
        if _versions(read.values()) != before:
            raise _overwritten(who, "Let it work on a tensor of its own: sigmoid() in place of sigmoid_().")
        if not isinstance(loss, Tensor):
            raise InputError(f"{who} returns a {type(loss).__name__}; wanted: one number, a tensor without dimensions.")
        return loss

    def _check_gradient(self, term: Term, read: Mapping[str, Any]) -> None:
        """Refuse a term from which the student cannot learn, though a connector may; a frozen one is only looked at."""
        if not self.training or not torch.is_grad_enabled():
            return
        tapped = tensors_in(read[key] for key in self._keys[term.name].read)
        if any(tensor.requires_grad for tensor in tapped):
            return
        if any(parameter.requires_grad for parameter in self.student.parameters()):
            layers = ", ".join(str(tap) or "the output" for tap in term.student_taps)
            raise InputError(
                f"term {term.name!r} cannot teach the student: what it puts out at {layers} has no gradient, because "
                "it is frozen, under torch.no_grad() or inside a reentrant checkpoint. Tap another layer, or give the "
                "term the weight 0, which only reports it."
            )

    def _compare(
        self, term: Term, read: Mapping[str, Any], known: Mapping[str, Any], images: Any, labels: Any, index: Any
    ) -> dict[str, Tensor]:
        """The term's loss by its name, and the reconstruction error where it has one."""
        keys = self._keys[term.name]
        teacher_side = [known[of[0]] if len(of) == 1 else torch.cat([known[key] for key in of]) for of in keys.known]
        student_side = [read[key] for key in keys.read]
        rows = self._rows(keys.teachers, images, labels)
        if rows is not None:
            # A parameter has no samples.
            student_side = [
                tensor if tap.what == "parameter" else tensor[rows]
                for tap, tensor in zip(term.student_taps, student_side, strict=True)
            ]
        extra: dict[str, Any] = {}
        for argument, value in (("target", labels), ("index", index)):
            if argument in term.asks_for and value is not None:
                extra[argument] = value if rows is None else value[rows]
            elif term.asks_for.get(argument):
                raise InputError(
                    f"term {term.name!r}: {type(term.loss).__name__} wants the {argument} of each sample and got "
                    "none. Wrap the training set in kdlab.distill.Indexed, or pass index= yourself."
                )
        try:
            return self._losses_of(term, student_side, teacher_side, extra)
        except torch.OutOfMemoryError:  # no matter of shapes
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise _told(error, term, student_side, teacher_side) from error

    def _losses_of(
        self, term: Term, student_side: list[Any], teacher_side: list[Any], extra: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        before = _versions([*student_side, *teacher_side])
        student = on_side(term.student, student_side)
        teacher = raw = on_side(term.teacher, teacher_side)
        # Not the term's own modules: what is registered may have been replaced, as convert_sync_batchnorm does.
        try:
            if term.student_connector is not None:
                student = self.student_connectors[term.name](student)
            if term.teacher_connector is not None:
                teacher = self.teacher_connectors[term.name](teacher)
            losses = {term.name: self.losses[term.name](student=student, teacher=teacher, **extra)}
            if term.reconstruction is not None:
                losses[f"{term.name}_reconstruction"] = F.l1_loss(self.reconstructions[term.name](teacher), raw)
        except ValueError as error:
            refuse_too_few_samples(error)
            raise
        if losses[term.name].ndim:
            shape = tuple(losses[term.name].shape)
            raise InputError(f"the loss is of shape {shape}; wanted: one number, such as its mean().")
        if _versions([*student_side, *teacher_side]) != before:
            raise _overwritten("a connector or the loss", "Give its activations inplace=False.")
        return losses

    def _rows(self, names: Sequence[str], images: Any, labels: Any) -> Tensor | None:
        """The samples that these teachers speak about, one teacher's after the other's; None: all, as they are."""
        parts = [part(images, labels) for name in names if (part := self.teachers[name].part) is not None]
        # Places, also of a single part: a GPU is waited for wherever a tensor is indexed by a mask.
        places = [part.nonzero().flatten() if part.dtype == torch.bool else part for part in parts]
        return torch.cat(places) if places else None

    def _observed_for(
        self, terms: Sequence[Term], images: Any, labels: Any, observed: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """The tapped outputs of the teachers that these terms need: those known already, the rest computed."""
        if len(self.teachers) > 1:
            self._check_owners(observed)
        # What was observed in inference mode could not be saved for a backward pass.
        known = {key: _outside_inference(value) for key, value in observed.items()}
        missing = [term for term in terms if not all(key in known for key in chain(*self._keys[term.name].known))]
        for name in dict.fromkeys(name for term in missing for name in self._keys[term.name].teachers):
            known |= self._observe(name, images, labels)
        return known

    @torch.no_grad()
    def _observe(self, name: str, images: Any, labels: Any) -> dict[str, Any]:
        teacher = self.teachers[name]
        if teacher.model.training:  # someone has called its own train()
            teacher.model.eval()
        seen = images if teacher.sees is None else teacher.sees(images, labels)
        if teacher.part is not None:
            if not isinstance(seen, Tensor):
                raise InputError(
                    f"teacher {name!r} speaks about a part of the batch, and is given a {type(seen).__name__}, from "
                    "which no samples can be taken by their places; wanted: a tensor, as its `sees` may return one."
                )
            seen = seen[teacher.part(images, labels)]
            if len(seen) == 0:
                raise InputError(
                    f"no sample of this batch is the part of teacher {name!r}. Draw batches that hold some for every "
                    "teacher, as kdlab.data.StratifiedBatches does."
                )
        try:
            _, read = self._teacher_readers[name](teacher.model, seen)
        except Exception as error:
            self._check_devices(name, teacher.model)
            who = f"teacher {name!r}" if name else "the teacher"
            error.add_note(f"This was in the forward pass of {who} ({_described(teacher.model, seen)}).")
            raise
        return {self._key(name, tap): value for tap, value in read.items()}

    def _check_owners(self, observed: Iterable[str]) -> None:
        """Of several teachers' outputs each must say whose it is: its teacher would run all the same, unseen."""
        for key in observed:
            if not any(key.startswith(f"{name}/") for name in self.teachers):
                raise InputError(
                    f"observed holds {key!r}, and there are several teachers: {', '.join(self.teachers)}. Say whose it "
                    f"is, as in {f'{next(iter(self.teachers))}/{key}'!r}."
                )

    def _check_devices(self, name: str, teacher: nn.Module) -> None:
        devices = [next((p.device for p in net.parameters()), None) for net in (self.student, teacher)]
        if None not in devices and devices[0] != devices[1]:
            who = f"teacher {name!r}" if name else "the teacher"
            raise InputError(
                f"the student is on {devices[0]} and {who} on {devices[1]}. Bring both to one device: "
                f"distiller.to({str(devices[0])!r})."
            )

    def _taps_of(self, name: str) -> tuple[Tap, ...]:
        terms = [term for term in self.terms if name in self._keys[term.name].teachers]
        return tuple(tap for term in terms for tap in term.teacher_taps)

    def _keys_of(self, term: Term) -> "_Keys":
        names = self._teachers_of(term)
        known = [[self._key(name, tap) for name in names] for tap in term.teacher_taps]
        return _Keys(names, [str(tap) for tap in term.student_taps], known)

    def _teachers_of(self, term: Term) -> tuple[str, ...]:
        if term.of is None and len(self.teachers) == 1:
            return tuple(self.teachers)
        if term.of is None:
            known = ", ".join(map(repr, self.teachers))
            raise InputError(f"term {term.name!r} does not say which teacher it means: give it of=, one of {known}.")
        names = tuple(term.of) if isinstance(term.of, Sequence) and not isinstance(term.of, str) else (str(term.of),)
        for name in names:
            if name not in self.teachers:
                raise InputError(f"term {term.name!r}: " + unknown("teacher", name, self.teachers))
        whole = [name for name in names if self.teachers[name].part is None]
        if len(names) > 1 and whole:
            raise InputError(
                f"term {term.name!r} joins the teachers {', '.join(names)}, and {whole[0]!r} speaks about the whole "
                "batch; wanted: Teacher(model, part=...), of samples that no other one speaks about."
            )
        return names

    def _key(self, name: str, tap: Tap | str) -> str:
        return f"{name}/{tap}" if len(self.teachers) > 1 else str(tap)

    def _weight(self, schedule: Schedule) -> float:
        if self._now is None:
            if callable(self.task_weight) or any(callable(term.weight) for term in self.terms):
                raise InputError(
                    "a weight has a schedule, and the distiller does not know where the run is. In a loop of your own "
                    "call distiller.set_epoch(epoch, epochs) before each step; fit does."
                )
            return schedule(0, 1)
        return schedule(*self._now)

    def _dry_run(self, *batch: Any) -> None:
        """One forward pass of every term in training mode, after which, or after its error, everything is as it was.

        With gradient, for a term that has none to teach by; the first real batch is looked at as closely again.
        """
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self._now, self._dry = (0.0, 1), True
        devices = {p.device for p in self.parameters() if p.device.type == "cuda"}
        with torch.random.fork_rng(devices), torch.enable_grad():
            try:
                self(*batch)
            finally:
                with torch.no_grad():
                    for name, buffer in self.named_buffers():
                        buffer.copy_(buffers[name])
                self._now, self._dry = None, False
        for reader in (self._student_reader, *self._teacher_readers.values()):
            reader.forget()

    def _apply(self, fn: Any, recurse: bool = True) -> "Distiller":
        """All that moves or converts a module (``to``, ``cuda``, ``half``) passes here: take the teachers along."""
        for teacher in self.teachers.values():
            teacher.model._apply(fn)  # its children too; some models' own _apply takes nothing else
        return super()._apply(fn, recurse)


def _check_terms(terms: Sequence[Term], task_weight: float | Schedule) -> None:
    if not isinstance(terms, Sequence) or not all(isinstance(term, Term) for term in terms):
        raise InputError(f"terms is {terms!r:.200}; wanted: a list of terms, [Term(...)].")
    if not terms:
        raise InputError("a distiller without terms would not distil; give at least one Term.")
    names = [name for term in terms for name in term.reports]
    if len(set(names)) < len(names):
        raise InputError(f"the terms report {', '.join(names)}; every term needs a name of its own.")
    if not task_weight and not any(term.weight for term in terms):
        raise InputError("task_weight and every term's weight are 0: there is nothing to learn from.")


def _described(network: Any, *given: Any) -> str:
    """Whose forward pass it was, and on what."""
    parts = [
        f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')} on {one.device}" if isinstance(one, Tensor)
        else f"a {type(one).__name__}"
        for one in given
    ]  # fmt: skip
    return f"{getattr(network, '__name__', type(network).__name__)} on {' and '.join(parts)}"


def _named(teacher: Any) -> dict[str, nn.Module | Teacher]:
    if isinstance(teacher, nn.Module | Teacher):
        return {"": teacher}
    if not isinstance(teacher, Mapping) or not teacher:
        raise InputError(f"teacher is {type(teacher).__name__}; wanted: a module, a Teacher, or several by name.")
    return dict(teacher)


def _as_teacher(teacher: nn.Module | Teacher) -> Teacher:
    return teacher if isinstance(teacher, Teacher) else Teacher(teacher)


def _check_apart(student: nn.Module, teachers: Mapping[str, Teacher]) -> None:
    own = {id(parameter): name for name, parameter in student.named_parameters()}
    for name, teacher in teachers.items():
        shared = next((own[id(p)] for p in teacher.model.parameters() if id(p) in own), None)
        if shared is not None:
            who = f"teacher {name!r}" if name else "the teacher"
            raise InputError(
                f"the student's parameter {shared!r} belongs to {who}, too, which is frozen: the student could not "
                "learn it. Give the student a copy of its own: copy.deepcopy(model)."
            )


def _by_term(terms: Sequence[Term], part: str) -> nn.ModuleDict:
    return nn.ModuleDict({term.name: getattr(term, part) for term in terms if getattr(term, part) is not None})


def _outside_inference(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _versions(read: Iterable[Any]) -> list[int | None]:
    """How often each tensor was changed in place: whoever works in place on what was read raises its number."""
    return list(map(version, tensors_in(read)))


def _overwritten(who: str, instead: str) -> InputError:
    return InputError(
        f"{who} works in place and has overwritten what a layer put out, which other terms read, too. {instead}"
    )


def _told(error: Exception, term: Term, student: Sequence[Any], teacher: Sequence[Any]) -> InputError:
    """Say of an error in a connector or a loss in which term, between which layers, on which shapes it happened."""
    sides = []
    for taps, tensors in ((term.student_taps, student), (term.teacher_taps, teacher)):
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in tensors]
        names = [repr(str(tap)) if str(tap) else "output" for tap in taps]
        sides.append(" and ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True)))
    said = str(error)
    if not isinstance(error, InputError):
        said = f"{said.rstrip('. ')}."
        if isinstance(error, RuntimeError | ValueError):
            said += " Give the term a connector made for these shapes, or tap other layers."
    return InputError(f"term {term.name!r} (student {sides[0]} against teacher {sides[1]}): {said}")
