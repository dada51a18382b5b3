"""A batch in pieces: those that this process computes, one after the other."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from kdlab import processes
from kdlab.errors import InputError

# Of a loader whose batches are divided.
KEPT = (
    "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator", "multiprocessing_context",
    "prefetch_factor", "persistent_workers", "in_order",
)  # fmt: skip


class Pieces(Sampler[list[int]]):
    """This process's pieces of every batch. A stratum of the batch is in all pieces alike, or the batch is refused.

    Args:
        batches: a batch sampler, which draws the same batches in all processes.
        pieces: how many this process makes of its part.

    Raises:
        InputError: a stratum of the batches that cannot be divided into equal pieces.
    """

    def __init__(self, batches: Iterable[list[int]], pieces: int) -> None:
        if hasattr(batches, "each"):  # of a sampler with strata: how many samples a batch has of each
            check_shares(batches.each, pieces)
        self.batches = batches
        self.pieces = pieces
        self.drawn: list[list[int]] = []

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw the batches of an epoch, before anything else draws random numbers.

        Args:
            generator: the loader's.

        Raises:
            InputError: a batch that cannot be divided into equal pieces.
        """
        # A loader first draws a seed for its workers: these shall be the batches that the whole loader would yield.
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        self.drawn = list(self.batches)
        for size in {len(batch) for batch in self.drawn}:
            check_divides(size, self.pieces)

    def __len__(self) -> int:
        return len(self.batches) * self.pieces  # type: ignore[arg-type]  # a batch sampler has a length

    def __iter__(self) -> Iterator[list[int]]:
        parts, first = processes.count() * self.pieces, processes.own_place() * self.pieces
        for batch in self.drawn:
            for piece in range(first, first + self.pieces):
                yield batch[piece::parts]


def check_shares(each: int, pieces: int) -> None:
    """Refuse a batch whose strata, with so many samples each, cannot be in all pieces alike.

    Raises:
        InputError: with what can be divided.
    """
    parts = processes.count() * pieces
    if each % parts:
        raise InputError(
            f"a batch has {each} samples of each kind, which cannot be divided into {parts} equal pieces, {pieces} for "
            f"each of {processes.count()} processes: a piece would lack one, or have more of it than the batch. "
            f"Wanted: a batch size that has a multiple of {parts} of each kind."
        )


def check_divides(size: int, pieces: int) -> None:
    """Refuse a batch that all processes together cannot divide, each into so many pieces.

    Raises:
        InputError: with what can be divided.
    """
    parts = processes.count() * pieces
    if size % parts:
        raise InputError(
            f"a batch of {size} samples cannot be divided into {parts} equal pieces, {pieces} for each of "
            f"{processes.count()} processes; wanted: a batch size that is a multiple of {parts}."
        )


def samplers_of(loader: DataLoader | None) -> list[Any]:
    """What draws the loader's samples: its samplers, also the one inside its batch sampler."""
    batches = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)]


def check_draws_all(loader: DataLoader) -> None:
    """Refuse a loader that has only one process's share of the samples: its batches would be divided once more.

    Raises:
        InputError: a DistributedSampler.
    """
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers_of(loader)):
        raise InputError(
            "the loader draws one process's share of the samples, by a DistributedSampler, and fit divides each batch "
            "among the processes itself; wanted: a loader of the whole data set, the same in all processes: "
            "DataLoader(dataset, batch_size, shuffle=True)."
        )


def in_pieces(loader: DataLoader, pieces: int) -> DataLoader:
    """The loader whose batches are this process's pieces of the given one's.

    Raises:
        InputError: a loader that does not draw its batches itself, or that changes them.
    """
    batches: Any = loader.batch_sampler
    if batches is None or isinstance(loader.dataset, IterableDataset):
        raise InputError(
            "the loader does not draw its batches from a data set with places, and only such batches can be divided "
            "into pieces, for accumulate or for several processes; wanted: DataLoader(dataset, batch_size=...)."
        )
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise InputError(
            f"the loader is a {type(loader).__name__}, which yields batches in a way of its own, and of such a one no "
            "pieces can be made, for accumulate or for several processes; wanted: a DataLoader, and what changes its "
            "batches in the data set or in collate_fn."
        )
    options: dict[str, Any] = {name: getattr(loader, name) for name in KEPT}
    return DataLoader(loader.dataset, batch_sampler=Pieces(batches, pieces), **options)
