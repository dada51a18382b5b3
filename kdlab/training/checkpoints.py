"""Trained models on disk: weights and a card that says what they are."""

import pickle
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdlab.errors import InputError, first_line
from kdlab.files import header_of, load_tensors, save_tensors
from kdlab.models import BUILDERS, build_model

WRAPPERS = ("module.", "_orig_mod.")
BEST, LAST, RESUME = "best.safetensors", "last.safetensors", "resume.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to use a model without a flag, and to know where it comes from.

    Args:
        architecture: as :func:`kdlab.models.build_model` takes it. A network of your own may have any other name: its
            weights are read with :func:`load_weights`, as :func:`load_model` cannot build it.
        classes: the class names in the order of the logits.
        mean, std: per channel (red, green, blue), in units of an image in [0, 1].
        size: height and width of the images that it was trained on, in pixels.
        weights: what the training started from, in words.
        recipe: the settings that trained it.
        metrics: on the validation split, at the epoch that was saved.
    """

    architecture: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    weights: str = "none: a random start"
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ModelCard":
        """As it was before it was JSON, which has no tuples; KeyError or TypeError where the fields are others."""
        return cls(**fields | {name: tuple(fields[name]) for name in ("classes", "mean", "std")})


def save_model(path: Path | str, model: nn.Module, card: ModelCard) -> None:
    """Write a model and its card as one safetensors file, whole or not at all."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile(model), under whose names nothing could read it
    save_tensors(Path(path), model.state_dict(), {"card": asdict(card)})


def load_model(path: Path | str) -> tuple[nn.Module, ModelCard]:
    """Read a model that kdlab saved, on the CPU, in eval mode. A folder stands for its best checkpoint.

    Raises:
        InputError: no such file; a truncated or foreign one; weights that do not fit the card.
    """
    path = Path(path)
    path = path / BEST if path.is_dir() else path
    tensors, meta = load_tensors(path, "Take another copy, or train it again.")
    if "card" not in meta:
        raise InputError(f"{path} holds no model but other tensors of kdlab's; wanted: a checkpoint such as {BEST}.")
    try:
        card = ModelCard.from_json(meta["card"])
        model = build_model(card.architecture)
    except (KeyError, TypeError, InputError) as error:  # written by another version of kdlab, or damaged
        remedy = "Take another copy, or train again."
        if isinstance(error, InputError) and dict(meta["card"]["architecture"]).get("name") not in BUILDERS:
            remedy = "The weights of a network of your own are read with load_weights(model, path)."
        raise InputError(f"the model card in {path} cannot be used ({error}). {remedy}") from error
    fill(model, tensors, path)
    return model.eval(), card


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Fill a model from a plain state_dict of any origin (.pt, .pth, .safetensors), without running code from the file.

    A ``state_dict`` or ``model`` entry around it is looked through, and so are the prefixes "module." and "_orig_mod."
    of DataParallel and torch.compile, where the model has no such names itself.

    Raises:
        InputError: no such file, or a folder; not a state_dict; names or shapes that do not fit.
    """
    fill(model, read_weights(path, type(model).__name__), Path(path))


def read_weights(path: Path | str, network: str) -> dict[str, Tensor]:
    """The plain state_dict that :func:`load_weights` fills a model from, on the CPU, where the model comes after it.

    Args:
        network: what it is wanted for, in an error's words.

    Raises:
        InputError: no such file, or a folder; not a state_dict.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; wanted: a file with the weights of {network}: {BEST} in it.")
    if not path.is_file():
        raise InputError(f"{path} does not exist; wanted: a file with the weights of {network}.")
    try:
        safe = path.suffix == ".safetensors" or header_of(path) is not None
        weights: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise whatever the bytes provoke
        reason = first_line(error)[:200]
        if isinstance(error, pickle.UnpicklingError):  # of which torch has a page to say
            reason = "it holds Python objects beside tensors, or is damaged"
        raise InputError(
            f"{path} cannot be read as plain weights ({reason}). Wanted: a state_dict, saved as "
            "torch.save(model.state_dict(), path); a whole pickled model is refused, because reading it runs code."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(weights, Mapping) and isinstance(weights.get(wrapper), Mapping):
            weights = weights[wrapper]
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise InputError(f"{path} holds no state_dict (names and tensors), but {type(weights).__name__}.")
    return dict(weights)


def own_names(weights: Mapping[str, Tensor], known: Container[str] = ()) -> dict[str, Tensor]:
    """The weights without the prefixes that DataParallel and torch.compile put before the names of a network.

    Args:
        known: names that stay as they are.
    """

    def own(name: str) -> str:
        while name.startswith(WRAPPERS) and name not in known:
            name = name.partition(".")[2]
        return name

    return {own(name): value for name, value in weights.items()}


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put weights that were read from ``path`` into a model.

    Raises:
        InputError: names or shapes that do not fit.
    """
    own = model.state_dict()
    weights = own_names(weights, own)
    # BatchNorm's step counter is no weight, and old files lack it.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    surplus = [name for name in weights if name not in own]
    shapes = [
        f"{name} is {tuple(weights[name].shape)}, the model's {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if missing or surplus or shapes:
        parts = {"missing": missing, "unknown": surplus, "of another shape": shapes}
        said = "; ".join(f"{len(what)} {how} ({what[0]})" for how, what in parts.items() if what)
        raise InputError(f"the weights in {path} do not fit {type(model).__name__}: {said}. Is it the right model?")
    model.load_state_dict(weights, strict=False)
