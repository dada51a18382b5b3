"""What recipes ask for, without the training."""

from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest

from kdlab.training import Fit


class SeenError(Exception):
    """In place of the training."""


def asked_of_the_loop(monkeypatch: pytest.MonkeyPatch, recipe: ModuleType) -> list[SimpleNamespace]:
    """What a recipe of restorers hands to the loop, which does nothing; a call each."""
    calls = []

    def loop(objective, batches, train, val, settings, **options):
        calls.append(SimpleNamespace(objective=objective, batches=batches, train=train, val=val, **options))
        return Fit(pd.DataFrame(), {}, "epochs")

    monkeypatch.setattr(recipe, "fit_restorer", loop)
    return calls
