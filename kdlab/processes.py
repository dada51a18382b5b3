"""Several processes that train one student, on one machine or on many; a process that is alone notices nothing.

Each computes the gradient of its own part of every batch, and all take the same step with the mean of these. So the
batch is what it is, however many share it.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, Subset

from kdlab.errors import InputError

Made = TypeVar("Made")


@contextmanager
def joined_by_torchrun() -> Iterator[None]:
    """Join the others where torchrun has started this process as one of several, with a GPU of its own if there are.

    All but the first are silent in here, errors aside.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        yield
        return
    a_gpu_each = 0 < int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    if a_gpu_each:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Its functions take the group at their import as a default. DistributedDataParallel imports them: after the group,
    # they would keep it, and gloo's threads, which now and then abort a process that has done all and ends.
    from torch.distributed.nn import functional  # noqa: F401

    dist.init_process_group("cpu:gloo,cuda:nccl" if a_gpu_each else "gloo")
    with ExitStack() as stack:
        if not is_first():
            os.environ["TQDM_DISABLE"] = "1"
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        yield
    dist.destroy_process_group()  # not after an error: the others may wait for this one, and torchrun ends them


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_place() -> int:
    """The place of this process among them, from 0."""
    return dist.get_rank() if count() > 1 else 0


def is_first() -> bool:
    """Whether this is the one that writes files and shows progress."""
    return own_place() == 0


def check_gpus() -> None:
    """Refuse to share a GPU.

    Raises:
        InputError: this machine has more of the processes than GPUs.
    """
    own, here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if count() > 1 and own > here:
        raise InputError(
            f"this machine has {here} GPUs and {own} processes; wanted: a GPU for each. Start torchrun with "
            f"--nproc-per-node {here}."
        )


def from_first(make: Callable[[], Made]) -> Made:
    """What ``make`` returns in the first process, or the error that it raises there, in all of them."""
    if count() == 1:
        return make()
    made: list[Any] = [None, None]
    if is_first():
        try:
            made[0] = make()
        except Exception as error:  # whatever it is, the others must not wait for the first for ever
            made[1] = error
    dist.broadcast_object_list(made)
    if made[1] is not None:
        raise made[1]
    return made[0]


def from_all(own: Made) -> list[Made]:
    """What each has, in the order of their places."""
    if count() == 1:
        return [own]
    made: list[Any] = [None] * count()
    dist.all_gather_object(made, own)
    return made


@contextmanager
def first_leads() -> Iterator[None]:
    """The others enter when the first has left: they find what it wrote, and do not write it once more beside it."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def wait_for_all() -> None:
    """Go on when all have come to here."""
    if count() > 1:
        dist.barrier()


def own_share(dataset: Dataset) -> Dataset:
    """Every n-th sample for each of n processes, from its own place on.

    Raises:
        InputError: fewer samples than processes.
    """
    if count() == 1:
        return dataset
    samples = len(dataset)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ out
    if samples < count():
        raise InputError(f"there are {samples} samples for {count()} processes; wanted: at least one for each.")
    return Subset(dataset, range(own_place(), samples, count()))


def of_all(share: Tensor) -> Tensor:
    """The rows that all processes have made of their :func:`own_share`, in the order of the whole data set.

    Args:
        share: on the CPU.
    """
    if count() == 1:
        return share
    shares = from_all(share)
    whole = share.new_empty(sum(map(len, shares)), *share.shape[1:])
    for place, one in enumerate(shares):
        whole[place :: count()] = one
    return whole


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, the same in all."""
    if count() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / count()


def joined(values: Tensor) -> Tensor:
    """The values of all processes, one's rows after the other's; each has as many. On any device, without gradient."""
    if count() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(count())]
    dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Make what each process has of its own, such as the statistics of BatchNorm, the same in all: the mean."""
    if count() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean(buffer))


@torch.no_grad()
def take_from_first(module: nn.Module) -> None:
    """Make parameters and buffers those of the first process."""
    if count() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor, 0)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up what each process has, for a loss that is a sum over its part of the batch; all lack the same ones."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if count() > 1:
        whole = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(whole)
        for gradient, part in zip(gradients, whole.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def in_parallel(objective: nn.Module) -> nn.Module:
    """The objective such that a backward pass of its "total" ends with the mean gradient in all processes.

    Raises:
        InputError: they can exchange what is on their GPUs alone.
    """
    if count() == 1:
        return objective
    if dist.get_backend() == "nccl":
        raise InputError(
            "the processes have joined by nccl alone, which does not see what is on a processor, such as the metrics "
            'of an epoch; wanted: torch.distributed.init_process_group("cpu:gloo,cuda:nccl").'
        )
    return DistributedDataParallel(_OneTotal(objective), broadcast_buffers=False, find_unused_parameters=True)


class _OneTotal(nn.Module):
    """The objective whose other losses are numbers alone: what only they depend on has no gradient to wait for."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, *batch: Any) -> dict[str, Tensor]:
        losses = self.objective(*batch)
        return {name: loss if name == "total" else loss.detach() for name, loss in losses.items()}
