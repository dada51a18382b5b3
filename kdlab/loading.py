"""Where a loader's batches are made: in this process, or in some of its own."""

from typing import Any

# Seconds for a batch. One that a loading process has lost, for want of memory, would be waited for without end.
LONGEST_WAIT = 300.0
# Each takes memory of its own, of which a typing error would ask for all there is.
MOST_WORKERS = 128


def loaded_by(workers: int) -> dict[str, Any]:
    """What a ``DataLoader`` has to be told for so many processes; 0 loads in this one."""
    return {"num_workers": workers, "timeout": LONGEST_WAIT if workers else 0}
