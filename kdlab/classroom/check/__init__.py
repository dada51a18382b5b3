"""The exercises' checks: ``check.<name>(answer)`` says the first thing that is wrong with an answer."""

from kdlab.classroom.check.response import best_epoch, kd_loss, softened, temperature_for, times_smaller, total_loss

__all__ = ["best_epoch", "kd_loss", "softened", "temperature_for", "times_smaller", "total_loss"]
