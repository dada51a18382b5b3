"""Structured pruning by the size of BatchNorm's gammas: plan, cut, compensate, verify."""

from kdlab.pruning.cut import masked, prune, rebuild, structure, verify
from kdlab.pruning.plan import BeforeAfter, PruningPlan, plan_pruning
from kdlab.pruning.sparsity import add_gamma_l1, gamma_l1_weight, gammas

__all__ = [
    "BeforeAfter",
    "PruningPlan",
    "add_gamma_l1",
    "gamma_l1_weight",
    "gammas",
    "masked",
    "plan_pruning",
    "prune",
    "rebuild",
    "structure",
    "verify",
]
