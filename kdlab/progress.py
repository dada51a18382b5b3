"""Progress bars that know when to be silent."""

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress(over: Iterable | None = None, **options: Any) -> tqdm:
    """tqdm's bar for a terminal or a notebook, gone when done; silent where the environment has TQDM_DISABLE.

    The notebook's bar would otherwise stay as a dead one in a document that was executed without a reader.
    """
    return tqdm(over, leave=False, **{"disable": bool(os.environ.get("TQDM_DISABLE")), **options})
