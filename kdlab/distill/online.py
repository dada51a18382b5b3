"""Distillation without a trained teacher: students that teach each other, a network that teaches itself."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kdlab.distill.connectors import ConvConnector, Pooled
from kdlab.distill.reader import enough_samples
from kdlab.distill.schedules import check_weight
from kdlab.distill.taps import Taps
from kdlab.errors import InputError
from kdlab.losses import DMLLoss, KDLoss


class MutualDistiller(nn.Module):
    """Deep mutual learning: students that learn together, each from the labels and from all the others.

    >>> distiller = MutualDistiller({"a": StudentCNN(10), "b": StudentCNN(10)}, task=nn.CrossEntropyLoss())
    >>> losses = distiller(images, labels)  # "task_a", "task_b", "mutual_a", "mutual_b" and "total"

    Args:
        students: by name, at least two, from images to logits. fit evaluates and saves ``student``, the first.
        task: the loss between a student's logits and the labels.
        temperature: of the comparison; the paper's 1.
        weight: of what the peers say, at least 0. Their mean, as in the paper; the official code sums over them.

    Raises:
        InputError: fewer than two students, or one of them twice; a name that a module cannot have; a negative weight;
            a temperature not above 0.

    Source: Zhang et al.: Deep Mutual Learning, CVPR 2018, arXiv:1706.00384.
    """

    def __init__(
        self, students: Mapping[str, nn.Module], task: nn.Module, temperature: float = 1.0, weight: float = 1.0
    ) -> None:
        super().__init__()
        if len({id(student) for student in students.values()}) < max(2, len(students)):
            raise InputError(f"{len(students)} students were given; wanted: at least two, each a network of its own.")
        check_weight("weight", weight)
        try:
            self.students = nn.ModuleDict(dict(students))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"the students are called {', '.join(map(repr, students))}; wanted: texts without a dot, other than "
                "what PyTorch's modules have for themselves, such as 'type' and 'keys'."
            ) from error
        self.task = task
        self.weight = weight
        self.mutual = DMLLoss(temperature)

    @property
    def student(self) -> nn.Module:
        return next(iter(self.students.values()))

    @enough_samples()
    def forward(self, images: Any, labels: Any) -> dict[str, Tensor]:
        """The losses of one batch: each student's task and mutual loss, and "total", their weighted sum."""
        logits = {name: student(images) for name, student in self.students.items()}
        losses = {f"task_{name}": self.task(own, labels) for name, own in logits.items()}
        for name, own in logits.items():
            peers = [self.mutual(own, other) for peer, other in logits.items() if peer != name]
            losses[f"mutual_{name}"] = sum(peers[1:], peers[0]) / len(peers)
        each = [losses[f"task_{name}"] + self.weight * losses[f"mutual_{name}"] for name in logits]
        total = sum(each[1:], each[0])
        return losses | {"total": total}


class Exit(nn.Module):
    """A classifier on a layer inside a network.

    Args:
        channels: of the layer's map.
        width: of the network's last features.
        classes: number of classes.

    Shapes: a map (n, channels, h, w) to features (n, width) and logits (n, classes).
    """

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(ConvConnector(channels, width, 3, norm=True, activation=nn.ReLU()), Pooled())
        self.classifier = nn.Linear(width, classes)

    def forward(self, maps: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
        features = self.features(maps)
        return features, self.classifier(features)


class SelfDistiller(nn.Module):
    r"""Be your own teacher: exits on inner layers learn from the labels and from the network's own end.

    .. math:: \mathcal L = (1 - \alpha) \sum_e \mathrm{CE}_e + \alpha \sum_{e\ \mathrm{inner}} T^2\,\mathrm{KL}(p^{end}
              \,\|\, p^e) + \beta \sum_{e\ \mathrm{inner}} \|f^e - f^{end}\|^2_{f^e > 0\ \mathrm{or}\ f^{end} > 0}

    The end is detached where it teaches. The exits are there in training only: the student is delivered without them.
    The last part is a sum over the batch: of a batch in pieces, by ``accumulate`` of :func:`kdlab.training.fit` or in
    several processes, it is the mean of the pieces' sums, smaller by their number; raise beta as much.

    >>> SelfDistiller(student, {"features.1": Exit(16, 64, 10), "features.2": Exit(32, 64, 10)}, features="features.3",
    ...               task=nn.CrossEntropyLoss())

    Args:
        student: from images to logits.
        exits: by the name of the layer that each reads.
        features: the layer with the network's last features; flattened they are as wide as the exits'.
        task: the loss between logits and labels.
        alpha, temperature, feature_weight: 0.1, 3 and 1e-6 are those of the public implementation.

    Raises:
        InputError: no exits; an unknown layer; alpha outside 0 to 1; a negative weight; features of another width.

    Source: Zhang et al.: Be Your Own Teacher, ICCV 2019, arXiv:1905.08094.
    """

    def __init__(
        self,
        student: nn.Module,
        exits: Mapping[str, Exit],
        features: str,
        task: nn.Module,
        alpha: float = 0.1,
        temperature: float = 3.0,
        feature_weight: float = 1e-6,
    ) -> None:
        super().__init__()
        if not exits:
            raise InputError("a network without exits cannot teach itself; give at least one, by its layer.")
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha is {alpha}; wanted: from 0 (labels only) to 1 (the network's end only).")
        check_weight("feature_weight", feature_weight)
        self.student = student
        self.task = task
        self.layers = tuple(exits)
        self.exits = nn.ModuleList(exits.values())
        self.features = features
        self.alpha = alpha
        self.feature_weight = feature_weight
        self.kd = KDLoss(temperature)
        Taps(student, [*self.layers, features])  # an unknown layer is an error here

    @enough_samples()
    def forward(self, images: Any, labels: Any) -> dict[str, Tensor]:
        """The losses of one batch: "task" and "kd" and "feature", summed over the exits, and "total"."""
        with Taps(self.student, [*self.layers, self.features]) as taps:
            logits = self.student(images)
        end = taps[self.features].flatten(1).detach()
        task = self.task(logits, labels)
        kd, feature = logits.new_zeros(()), logits.new_zeros(())
        for layer, classify in zip(self.layers, self.exits, strict=True):
            own, guess = classify(taps[layer])
            if own.shape != end.shape:
                raise InputError(
                    f"the exit on {layer!r} has features {tuple(own.shape)} and the network's end, {self.features!r}, "
                    f"{tuple(end.shape)}; give the exit a width of {end.shape[1]}."
                )
            task = task + self.task(guess, labels)
            kd = kd + self.kd(guess, logits)
            feature = feature + ((own - end).square() * ((own > 0) | (end > 0))).sum()
        total = (1 - self.alpha) * task + self.alpha * kd + self.feature_weight * feature
        return {"task": task, "kd": kd, "feature": feature, "total": total}
