"""What ``kdlab evaluate`` measures of a restorer: each image whole, of its own size."""

import argparse

from torch import nn

from kdlab.commands.inputs import check_split, load_restoration, names
from kdlab.commands.outputs import as_json, check_out_file, say_skipped
from kdlab.data.images import printable
from kdlab.data.pairs import PairedImages
from kdlab.files import write_whole
from kdlab.recipes.restorer import pairs
from kdlab.training import ModelCard, SelfEnsemble
from kdlab.training.restoration import QUALITY, measure_each

HEADS = {"psnr": "PSNR", "ssim": "SSIM", "psnr_y": "PSNR on Y", "ssim_y": "SSIM on Y"}


def evaluate_restorer(args: argparse.Namespace, model: nn.Module, card: ModelCard) -> None:
    """Print the quality in each weather of the data, whatever the model was trained for, and the mean of these."""
    if args.per_image is not None:
        check_out_file(args.per_image, "--per-image", [], args.model)
    data = load_restoration(args.data, only_judged=args.split != "train")
    check_split(args, data)
    say_skipped(data.skipped)
    split = pairs(getattr(data, args.split))
    whole = PairedImages(split.pairs, split.weathers)  # the training images would come in crops
    restorer = SelfEnsemble(model) if args.self_ensemble else model
    each = measure_each(restorer, whole if args.weather is None else whole.only([args.weather]))

    by_weather = each.groupby("weather")[list(QUALITY)].mean()
    by_weather.insert(0, "images", each["weather"].value_counts())
    means = by_weather[list(QUALITY)].mean()
    if args.format == "json":
        result = {"data": data.name, "split": args.split, "images": len(each), "trained_for": list(card.classes)}
        result |= means.to_dict() | {"weathers": by_weather.reset_index().to_dict("records")}
        print(as_json(result))
    elif args.format == "csv":
        overall = means.rename_axis("measure").reset_index(name="value").assign(weather="")
        parts = by_weather.reset_index().melt("weather", var_name="measure")
        columns = ["measure", "weather", "value"]
        print("".join([overall[columns].to_csv(index=False), parts[columns].to_csv(index=False, header=False)]), end="")
    else:
        print(f"{data.name}, {args.split}: {len(each)} images; the model was trained for {names(card.classes)}")
        table = by_weather.rename(index=printable).astype({"images": str})
        table.loc["mean"] = means
        table = table.fillna({"images": ""}).rename(columns=HEADS).rename_axis(index=None)
        print(f"\n{table.to_string(float_format='{:.4f}'.format)}")
    if args.per_image is not None:  # last: what was measured is seen even if it cannot be written
        write_whole(args.per_image, each.to_csv(index=False).encode(errors="backslashreplace"))
