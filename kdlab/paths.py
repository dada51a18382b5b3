"""Where kdlab keeps what it can make again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for trained checkpoints and cached teacher outputs: ``KDLAB_CACHE``, else ``~/.cache/kdlab``.

    Deleting it is always safe: what was there is trained or computed again.
    """
    return Path(os.environ.get("KDLAB_CACHE") or Path.home() / ".cache" / "kdlab").expanduser()
