"""What all tests of this folder are held against: ultralytics' files stay."""

import hashlib
import importlib.metadata
from contextlib import contextmanager
from pathlib import Path


def fingerprint() -> str:
    """Of all files of the installed ultralytics but Python's own caches."""
    digest = hashlib.sha256()
    for file in sorted(importlib.metadata.files("ultralytics") or []):
        path = Path(file.locate())
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(file).encode() + path.read_bytes())
    return digest.hexdigest()


@contextmanager
def unchanged_files():
    """Refuse to end with other files of ultralytics than at the start."""
    before = fingerprint()
    yield
    assert fingerprint() == before, "a file of the installed ultralytics has changed"
