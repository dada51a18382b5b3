"""A command of ``kdlab`` and then other trainings, as torchrun starts them.

parallel_yolo.py OUT SCENES STUDENT TEACHER BEGUN COMMAND...
"""

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from kdlab import InputError, cli
from kdlab.detection import Distillation, YoloSettings
from kdlab.processes import is_first, own_place, wait_for_all

SETTINGS = YoloSettings(epochs=2, batch=4, imgsz=64, lr=1e-3, nominal_batch=4)
CWD = Distillation(layers=[15, 18])
STRENGTH = 0.5


def copies(tensors: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in dict(tensors).items() if isinstance(value, torch.Tensor)}


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copies((name, parameter.grad) for name, parameter in model.named_parameters())


def watch(trainer: Any, seen: dict[str, Any]) -> None:
    """Note the first batch, the weights before it, its gradients, and what came of each epoch."""
    preprocess = trainer.preprocess_batch

    def note_batch(batch: dict[str, Any]) -> dict[str, Any]:
        batch = preprocess(batch)
        if "batch" not in seen:
            seen.update(batch=copies(batch), begin=copies(trainer.model.state_dict()), seed=torch.initial_seed())
        return batch

    def note_gradients(*_: Any) -> None:
        seen.setdefault("gradients", gradients(trainer.model))

    def note_penalised(*_: Any) -> None:
        seen.setdefault("penalised", gradients(trainer.model))

    def note_epoch(*_: Any) -> None:
        if trainer.epoch < trainer.epochs:  # then the first measures the best one once more
            seen["end"] = copies(trainer.model.state_dict()), copies(trainer.ema.ema.state_dict())
            seen["objects"] = int(trainer.validator.metrics.nt_per_class.sum())
            seen["metrics"], seen["loss"] = trainer.metrics, copies(trainer.tloss)

    trainer.preprocess_batch = note_batch
    trainer.add_callback("on_fit_epoch_end", note_epoch)
    trainer.add_callback("on_model_save", lambda *_: seen.update(saved=True))
    register_optimizer_step_pre_hook(note_gradients)
    register_optimizer_step_post_hook(note_penalised)


def others(out: Path, scenes: Path, student: Path, teacher: Path, begun: Path) -> None:
    """Three whole runs, two that are refused, and one in which the second process dies."""
    from kdlab import yolo

    seen: dict[str, Any] = {}
    progress = yolo._progress

    build = yolo.DetectionTrainer.build_dataset

    def note_order(*words: Any, **options: Any) -> Any:
        if is_first():
            time.sleep(0.2)
            (out / "prepared").touch()
        seen["waited"] = (out / "prepared").exists()
        return build(*words, **options)

    def watched(run: str) -> Any:
        return lambda trainer: watch(trainer, seen.setdefault(run, {})) or progress(trainer)

    def die(trainer: Any) -> None:
        if trainer.epoch == 1 and own_place() == 1:
            (out / "dying").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def dies(trainer: Any) -> Any:
        trainer.add_callback("on_train_batch_end", die)
        return progress(trainer)

    def distill(folder: Path, **options: Any) -> None:
        yolo.distill(student, teacher, scenes, CWD, SETTINGS, out=folder, device="cpu", **options)

    def refusal(name: str, data: Path, settings: YoloSettings) -> str:
        try:
            yolo.fine_tune(student, data, settings, out=out / name, device="cpu")
        except InputError as error:
            return str(error)
        return ""

    yolo.DetectionTrainer.build_dataset = note_order
    yolo._progress = watched("distilled")
    distill(out / "distilled")
    yolo._progress = watched("sparse")
    torch.manual_seed(own_place())  # so that each begins with other weights
    detector = yolo.build_yolov8(0.0625, list(yolo.read_data(scenes)["names"].values()))
    yolo.sparse_train(detector, scenes, SETTINGS, strength=STRENGTH, out=out / "sparse", device="cpu")
    yolo._progress = watched("resumed")
    distill(begun, resume=True)
    seen["odd"] = refusal("odd", scenes, replace(SETTINGS, batch=3))
    seen["few"] = refusal("few", scenes / "few.yaml", SETTINGS)
    torch.save(seen, out / f"{own_place()}.pt")
    wait_for_all()
    yolo._progress = dies
    distill(out / "killed")


def main(paths: list[Path], words: list[str]) -> None:
    """All in one group: torchrun's does not come together twice."""
    command = cli._command

    def and_others(args: argparse.Namespace) -> int:
        status = command(args)
        others(*paths)
        return status

    cli._command = and_others
    cli.main(words)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([Path(word) for word in sys.argv[1:6]], sys.argv[6:])
