"""``kdlab reproduce cifar100`` from CIFAR's own files to the table, on a few images and the smallest pair."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from cifar_files import write_cifar100
from command_line import done, refused, run
from layout import is_channels_last
from states import same, weights
from torch import nn

from kdlab.commands import reproduce as reproduction
from kdlab.commands.reproduce import with_earlier
from kdlab.data import load_cifar100
from kdlab.distill import Distiller
from kdlab.models import StudentCNN, cifar_network
from kdlab.recipes import cifar100
from kdlab.recipes.cifar100 import METHODS
from kdlab.recipes.cifar100_table import PAIRS
from kdlab.training import ModelCard, load_model, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

PAIR = "resnet56-resnet20"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield write_cifar100(tmp_path_factory.mktemp("cifar") / "data", patch)


def words(data, out, *more, methods=("kd",), pair=PAIR):
    return (
        "reproduce", "cifar100", "--method", *methods, "--pair", pair, "--data", data, "--out", out, "--device", "cpu",
        *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    command = words(data, out, "--epochs", 2, "--seeds", 2, methods=("alone", "kd", "crd"))
    return SimpleNamespace(command=command, text=done(*command), folder=out / PAIR / "2-epochs")


def test_the_table_has_both_epochs_of_every_seed_beside_the_published_row(finished):
    table = pd.read_csv(finished.folder / "table.csv").set_index("method")
    assert list(table.index) == ["teacher", "alone", "kd", "crd"]
    assert table.seeds.tolist() == [1, 2, 2, 2]
    for method in ("alone", "kd", "crd"):
        histories = [pd.read_csv(finished.folder / method / f"seed-{seed}" / "history.csv") for seed in (0, 1)]
        last = [100 * history.val_accuracy.iloc[-1] for history in histories]
        best = [100 * history.val_accuracy.max() for history in histories]
        assert table["last"][method] == pytest.approx(sum(last) / 2)
        assert table["best"][method] == pytest.approx(sum(best) / 2)
        assert histories[0].lr.tolist() == pytest.approx([0.05, 0.05])
        assert f"{method}, seed 1: last epoch {last[1]:.2f}%, best epoch {best[1]:.2f}%" in finished.text
    assert table.published.tolist() == [72.34, 69.06, 70.66, 71.16]
    assert table.published_epoch.tolist() == ["not stated", "not stated", "last", "last"]


def test_what_is_printed_says_what_is_no_clean_number_and_what_is_no_reproduction(finished):
    for said in (
        "16 training and 8 test images",
        "teacher: resnet56, test accuracy",
        "CIFAR-100, resnet56 -> resnet20, 2 epochs: top-1 test accuracy in percent",
        "70.66 (epoch: last; RepDistiller)",
        "The test images have chosen the best epoch, and flatter it",
        "a trial of 2 epochs; the published rows are of 240",
    ):
        assert said in finished.text


def test_a_loss_that_compares_images_says_that_each_process_sees_fewer(monkeypatch, capsys):
    reproduction._warn_of_small_parts(["rkd", "kd"])
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(reproduction.processes, "count", lambda: 4)
    reproduction._warn_of_small_parts(["kd", "crd"])
    assert capsys.readouterr().out == ""
    reproduction._warn_of_small_parts(["rkd", "kd"])
    assert "rkd: compares the images of a batch with one another, and each of the 4 processes sees 16 of 64" in (
        capsys.readouterr().out
    )


def test_the_seeds_are_different_runs_and_the_student_is_a_checkpoint_like_any_other(finished):
    runs = [finished.folder / "kd" / f"seed-{seed}" for seed in (0, 1)]
    assert not same(*map(weights, runs))
    student, card = load_model(runs[0])
    assert student.architecture == cifar_network("resnet20").architecture
    assert card.recipe.items() >= {"method": "kd", "optimizer": "SGD", "batch_size": 64, "augment": True}.items()


def test_what_is_done_is_not_done_again(finished, monkeypatch):
    before = (finished.folder / "table.csv").read_bytes()
    for network in (Distiller, cifar100.Supervised):
        monkeypatch.setattr(network, "forward", None)  # a further step would fail
    assert done(*finished.command, "--workers", 1) == finished.text  # however the images were loaded
    assert (finished.folder / "table.csv").read_bytes() == before


def test_rows_of_other_methods_stay_in_the_table_unless_their_teacher_was_another(tmp_path):
    table = tmp_path / "table.csv"
    pd.DataFrame({"method": ["teacher", "kd", "at"], "last": [0.1 + 0.2, 0.5, 0.6]}).to_csv(table, index=False)
    now = pd.DataFrame({"method": ["teacher", "at", "dkd"], "last": [0.1 + 0.2, 0.7, 0.8]})
    both = with_earlier(table, now)
    assert list(both["method"]) == ["teacher", "kd", "at", "dkd"]
    assert list(both["last"]) == [0.1 + 0.2, 0.5, 0.7, 0.8]
    assert list(with_earlier(table, now.assign(last=0.9))["method"]) == ["teacher", "at", "dkd"]


@pytest.fixture(scope="module")
def teacher(data, tmp_path_factory):
    """The folder of a run; one that has learnt nothing will do."""
    model, splits = cifar_network("resnet56"), load_cifar100(data)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    model(torch.randn(8, 3, 32, 32))  # with the statistics of BatchNorm, its maps are as large as a trained one's
    card = ModelCard(model.architecture, splits.classes, splits.mean, splits.std, splits.size)
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder / "last.safetensors", model, card)
    return folder


def test_a_seed_that_was_interrupted_ends_as_if_left_alone(data, teacher, tmp_path, monkeypatch):
    def command(name):
        return words(data, tmp_path / name, "--epochs", 3, "--seeds", 1, "--teacher", teacher, methods=("crd",))

    def left(name):
        return weights(tmp_path / name / PAIR / "3-epochs" / "crd" / "seed-0")

    text = done(*command("alone"))
    with monkeypatch.context() as patch:
        whole, calls = cifar100.evaluate, []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return whole(*arguments, **options)

        patch.setattr(cifar100, "evaluate", interrupted)
        result = run(*command("resumed"))
    assert result.status == 130
    assert result.err == "kdlab: interrupted. The same command goes on after the last whole epoch.\n"
    assert not same(left("alone"), left("resumed"))
    assert done(*command("resumed")) == text.replace(str(tmp_path / "alone"), str(tmp_path / "resumed"))
    assert same(left("alone"), left("resumed"))


@pytest.mark.parametrize("method", ["ab", "ft"])
def test_a_seed_that_was_interrupted_in_both_phases_ends_as_if_left_alone(method, data, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "INIT_EPOCHS", 240)  # so that the first phase is as long as the second

    def command(name):
        return words(data, tmp_path / name, "--epochs", 2, "--seeds", 1, "--teacher", teacher, methods=(method,))

    def interrupted_at(measure):
        """In the second of the two epochs that measure so."""
        with monkeypatch.context() as patch:
            whole, calls = getattr(cifar100, measure), []

            def interrupted(*arguments, **options):
                calls.append(1)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return whole(*arguments, **options)

            patch.setattr(cifar100, measure, interrupted)
            return run(*command("resumed"))

    text = done(*command("alone"))
    assert f"{method}, seed 0: first phase, 2 epochs\n{method}, seed 0: second phase, 2 epochs\n" in text
    first, second = interrupted_at("_own_loss"), interrupted_at("evaluate")
    assert first.status == second.status == 130
    assert "second phase" not in first.out
    assert "second phase" in second.out
    assert done(*command("resumed")) == text.replace(str(tmp_path / "alone"), str(tmp_path / "resumed"))
    alone, resumed = (tmp_path / name / PAIR / "2-epochs" / method / "seed-0" for name in ("alone", "resumed"))
    assert same(weights(alone / "first-phase"), weights(resumed / "first-phase"))
    assert same(weights(alone), weights(resumed))
    for objective in (Distiller, cifar100.Supervised, cifar100.Paraphrasing):
        monkeypatch.setattr(objective, "forward", None)  # a further step would fail
    assert done(*command("alone")) == text


def test_the_student_alone_wants_no_teacher(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "train_teacher", None)
    text = done(*words(data, tmp_path, "--epochs", 1, "--seeds", 1, methods=("alone",)))
    assert "teacher:" not in text


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_run_may_be_made_faster(channels_last, data, tmp_path, monkeypatch):
    given = []
    loop = cifar100.fit
    monkeypatch.setattr(cifar100, "fit", lambda one, _, **how: given.append((one, how)) or loop(one, _, **how))
    faster = ("--precision", "bf16", "--channels-last" if channels_last else "--no-channels-last")
    done(*words(data, tmp_path, "--epochs", 1, "--seeds", 1, *faster, methods=("alone",)))
    ((objective, how),) = given
    assert (how["precision"], how["compile"]) == ("bf16", False)
    assert is_channels_last(objective) == channels_last


# --- refused before any work -----------------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    def reached(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(cifar100, "fit", reached)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pair": "resnet56-resnet8"}, "unknown pair 'resnet56-resnet8'. Did you mean 'resnet56-resnet20'"),
        ({"methods": ["kd", "dk"]}, "unknown method 'dk'. Did you mean 'dkd'?"),
        ({"methods": ["ofd"]}, "ofd is not reproduced: no published row"),
    ],
)
def test_unknown_names(data, tmp_path, options, said):
    assert said in refused(*words(data, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere"], "CIFAR-100 is not in nowhere; get it with: python data_scripts/get_classification.py"),
        (["--out", __file__], "cannot be made"),
        (["--teacher", "nowhere"], "nowhere does not exist; wanted: a file that kdlab has saved"),
    ],
)
def test_places_that_do_not_serve(data, tmp_path, options, said):
    assert said in refused(*words(data, tmp_path / "out", *options))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seeds", "0"], "argument --seeds: '0' is not a whole number from 1 up"),
        (["--epochs", "0"], "argument --epochs: '0' is not a whole number from 1 up"),
        (["--epochs", "2.5"], "argument --epochs: '2.5' is not a whole number from 1 up"),
    ],
)
def test_impossible_numbers(data, tmp_path, options, said):
    result = run(*words(data, tmp_path / "out", *options))
    assert result.status == 2
    assert said in result.err


@pytest.mark.usefixtures("no_work")
def test_a_teacher_that_is_another_network_or_knows_other_classes_or_colours(data, teacher, tmp_path):
    said = refused(*words(data, tmp_path / "out", "--teacher", teacher, pair="vgg13-vgg8"))
    assert "wanted: vgg13, which is {'name': 'CIFARVGG', 'convolutions': 2" in said
    _, card = load_model(teacher / "last.safetensors")
    other = StudentCNN(100, (4, 4, 4, 4))
    save_model(tmp_path / "t.safetensors", other, ModelCard(**{**vars(card), "architecture": other.architecture}))
    said = refused(*words(data, tmp_path / "out", "--teacher", tmp_path / "t.safetensors"))
    assert "is {'name': 'StudentCNN'" in said
    for changed in ({"classes": card.classes[::-1]}, {"mean": (0.5,) * 3}, {"std": (0.5,) * 3}):
        save_model(tmp_path / "t.safetensors", cifar_network("resnet56"), ModelCard(**{**vars(card), **changed}))
        said = refused(*words(data, tmp_path / "out", "--teacher", tmp_path / "t.safetensors"))
        assert "trained on CIFAR-100's classes with mean" in said


def test_help_names_every_method_and_pair():
    text = " ".join(done("reproduce", "--help").split())
    for name in (*METHODS, *PAIRS):
        assert name in text
