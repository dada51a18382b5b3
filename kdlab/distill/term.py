"""A term: which loss compares what with what."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from kdlab.distill.schedules import Schedule, check_weight, weight_at
from kdlab.distill.taps import Tap, as_tap
from kdlab.errors import InputError, unknown

COLUMNS = ("epoch", "lr", "seconds")  # of a history, beside losses and metrics
RESERVED = ("task", "total", *COLUMNS)
SAMPLE_ARGUMENTS = ("target", "index")  # what a loss may ask for beside student and teacher
Side = str | Tap | Sequence[str | Tap]


@dataclass(frozen=True)
class Term:
    """One comparison: this loss, between this layer of the student and this layer of the teacher, times a weight.

    >>> Term("hint", HintLoss(), student="features.2", teacher="features.denseblock3", weight=100.0,
    ...      student_connector=ConvConnector(32, 1024))

    Args:
        name: how the loss appears in the losses of a step; any identifier but "task", "total", "epoch", "lr" and
            "seconds", what begins with ``val_``, and those that PyTorch's modules have for themselves, such as "type".
        loss: a module whose forward takes ``student`` and ``teacher`` and, where it needs them, ``target`` (the labels)
            and ``index`` (the samples' places in the data set).
        student, teacher: a layer's dotted name, a :class:`Tap`, or a sequence of these, for a loss on lists of tensors.
        weight: at least 0, or a schedule such as :class:`WarmUp`. A constant 0 reports the loss without training on it.
        student_connector, teacher_connector: a module between the tapped tensor (or list) and the loss.
        reconstruction: for a teacher's connector that learns: a module from what the connector made back to the
            teacher's tensor. Without it the connector could make all teachers alike, and the loss 0.
        reconstruction_weight: of the mean absolute error of that, in the total; 0.05 is CKT's. At 0 it is
            only reported, and ties nothing down.
        of: which teacher, where the distiller has several by name. With several names the term is one comparison over
            all their parts of the batch, one teacher's after the other's.

    Raises:
        InputError: a reserved name, a negative weight, no layer, a loss with other arguments, a connector that is no
            module, a teacher's connector that learns without a reconstruction, a reconstruction without such a
            connector.
    """

    name: str
    loss: nn.Module
    student: Side
    teacher: Side
    weight: float | Schedule = 1.0
    student_connector: nn.Module | None = field(default=None, kw_only=True)
    teacher_connector: nn.Module | None = field(default=None, kw_only=True)
    reconstruction: nn.Module | None = field(default=None, kw_only=True)
    reconstruction_weight: float = field(default=0.05, kw_only=True)
    of: str | Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        taken = self.name in RESERVED or is_column(self.name) or hasattr(nn.ModuleDict(), self.name)
        if taken or not self.name.isidentifier():
            raise InputError(
                f"a term is called {self.name!r}; wanted: an identifier other than {', '.join(map(repr, RESERVED))}, "
                "what begins with 'val_', and what PyTorch's modules have for themselves, such as 'type' and 'half'."
            )
        for part in ("student_connector", "teacher_connector", "reconstruction"):
            if not isinstance(module := getattr(self, part), nn.Module | None):
                raise InputError(
                    f"term {self.name!r}: the {part} is a {type(module).__name__}; wanted: a module, such as "
                    "ConvConnector, or a function inside a module of your own."
                )
        if not callable(self.weight):
            check_weight(f"the weight of term {self.name!r}", self.weight)
        check_weight(f"the reconstruction_weight of term {self.name!r}", self.reconstruction_weight)
        for side in ("student", "teacher"):
            self._check_side(side, getattr(self, side))
        if not self.student_taps or not self.teacher_taps:
            raise InputError(f"term {self.name!r} compares nothing: name layers of the student and of the teacher.")
        self._check_arguments()
        self._check_teacher_connector()

    def _check_side(self, name: str, side: Any) -> None:
        layers = side if isinstance(side, Sequence) and not isinstance(side, str) else [side]
        for layer in layers:
            if not isinstance(layer, str | Tap):
                raise InputError(
                    f"term {self.name!r}: {name} names the layer {layer!r}; wanted: a dotted name, a Tap, or a list of "
                    'these. The network\'s own output is "".'
                )

    def _check_arguments(self) -> None:
        if not isinstance(self.loss, nn.Module):
            raise InputError(
                f"term {self.name!r}: the loss is a {type(self.loss).__name__}; wanted: a module whose forward takes "
                "(student, teacher), such as HintLoss()."
            )
        arguments = inspect.signature(self.loss.forward).parameters
        takes = {name for name, a in arguments.items() if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)}
        required = {name for name in takes if arguments[name].default is inspect.Parameter.empty}
        missing = {"student", "teacher"} - takes
        known = ("student", "teacher", *SAMPLE_ARGUMENTS)
        surplus = required - {*known}
        # One that may be left out would be left out at every step.
        optional = takes - required - {*known}
        misspelt = {name for name in optional if get_close_matches(name, SAMPLE_ARGUMENTS)}
        if missing or surplus or misspelt:
            wrong = next(iter(sorted(surplus | misspelt)), "")
            hint = " " + unknown("argument", wrong, known) if wrong else ""
            raise InputError(
                f"term {self.name!r}: the loss {type(self.loss).__name__} takes ({', '.join(arguments)}); "
                f"wanted: forward(student, teacher), and target or index where it needs them.{hint}"
            )

    def _check_teacher_connector(self) -> None:
        connector = self.teacher_connector
        learns = connector is not None and any(p.requires_grad for p in connector.parameters())
        if learns and self.reconstruction is None:
            raise InputError(
                f"term {self.name!r}: the teacher's connector {type(connector).__name__} learns, and nothing keeps it "
                "from making every teacher alike: the loss would fall to 0 and teach nothing. Use one without "
                "parameters (Resize, pooling), freeze it with requires_grad_(False), or give a reconstruction."
            )
        if self.reconstruction is not None and not learns:
            raise InputError(
                f"term {self.name!r} has a reconstruction, but no teacher's connector that learns; leave it out."
            )

    @cached_property
    def student_taps(self) -> tuple[Tap, ...]:
        return _taps(self.student)

    @cached_property
    def teacher_taps(self) -> tuple[Tap, ...]:
        return _taps(self.teacher)

    @property
    def reports(self) -> tuple[str, ...]:
        """The names of its losses among those of a step."""
        return (self.name,) if self.reconstruction is None else (self.name, f"{self.name}_reconstruction")

    @cached_property
    def asks_for(self) -> dict[str, bool]:
        """What the loss takes beside student and teacher, of "target" and "index", and whether it must have it."""
        arguments = inspect.signature(self.loss.forward).parameters
        required = inspect.Parameter.empty
        return {name: arguments[name].default is required for name in SAMPLE_ARGUMENTS if name in arguments}

    def weight_at(self, epoch: float, epochs: int) -> float:
        """The weight there.

        Raises:
            InputError: the schedule gives a weight that is negative or not finite.
        """
        return weight_at(f"the weight of term {self.name!r}", self.weight, epoch, epochs)


def is_column(name: str) -> bool:
    """Whether a history has a column of that name, or may have, that is no loss."""
    return name in COLUMNS or name.startswith("val_")


def _taps(side: Side) -> tuple[Tap, ...]:
    return (as_tap(side),) if isinstance(side, str | Tap) else tuple(map(as_tap, side))


def on_side(side: Side, tensors: Sequence[Tensor]) -> Any:
    """What a connector or a loss gets: the tensor of a single tap, the list of several."""
    return tensors[0] if isinstance(side, str | Tap) else list(tensors)
