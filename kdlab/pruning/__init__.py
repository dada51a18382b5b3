"""Structured pruning by the size of BatchNorm's gammas: plan, cut, compensate, verify.

Sparse training first: it takes a loop of your own, since :func:`kdlab.training.fit` has no place for
:func:`add_gamma_l1`.

>>> for epoch in range(epochs):
...     for images, labels in loader:
...         optimizer.zero_grad()
...         cross_entropy(dense(images), labels).backward()
...         add_gamma_l1(dense, gamma_l1_weight(epoch, epochs))
...         optimizer.step()

Then prune, and let the dense network teach the small one:

>>> plan = plan_pruning(dense, images, keep=0.5)
>>> plan.threshold  # near 1, where gammas start: nothing was made sparse, and what goes is missed
>>> small = prune(dense, images, plan)
>>> distiller = Distiller(small, dense, terms=[kd], task=CrossEntropyLoss())

To read it again, a structure goes with the weights:

>>> torch.save({"structure": structure(small), "weights": small.state_dict()}, "small.pt")
>>> saved = torch.load("small.pt")
>>> again = rebuild(dense, saved["structure"])
>>> again.load_state_dict(saved["weights"])
"""

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
