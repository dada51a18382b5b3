"""The three widgets of chapter 01: temperature, alpha, and a live distillation."""

import base64
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets as widgets
import matplotlib.pyplot as plt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kdlab.classroom.panel import WIDE, Panel, choice, slider
from kdlab.classroom.pictures import side_by_side
from kdlab.classroom.svg import bar_chart, line_chart
from kdlab.losses import KDLoss


@dataclass(frozen=True)
class Softened:
    """What one image's logits become at a temperature: probabilities (k), entropies in nats, KL in nats."""

    teacher: Float[Tensor, " k"]
    student: Float[Tensor, " k"]
    teacher_entropy: float
    student_entropy: float
    kl: float


def soften(teacher: Float[Tensor, " k"], student: Float[Tensor, " k"], temperature: float) -> Softened:
    """Both distributions at a temperature, and how far the student's is from the teacher's."""
    p_teacher, p_student = (torch.softmax(logits / temperature, dim=0) for logits in (teacher, student))
    kl = KDLoss(temperature)(student[None], teacher[None]).item() / temperature**2
    return Softened(p_teacher, p_student, _entropy(p_teacher), _entropy(p_student), kl)


@dataclass(frozen=True)
class Pull:
    """The two losses of a batch, and where each pulls the logits of one image: minus the gradient, (k) each."""

    cross_entropy: float
    kd: float
    from_labels: Float[Tensor, " k"]
    from_teacher: Float[Tensor, " k"]
    cosine: float


def pull(
    student: Float[Tensor, "n k"],
    teacher: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    index: int,
    temperature: float,
    alpha: float,
) -> Pull:
    """What (1 - alpha) cross-entropy and alpha KD do to a batch, and to the logits of the image at ``index``.

    ``cosine`` compares the two gradients over the whole batch: 1 where the teacher says what the labels say.
    """
    student = student.detach().requires_grad_()
    task, kd = torch.nn.functional.cross_entropy(student, labels), KDLoss(temperature)(student, teacher)
    (hard,) = torch.autograd.grad(task, student)
    (soft,) = torch.autograd.grad(kd, student)
    cosine = torch.nn.functional.cosine_similarity(hard.flatten(), soft.flatten(), dim=0).item()
    scale = len(student)  # from the batch's mean to one image's own gradient
    return Pull(task.item(), kd.item(), -(1 - alpha) * scale * hard[index], -alpha * scale * soft[index], cosine)


def temperature_explorer(
    images: Float[Tensor, "n 3 h w"],
    teacher: Float[Tensor, "n k"],
    student: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    classes: tuple[str, ...],
) -> Panel:
    """Pick an image, drag T: what teacher and student say, and how unsure each is.

    The panel has the controls as ``panel.image`` and ``panel.temperature``.
    """
    pictures = [_picture(image) for image in images]
    image = choice("Image", [(f"{index}: a {classes[label]}", index) for index, label in enumerate(labels.tolist())])
    temperature = slider("Temperature T", 1.0, 0.25, 20.0, 0.25)

    def draw() -> str:
        index = image.value
        seen = soften(teacher[index], student[index], temperature.value)
        bars = bar_chart(
            {"teacher": seen.teacher.tolist(), "student": seen.student.tolist()},
            classes,
            alt=f"Class probabilities of teacher and student at temperature {temperature.value:g}.",
            ylabel="probability",
        )
        words = (
            f"T = {temperature.value:g}: entropy of the teacher {seen.teacher_entropy:.3f}, of the student "
            f"{seen.student_entropy:.3f} nats (at most {torch.tensor(len(classes)).log():.3f}); "
            f"KL = {seen.kl:.4f}, times T² = {seen.kl * temperature.value**2:.4f}"
        )
        return f"{side_by_side([pictures[index], bars])}<p>{words}</p>"

    panel = Panel([image, temperature], draw, "temperature")
    panel.image, panel.temperature = image, temperature
    return panel


