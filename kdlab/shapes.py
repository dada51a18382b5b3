"""Turn the shape annotations of kdlab's signatures into checks.

Letters: n batch, c channels, h w height and width, k classes, d embedding.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from kdlab.errors import InputError

_UNCHECKED = {"kdlab.errors", "kdlab.paths", "kdlab.shapes"}
_on = False


def check_shapes() -> None:
    """Check every annotated shape and type from here on: a wrong tensor is named at the call that it was passed to.

    Call it before anything else is imported from kdlab, because the checks are put in while a module is imported.
    :func:`kdlab.training.fit` checks the first step of each epoch; the others repeat its calls.

    Raises:
        InputError: modules of kdlab have already been imported unchecked.
    """
    global _on
    if _on:
        return
    early = sorted(name for name in sys.modules if name.startswith("kdlab.") and name not in _UNCHECKED)
    if early:
        raise InputError(
            f"check_shapes() came too late: {', '.join(early)} already imported. "
            "Restart the kernel and call it right after `import kdlab`."
        )
    from jaxtyping import install_import_hook

    install_import_hook("kdlab", "kdlab.shapes.checker")
    _on = True


def unchecked() -> AbstractContextManager[None]:
    """Leave the checks out where the same calls have just passed them: they can take a fifth of a step."""
    return _unchecked() if _on else nullcontext()


@contextmanager
def _unchecked() -> Iterator[None]:
    from jaxtyping import config

    if config.jaxtyping_disable:
        yield
        return
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def checker(function):
    """beartype, with an int allowed wherever a float is wanted, so that temperature=4 is as good as 4.0."""
    from beartype import BeartypeConf, beartype

    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
