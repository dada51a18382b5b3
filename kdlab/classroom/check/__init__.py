"""The exercises' checks: ``check.<name>(answer)`` says the first thing that is wrong with an answer."""

from kdlab.classroom.check.losses import (
    attention_loss,
    carried_weight,
    channel_distribution,
    relative_distances,
    similarity_loss,
)
from kdlab.classroom.check.response import best_epoch, kd_loss, softened, temperature_for, times_smaller, total_loss
from kdlab.classroom.check.taps import connector_parameters, dangerous, recorded, second_call, shrunk

__all__ = [
    "attention_loss",
    "best_epoch",
    "carried_weight",
    "channel_distribution",
    "connector_parameters",
    "dangerous",
    "kd_loss",
    "recorded",
    "relative_distances",
    "second_call",
    "shrunk",
    "similarity_loss",
    "softened",
    "temperature_for",
    "times_smaller",
    "total_loss",
]
