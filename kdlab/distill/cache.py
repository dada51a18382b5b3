"""What travels with a sample: a teacher's outputs, computed once, and the sample's place in the data set."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kdlab import processes
from kdlab.distill.taps import Tap, Taps, as_tap
from kdlab.errors import InputError, unknown
from kdlab.files import load_tensors, save_tensors
from kdlab.loading import loaded_by
from kdlab.modes import evaluating
from kdlab.paths import cache_dir
from kdlab.progress import progress

PROBES = 32


class TeacherCache:
    """What the teacher's tapped layers put out for every sample of a data set, by sample index.

    Worth it where the same index always gives the same image: a fixed resize and crop, no augmentation. The outputs
    then travel with their sample through the data loader, and the teacher never runs again:

    >>> cache = TeacherCache.build(teacher, ["classifier"], dataset)
    >>> for images, labels, observed in DataLoader(cache.attach(dataset), batch_size=32, shuffle=True):
    ...     losses = distiller(images, labels, observed)

    The outputs are kept on disk under a fingerprint of the teacher's layers and weights, the taps, and the images, and
    are computed again when any of these changes; what a forward method does, it cannot see. Of a data set with files,
    listed in its ``paths`` or, as torchvision has it, in its ``samples``, the fingerprint holds the name, size and time
    of each and some images after the transform; of any other it holds every image, which costs a pass over the data set
    at each start.

    With several teachers the names say whose each is, as a distiller's ``observe_teacher`` has them:

    >>> both = TeacherCache({"large/classifier": one.outputs["classifier"], "wide/fc": other.outputs["fc"]}, "")

    Args:
        seen: a hash of some of the images that the outputs are of, to which alone they are then attached; None:
            nothing is known of them.
    """

    def __init__(self, outputs: dict[str, Tensor], fingerprint: str, seen: str | None = None) -> None:
        self.outputs = outputs
        self.fingerprint = fingerprint
        self.seen = seen

    @classmethod
    def build(
        cls,
        teacher: nn.Module,
        taps: Sequence[str | Tap],
        dataset: Dataset,
        *,
        path: Path | str | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> "TeacherCache":
        """Load the outputs where they are on disk, else compute and save them, with the teacher on its own device.

        Several processes share the work.

        Args:
            teacher: used in eval mode, without gradient; each of its modules is left in the mode that it was in.
            taps: layers as in :class:`Taps`.
            dataset: yields (image, label), the same image for the same index every time.
            path: where to keep the outputs; by default in kdlab's cache, named by the fingerprint.

        Raises:
            InputError: the data set is random, empty or of other items; a tap on a parameter; or the file at ``path``
                belongs to other weights, taps or images.
        """
        _check_items(dataset)
        for tap in map(as_tap, taps):
            if tap.what == "parameter":
                raise InputError(
                    f"the tap {str(tap)!r} is on a parameter, which is no output of a sample; wanted: taps on layers. "
                    "A distiller reads a parameter at each step, at no cost."
                )
        fingerprint = _fingerprint(teacher, taps, dataset)
        path = Path(path) if path is not None else cache_dir() / "teacher" / f"{fingerprint[:32]}.safetensors"
        if processes.mean(torch.tensor(float(path.exists()))) == 1:  # on each machine
            return cls(cls.load(path, fingerprint).outputs, fingerprint, _seen(dataset))
        own = DataLoader(processes.own_share(dataset), batch_size=batch_size, **loaded_by(workers))
        outputs = {name: processes.of_all(share) for name, share in _outputs(teacher, taps, own).items()}
        if processes.is_first():
            save_tensors(path, outputs, {"fingerprint": fingerprint, "samples": _length(dataset)})
        return cls(outputs, fingerprint, _seen(dataset))

    @classmethod
    def load(cls, path: Path | str, fingerprint: str) -> "TeacherCache":
        """Read a saved cache, and refuse one that was made from anything else.

        Raises:
            InputError: the file is damaged, or its fingerprint is another.
        """
        outputs, meta = load_tensors(Path(path))
        if meta.get("fingerprint") != fingerprint:
            raise InputError(
                f"the teacher outputs in {path} were made from other weights, layers or images "
                f"(fingerprint {str(meta.get('fingerprint'))[:12]}, wanted {fingerprint[:12]}). "
                "Delete the file to have them computed again, or name another path."
            )
        return cls(outputs, fingerprint)

    def only(self, taps: Sequence[str | Tap]) -> "TeacherCache":
        """The part for these taps: the rest would travel through the loader for nothing.

        Raises:
            InputError: a tap that the cache was built without.
        """
        for tap in taps:
            if str(tap) not in self.outputs:
                raise InputError(unknown("tap", str(tap), self.outputs))
        return TeacherCache({str(tap): self.outputs[str(tap)] for tap in taps}, self.fingerprint, self.seen)

    def attach(self, dataset: Dataset) -> Dataset:
        """The data set with the teacher's outputs beside each sample: (image, label, {tap: output}).

        Raises:
            InputError: the data set has another number of samples than the cache, other images (some are compared),
                or other items than pairs.
        """
        samples = len(next(iter(self.outputs.values())))
        if _length(dataset) != samples:
            raise InputError(f"the cache holds {samples} samples and the data set {_length(dataset)}; build it anew.")
        _check_items(dataset)
        if self.seen not in (None, _seen(dataset)):
            raise InputError(
                "the cache was built of other images than those of the data set, or of another transform; wanted: the "
                "same, in the same order. Build it anew of this data set."
            )
        return _WithTeacher(dataset, self.outputs)


class _WithTeacher(Dataset):
    def __init__(self, dataset: Dataset, outputs: dict[str, Tensor]) -> None:
        self.dataset = dataset
        self.outputs = outputs

    def __len__(self) -> int:
        return _length(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label = self.dataset[index]
        return image, label, {name: output[index] for name, output in self.outputs.items()}


class Indexed(Dataset):
    """The data set with each sample's index after it, for a loss with a memory: (image, label, observed, index).

    ``observed`` is what a :class:`TeacherCache` has attached, else nothing, and the teacher runs.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return _length(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, label, *observed = self.dataset[index]
        return image, label, observed[0] if observed else {}, index


@torch.no_grad()
def _outputs(teacher: nn.Module, taps: Sequence[str | Tap], loader: DataLoader) -> dict[str, Tensor]:
    batches: dict[str, list[Tensor]] = {str(tap): [] for tap in taps}
    with evaluating(teacher) as device:
        for images, *_ in progress(loader, desc="teacher outputs"):
            with Taps(teacher, taps) as read:
                teacher(images.to(device))
            for tap in taps:
                batches[str(tap)].append(_one_a_sample(read[tap], str(tap), len(images)).cpu())
    outputs = {name: torch.cat(parts) for name, parts in batches.items()}
    for name, output in outputs.items():
        if not output.isfinite().all():
            raise InputError(
                f"layer {name!r} of {type(teacher).__name__} put out numbers that are not finite. Check its weights, "
                "and that the images are normalised as it was trained with."
            )
    return outputs


def _one_a_sample(value: Any, name: str, samples: int) -> Tensor:
    if not isinstance(value, Tensor) or len(value) != samples:
        what = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(
            f"tap {name!r} gives {what} for {samples} images; wanted: a tensor with one row an image. Name the item "
            "with Tap(..., item=...), or train without a cache: the teacher then runs at each step."
        )
    return value


def _check_items(dataset: Dataset) -> None:
    """Look at the first item: any other than a pair would only fail within a loader, without a word of the data set."""
    if isinstance(dataset, DataLoader):
        raise InputError("the data set is a DataLoader; wanted: the data set itself, such as loader.dataset.")
    if not _length(dataset):
        raise InputError("the data set is empty; wanted: at least one (image tensor, label).")
    item: Any = dataset[0]
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor):
        return
    parts = f" ({', '.join(type(part).__name__ for part in item)})" if isinstance(item, (tuple, list)) else ""
    raise InputError(
        f"item 0 of the data set is a {type(item).__name__}{parts}; wanted: (image tensor, label). Wrap the data set."
    )