def alpha_explorer(
    teacher: Float[Tensor, "n k"], student: Float[Tensor, "n k"], labels: Int[Tensor, " n"], classes: tuple[str, ...]
) -> Panel:
    """One batch, alpha and T: both parts of the loss, and where each pulls the logits of one image.

    The panel has the controls as ``panel.image``, ``panel.alpha`` and ``panel.temperature``.
    """
    image = choice("Image", [(f"{index}: a {classes[label]}", index) for index, label in enumerate(labels.tolist())])
    alpha = slider("Alpha", 0.7, 0.0, 1.0, 0.05)
    temperature = slider("Temperature T", 4.0, 0.25, 20.0, 0.25)

    def draw() -> str:
        seen = pull(student, teacher, labels, image.value, temperature.value, alpha.value)
        both = seen.from_labels + seen.from_teacher
        limit = max(0.05, float(torch.stack([seen.from_labels, seen.from_teacher, both]).abs().max()))
        bars = bar_chart(
            {"from the label": seen.from_labels.tolist(), "from the teacher": seen.from_teacher.tolist(),
             "together": both.tolist()},
            classes,
            alt="How much the label, the teacher and both together raise or lower each class's logit.",
            limits=(-limit, limit),
            ylabel="step of the logit",
        )  # fmt: skip
        words = (
            f"loss = {1 - alpha.value:.2f} × cross-entropy {seen.cross_entropy:.4f} + {alpha.value:.2f} × KD "
            f"{seen.kd:.4f} = {(1 - alpha.value) * seen.cross_entropy + alpha.value * seen.kd:.4f}; "
            f"the two gradients of the batch have a cosine of {seen.cosine:.3f}"
        )
        return f"{bars}<p>{words}</p>"

    panel = Panel([image, alpha, temperature], draw, "alpha")
    panel.image, panel.alpha, panel.temperature = image, alpha, temperature
    return panel


class LiveDistillation(Panel):
    """Choose settings, press a button, watch the student learn; a second button stops it.

    Args:
        train: ``train(labels, temperature, alpha, after_epoch) -> test accuracy``; it calls ``after_epoch`` with each
            epoch's row, and stops when that returns True. It runs beside the notebook, so that the button is heard.
        epochs: how many it takes, for the width of the curve.
    """

    def __init__(
        self, train: Callable[[int, float, float, Callable[[dict[str, float]], bool]], float], epochs: int
    ) -> None:
        self.train, self.epochs = train, epochs
        self.labels = choice("Labelled images", [50, 100, 1000])
        self.alpha = slider("Alpha", 0.7, 0.0, 1.0, 0.05)
        self.temperature = slider("Temperature T", 4.0, 0.25, 20.0, 0.25)
        self.start_button = widgets.Button(description="Distil with these settings", layout=WIDE)
        self.stop_button = widgets.Button(description="Stop", disabled=True, layout=WIDE)
        self.start_button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        self.runs: dict[str, list[tuple[float, float]]] = {}
        self.message = "Press the button: a few seconds of training."
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        buttons = widgets.VBox([self.start_button, self.stop_button])
        super().__init__([self.labels, self.alpha, self.temperature, buttons], self._draw, "live")

    def start(self) -> None:
        """Begin a run with the settings of the controls, unless one is going on."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stopping.clear()
        name = f"{len(self.runs) + 1}: {self.labels.value} labels, α {self.alpha.value:g}, T {self.temperature.value:g}"
        self.runs[name] = []
        settings = (self.labels.value, self.temperature.value, self.alpha.value)
        self._show_running(True)
        self._thread = threading.Thread(target=self._run, args=(name, *settings), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask the run to end with its current epoch."""
        self._stopping.set()

    def wait(self) -> None:
        """Until the run has ended."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, name: str, labels: int, temperature: float, alpha: float) -> None:
        def after_epoch(row: dict[str, float]) -> bool:
            self.runs[name].append((row["epoch"], row["val_accuracy"]))
            self.message = f"Run {name}: epoch {row['epoch']} of {self.epochs}, validation {row['val_accuracy']:.1%}."
            self.redraw()
            return self._stopping.is_set()

        try:
            accuracy = self.train(labels, temperature, alpha, after_epoch)
            how = "Stopped" if self._stopping.is_set() else "Done"
            self.message = f"{how} after {len(self.runs[name])} epochs: {accuracy:.1%} of the test images. Run {name}."
        except Exception as error:  # in a thread of its own, an error would be lost without a word
            self.message = f"Run {name} failed: {error}"
        self._show_running(False)

    def _show_running(self, running: bool) -> None:
        self.start_button.disabled, self.stop_button.disabled = running, not running
        self.redraw()

    def _draw(self) -> str:
        chart = line_chart(
            dict(list(self.runs.items())[-3:]),
            alt="Validation accuracy by epoch of the last three runs.",
            xlimit=self.epochs,
            xlabel="epoch",
            ylabel="validation accuracy",
        )
        return f"{chart}<p>{self.message}</p>"


def _entropy(probabilities: Float[Tensor, " k"]) -> float:
    return torch.special.entr(probabilities).sum().item()


def _picture(image: Float[Tensor, "3 h w"]) -> str:
    """The image as HTML, stretched to the full range of grey."""
    pixels = image.movedim(0, -1)
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-8)
    png = io.BytesIO()
    plt.imsave(png, pixels.numpy(), format="png")
    source = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="the image" width="128" height="128" src="data:image/png;base64,{source}">'
