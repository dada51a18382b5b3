"""The exercises' checks: ``check.<name>(answer)`` says the first thing that is wrong with an answer."""

from kdlab.classroom.check.collation import all_present, pfe, soft_contrast, stratified_batches, two_ratios
from kdlab.classroom.check.dehazing import darkest, detail_loss, overlaps, self_ensembled, shuffled, silenced
from kdlab.classroom.check.dense import cwd_gradient, cwd_loss, effective_positions, mean_iou, unseen
from kdlab.classroom.check.examination import (
    all_pairs_distance,
    all_pairs_gradient,
    hard_contrast,
    naive_gibibytes,
    padded_restoration,
    rate_at,
)
from kdlab.classroom.check.losses import (
    attention_loss,
    carried_weight,
    channel_distribution,
    relative_distances,
    similarity_loss,
)
from kdlab.classroom.check.masked import (
    carried_alpha,
    drawn_masks,
    generator_parameters,
    mask_owners,
    mgd_loss,
    spatial_mask,
)
from kdlab.classroom.check.pruning import (
    average_precision,
    box_iou,
    c2f_parameters,
    folded_constant,
    kept_channels,
    sparse_gradient,
)
from kdlab.classroom.check.response import best_epoch, kd_loss, softened, temperature_for, times_smaller, total_loss
from kdlab.classroom.check.scaling import break_even, pieces, speed_up
from kdlab.classroom.check.taps import connector_parameters, dangerous, recorded, second_call, shrunk
from kdlab.classroom.check.weather import brightness, dehazed, densest_haze, hazed, psnr_of_each, streak_angle

__all__ = [
    "all_pairs_distance",
    "all_pairs_gradient",
    "all_present",
    "attention_loss",
    "average_precision",
    "best_epoch",
    "box_iou",
    "break_even",
    "brightness",
    "c2f_parameters",
    "carried_alpha",
    "carried_weight",
    "channel_distribution",
    "connector_parameters",
    "cwd_gradient",
    "cwd_loss",
    "dangerous",
    "darkest",
    "dehazed",
    "densest_haze",
    "detail_loss",
    "drawn_masks",
    "effective_positions",
    "folded_constant",
    "generator_parameters",
    "hard_contrast",
    "hazed",
    "kd_loss",
    "kept_channels",
    "mask_owners",
    "mean_iou",
    "mgd_loss",
    "naive_gibibytes",
    "overlaps",
    "padded_restoration",
    "pfe",
    "pieces",
    "psnr_of_each",
    "rate_at",
    "recorded",
    "relative_distances",
    "second_call",
    "self_ensembled",
    "shrunk",
    "shuffled",
    "silenced",
    "similarity_loss",
    "soft_contrast",
    "softened",
    "sparse_gradient",
    "spatial_mask",
    "speed_up",
    "stratified_batches",
    "streak_angle",
    "temperature_for",
    "times_smaller",
    "total_loss",
    "two_ratios",
    "unseen",
]