def _files(dataset: Dataset) -> list[Path]:
    """The files behind the images; none where there is no such list, and every image is looked at."""
    paths: Any = getattr(dataset, "paths", None)
    if paths is None:  # (path, class), as in torchvision's ImageFolder
        samples = getattr(dataset, "samples", ())
        pairs = isinstance(samples, (tuple, list)) and all(isinstance(one, (tuple, list)) and one for one in samples)
        paths = [one[0] for one in samples] if pairs else ()
    if not isinstance(paths, (tuple, list)) or not all(isinstance(path, (str, Path)) for path in paths):
        return []
    files = list(map(Path, paths))
    return files if all(file.exists() for file in files) else []  # names within some folder, as it may be


def _fingerprint(teacher: nn.Module, taps: Sequence[str | Tap], dataset: Dataset) -> str:
    """A hash of the layers, the weights, the tap names, and the images: all files and a spread of them, or each."""
    samples = _length(dataset)
    built = [getattr(module, "architecture", None) for module in teacher.modules()]  # not all of it is in the repr
    layers = re.sub(" at 0x[0-9a-f]+", "", repr((teacher, built)))  # an address is another one in each process
    digest = hashlib.sha256(repr((list(map(str, taps)), samples, layers)).encode())
    digest.update(weights_hash(teacher).encode())
    for name, buffer in teacher.named_buffers():  # also those that no state_dict has
        digest.update(name.encode() + _bytes(buffer))
    paths = _files(dataset)
    for path in paths:
        status = path.stat()
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    probed = _probed(dataset)
    for index in probed if paths else range(samples):
        image: Any = dataset[index][0]
        if index in probed and not torch.equal(image, dataset[index][0]):
            raise InputError(
                f"sample {index} of the data set is another image each time, as with augmentation: a teacher's output "
                "for it cannot be cached. Train without a cache, or with a fixed transform."
            )
        digest.update(_bytes(image))
    return digest.hexdigest()


def _probed(dataset: Dataset) -> range:
    """The indices of a spread of the samples."""
    samples = _length(dataset)
    return range(0, samples, max(1, samples // PROBES))


def _seen(dataset: Dataset) -> str:
    """A hash of a spread of the images, after the transform."""
    digest = hashlib.sha256()
    for index in _probed(dataset):
        digest.update(_bytes(dataset[index][0]))
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """A hash of all weights and buffers of a model, by name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _length(dataset: Dataset) -> int:
    return len(dataset)  # type: ignore[arg-type]  # torch's Dataset leaves __len__ to its subclasses
