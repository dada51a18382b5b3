"""``kdlab evaluate``."""

import argparse
import json

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from kdlab.commands.inputs import check_classes, load_data
from kdlab.errors import InputError
from kdlab.training import classification_metrics, load_model, pick_device, predict_logits

CONFUSIONS = 10  # that are shown, the most frequent ones


def evaluate(args: argparse.Namespace) -> int:
    """Measure a model on one split and print it as a table, CSV or JSON."""
    device = pick_device(args.device)
    model, card = load_model(args.model)
    data = load_data(args.data, card.size, card.mean, card.std)
    check_classes("model", card.classes, data)
    if args.split == "test" and data.test_is_val:
        raise InputError(f"--split test was given, but {data.name} has no test/. Use --split val, or make a test/.")
    loader = DataLoader(getattr(data, args.split), args.batch_size, num_workers=args.workers)
    logits, labels = predict_logits(model.to(device), loader)
    measured = classification_metrics(logits, labels)
    metrics = {"cross_entropy" if name == "loss" else name: value for name, value in measured.items()}

    classes = np.array(card.classes)
    answers = pd.DataFrame({"class": classes[labels.numpy()], "predicted": classes[logits.argmax(dim=1).numpy()]})
    right = answers["class"] == answers["predicted"]
    by_class = right.groupby(answers["class"]).agg(images="size", accuracy="mean").loc[list(classes)].reset_index()
    counts = answers[~right].groupby(["class", "predicted"]).size().sort_values(ascending=False, kind="stable")
    confusions = counts.head(CONFUSIONS).reset_index(name="images")

    if args.format == "json":
        result = {"data": data.name, "split": args.split, "images": len(labels), **metrics}
        result |= {"classes": by_class.to_dict("records"), "confusions": confusions.to_dict("records")}
        print(json.dumps(result, indent=2))
    elif args.format == "csv":
        parts = [
            pd.DataFrame({"measure": metrics.keys(), "class": "", "predicted": "", "value": metrics.values()}),
            by_class.rename(columns={"accuracy": "value"}).assign(measure="accuracy", predicted=""),
            confusions.rename(columns={"images": "value"}).assign(measure="confusions"),
        ]
        columns = ["measure", "class", "predicted", "value"]
        print(pd.concat([part[columns] for part in parts if len(part)]).to_csv(index=False), end="")
    else:
        print(f"{data.name}, {args.split}: {len(labels)} images")
        print(*(f"{name.replace('_', ' '):18}{value:.4f}" for name, value in metrics.items()), sep="\n")
        print(f"\n{by_class.to_string(index=False, float_format='{:.4f}'.format)}")
        print(
            f"\nmost frequent confusions:\n{confusions.to_string(index=False)}" if len(confusions) else "\nno confusion"
        )
    return 0
