"""From --preset, --method and their numbers to what a segmenter learns from its teacher."""

import argparse
from dataclasses import replace

from kdlab.commands.options import check_used, option
from kdlab.errors import InputError
from kdlab.recipes.few_masks import METHODS
from kdlab.recipes.segmentation import MGD_SIZE, PRESETS, STRIDE, DenseDistillation, Layer, Method

# What a method is where no number is given: the first preset that it has, else what did best on the scenes.
BASES = {
    (base.method, base.layer): base for base in (*METHODS.values(), *reversed(PRESETS.values())) if base is not None
}
USED_BY = {"temperature": ("kd", "cwd"), "mask_ratio": ("mgd",)}


def dense_distillation(args: argparse.Namespace) -> DenseDistillation:
    """The preset or the method, with the numbers that were given for its own.

    Raises:
        InputError: a preset and a method; a layer or a number that the method has no use for; numbers out of range.
    """
    if args.preset is not None and (args.method, args.layer) != (None, None):
        given = " and ".join(option(name) for name in ("method", "layer") if getattr(args, name) is not None)
        raise InputError(
            f"--preset {args.preset} was given with {given}, but a preset says both itself. Leave one of them out; "
            "the numbers --weight, --temperature and --mask-ratio may be added to either."
        )
    method: Method = args.method or "cwd"
    layer: Layer = args.layer or ("features" if method in ("mgd", "at") else "logits")
    # A layer that the method cannot use is refused in the words of DenseDistillation.
    base = PRESETS[args.preset] if args.preset else BASES.get((method, layer)) or DenseDistillation(method, layer, 1.0)
    check_used(args, base.method, USED_BY)
    given_numbers = {name: getattr(args, name) for name in ("weight", *USED_BY) if getattr(args, name) is not None}
    return replace(base, **given_numbers)


def warn_of_small_maps(args: argparse.Namespace, distillation: DenseDistillation, size: int) -> None:
    """Say so where MGD's published weight does next to nothing, since its loss is a sum over maps that are small here.

    Args:
        size: the images' height and width.
    """
    if distillation.method != "mgd" or args.weight is not None:
        return
    mine, published = (-(-side // STRIDE) for side in (size, MGD_SIZE))
    ratio = (published / mine) ** 2
    if ratio >= 4:
        print(
            f"warning: mgd sums over the map, and its published weight {distillation.weight:g} belongs to maps of "
            f"{published}x{published}; of these images of {size}x{size} they are {mine}x{mine}, so that the teacher "
            f"pulls {ratio:.3g} times less. --weight {distillation.weight * ratio:.2g} pulls as hard.",
            flush=True,
        )


def describe(distillation: DenseDistillation) -> str:
    """In a line, without the numbers that the method has no use for."""
    numbers = [f"weight {distillation.weight:g}"]
    numbers += [
        f"{name.replace('_', ' ')} {getattr(distillation, name):g}"
        for name, methods in USED_BY.items()
        if distillation.method in methods
    ]
    return f"{distillation.method} on {distillation.layer}, {', '.join(numbers)}"
