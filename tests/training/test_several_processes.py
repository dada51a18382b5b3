"""Two processes train as one does with whole batches; one that is killed takes the other along, and the run goes on."""

import inspect
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import class_folder
import mask_folder
import pandas as pd
import pytest
import torch
from cifar_files import write_cifar100
from parallel_training import IMAGES, Net, train
from torch.utils.data import BatchSampler, DataLoader, TensorDataset
from weather_folder import grow

from kdlab import InputError, processes
from kdlab.commands.inputs import load_masks
from kdlab.data import load_folders, load_pairs
from kdlab.files import load_tensors
from kdlab.recipes import segmentation
from kdlab.recipes.dehazing import clean_alone
from kdlab.recipes.response import evaluate
from kdlab.training import ModelCard, load_model, pick_device, restoration_metrics
from kdlab.training.batches import Pieces, in_pieces

pytestmark = pytest.mark.usefixtures("one_thread")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
HERE = Path(__file__).parent
LOSSES = ["task", "kd", "total", "val_accuracy", "val_loss", "val_calibration_error"]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)} | more


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        return [free.getsockname()[1] for free in sockets]


def on_two(*words: object, **more: str) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", *map(str, words)]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=300)


def on_two_machines(*words: object) -> list[subprocess.CompletedProcess]:
    """A torchrun for each, as the README starts them; here both are this machine."""
    (port,) = free_ports(1)
    command = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", f"localhost:{port}", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment(), **pipes) for _ in range(2)]
    try:
        said = [launcher.communicate(timeout=120) for launcher in both]
    finally:
        for launcher in both:
            launcher.terminate()
    return [
        subprocess.CompletedProcess(command, launcher.returncode, *its)
        for launcher, its in zip(both, said, strict=True)
    ]


def alike(one: dict, other: dict) -> None:
    for name, tensor in other.items():
        torch.testing.assert_close(one[name], tensor, msg=name)


@pytest.fixture(scope="module")
def alone():
    objective, done = train(3)
    return objective.student.state_dict(), done.history[LOSSES]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    said = on_two(HERE / "parallel_training.py", out, 3)
    assert said.returncode == 0, said.stderr
    return out, said


def test_two_processes_take_the_steps_of_one_with_whole_batches(alone, two):
    weights, history = alone
    for place in (0, 1):
        its = torch.load(two[0] / f"{place}.pt", weights_only=True)
        alike(its["student"], weights)
        pd.testing.assert_frame_equal(pd.DataFrame(its["history"])[LOSSES], history, rtol=1e-4)


def test_the_first_one_alone_speaks_and_saves(two):
    out, said = two
    assert said.stdout == "only the first one says this\n"
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".pt") == [
        ".lock", "best.safetensors", "history.csv", "last.safetensors", "resume.safetensors", "teacher.safetensors",
    ]  # fmt: skip


def test_both_remember_the_samples_of_both(two):
    first, second = (torch.load(two[0] / f"{place}.pt", weights_only=True)["memory"] for place in (0, 1))
    for name in ("student_bank", "teacher_bank"):
        assert torch.equal(first[name], second[name])
        # A row that one of them had not moved would be the mean of a moved one and of the first one, which is longer.
        torch.testing.assert_close(first[name].norm(dim=1), torch.ones(24))


def test_both_have_what_the_teacher_says_to_each_sample(two):
    torch.manual_seed(0)
    _, teacher = Net(), Net()  # as train makes them
    for place in (0, 1):
        observed = torch.load(two[0] / f"{place}.pt", weights_only=True)["observed"]
        torch.testing.assert_close(observed, teacher(IMAGES[:23]).detach())


def test_the_statistics_of_batchnorm_are_the_same_in_both(two):
    first, second = (torch.load(two[0] / f"{place}.pt", weights_only=True)["statistics"] for place in (0, 1))
    alike(first, second)


def test_each_draws_random_numbers_of_its_own(two):
    first, second = (torch.load(two[0] / f"{place}.pt", weights_only=True)["drawn"] for place in (0, 1))
    assert len(first) == len(second) == 3
    assert not {*first} & {*second}


def epochs_in(out: Path) -> int:
    """How many epochs can be gone on from; an error if a file of the last whole one is not readable."""
    _, _, (_, meta) = (load_tensors(out / f"{name}.safetensors") for name in ("best", "last", "resume"))
    assert len(pd.read_csv(out / "history.csv")) >= len(meta["rows"])
    return len(meta["rows"])


@pytest.mark.parametrize(("place", "saved"), [(0, {1}), (1, {1, 2})], ids=["the one that saves", "another"])
def test_one_that_is_killed_ends_the_other_and_any_number_goes_on(place, saved, tmp_path, alone):
    """In the second epoch: nobody saves it but the first, who has then perhaps done so, unless it is the killed one."""
    began = time.monotonic()
    said = on_two(HERE / "parallel_training.py", tmp_path, 3, 2, place)
    assert said.returncode != 0
    assert time.monotonic() - began < 60
    assert epochs_in(tmp_path) in saved
    objective, done = train(3, tmp_path)
    assert len(done.history) == 3
    alike(objective.student.state_dict(), alone[0])


def test_a_run_of_one_is_gone_on_with_by_two(tmp_path, alone):
    train(1, tmp_path)
    said = on_two(HERE / "parallel_training.py", tmp_path, 3)
    assert said.returncode == 0, said.stderr
    alike(torch.load(tmp_path / "1.pt", weights_only=True)["student"], alone[0])


def test_two_machines_take_the_steps_of_one_process_with_whole_batches(tmp_path, alone):
    both = on_two_machines(HERE / "parallel_training.py", tmp_path, 3)
    assert [said.returncode for said in both] == [0, 0], both[0].stderr + both[1].stderr
    assert "".join(said.stdout for said in both) == "only the first one says this\n"
    for place in (0, 1):
        alike(torch.load(tmp_path / f"{place}.pt", weights_only=True)["student"], alone[0])


@pytest.mark.parametrize(("place", "saved"), [(0, {1}), (1, {1, 2})], ids=["the one that saves", "another"])
def test_a_machine_that_is_gone_ends_the_other_and_the_run_goes_on(place, saved, tmp_path, alone):
    began = time.monotonic()
    codes = sorted(said.returncode for said in on_two_machines(HERE / "parallel_training.py", tmp_path, 3, 2, place))
    assert time.monotonic() - began < 60
    assert codes[0] == -signal.SIGKILL
    assert codes[1] > 0
    assert epochs_in(tmp_path) in saved
    objective, _ = train(3, tmp_path)
    alike(objective.student.state_dict(), alone[0])


def restoration_commands(out: Path) -> list[list[object]]:
    """Two stages, of which the second leaves the projectors without a gradient, on stratified batches.

    They are measured on five images, whose weathers have not equally many, each in a size of its own.
    """
    data, tiny = grow(out / "data", train=4, val=3), ["--task", "restoration", "--device", "cpu", "--width", 2]
    for kind in ("input", "target"):
        (data / "val" / "rain" / kind / "2.png").unlink()
    tiny += ["--crop", 32]
    teach, teachers = [], []
    for weather in ("haze", "rain"):
        where = out / weather
        teach.append(["teach", data, *tiny, "--weather", weather, "--batch-size", 2, "--epochs", 1, "--out", where])
        teachers += ["--teacher", f"{weather}={where}"]
    distill = ["distill", data, *tiny, *teachers, "--batch-size", 4, "--epochs", 2, "--features", "none"]
    return [*teach, [*distill, "--out", out / "student"]]


def dehazing_commands(out: Path) -> list[list[object]]:
    words = [grow(out / "data", train=4, val=3), "--task", "dehazing", "--narrow", "--device", "cpu"]
    words += ["--weather", "haze", "--crop", 32, "--steps", 2, "--epochs", 2, "--batch-size", 4]
    distill = ["distill", *words, "--teacher", out / "teacher", "--out", out / "student"]
    return [["teach", *words, "--out", out / "teacher"], distill]


def label_commands(task: str, data: Path, out: Path, *more: object) -> list[list[object]]:
    words = [data, "--task", task, "--device", "cpu", "--batch-size", 4, "--epochs", 1]
    narrow = ["--narrow"] if task == "segmentation" else []
    distill = ["distill", *words, *narrow, "--teacher", out / "teacher", "--out", out / "student"]
    return [["teach", *words, *narrow, *more, "--image-size", 32, "--out", out / "teacher"], distill]


@pytest.fixture(scope="module")
def commanded(tmp_path_factory) -> tuple[Path, str]:
    """Where commands have trained, and what they said: one after the other in the same two processes.

    To start those takes seconds. Of three images to validate on, one process looks at one more than the other.
    """
    out = tmp_path_factory.mktemp("commanded")
    folders = class_folder.grow(out / "classification" / "data", train=8, val=3)
    masks = mask_folder.grow(out / "segmentation" / "data", train=8, val=3)
    commands = [
        *restoration_commands(out / "restoration"),
        *dehazing_commands(out / "dehazing"),
        *label_commands("classification", folders, out / "classification", "--weights", "none"),
        *label_commands("segmentation", masks, out / "segmentation"),
    ]
    words = [word for command in commands for word in ("then", *command)][1:]
    ports = " ".join(map(str, free_ports(len(commands))))
    said = on_two(HERE / "parallel_command.py", *words, PORTS=ports)
    assert said.returncode == 0, said.stderr
    return out, said.stdout


def same_metrics(card: ModelCard, alone: dict[str, float]) -> None:
    """As one process alone measures them."""
    assert {name: card.metrics[name] for name in alone} == pytest.approx(alone, rel=1e-4)


def test_commands_on_two_processes_say_once_what_they_say(commanded):
    _, said = commanded
    assert said.count("best epoch") == 9
    assert said.count("SCR, HCR: a ratio of means over the images of a batch, and each of the 2 parts") == 1


def test_restorers_of_two_processes_have_the_metrics_of_all_images(commanded):
    out = commanded[0] / "restoration"
    val = load_pairs(out / "data").val
    for who, weathers in (("haze", ["haze"]), ("rain", ["rain"]), ("student", ["haze", "rain"])):
        model, card = load_model(out / who / "last.safetensors")
        same_metrics(card, restoration_metrics(model, val.only(weathers)))
    assert card.metrics["epoch"] == 2


def test_a_dehazer_and_its_teacher_of_two_processes_have_the_metrics_of_all_images(commanded):
    out = commanded[0] / "dehazing"
    val = load_pairs(out / "data").val.only(["haze"])
    for who, judged_by in (("teacher", clean_alone(val)), ("student", val)):
        model, card = load_model(out / who / "last.safetensors")
        same_metrics(card, restoration_metrics(model, judged_by))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_classifier_of_two_processes_has_the_metrics_of_all_images(who, commanded):
    out = commanded[0] / "classification"
    model, card = load_model(out / who / "last.safetensors")
    data = load_folders(out / "data", size=card.size, mean=card.mean, std=card.std)
    same_metrics(card, evaluate(model, data.val))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_segmenter_of_two_processes_has_the_metrics_of_all_images(who, commanded):
    out = commanded[0] / "segmentation"
    model, card = load_model(out / who / "last.safetensors")
    data = load_masks(str(out / "data"), card.size, card.mean, card.std, who="model", classes=card.classes)
    same_metrics(card, segmentation.measure(model, data.val))


def test_the_published_comparison_on_two_processes(tmp_path, monkeypatch):
    data, where = write_cifar100(tmp_path / "data", monkeypatch), ["--out", tmp_path / "runs", "--device", "cpu"]
    words = ["reproduce", "cifar100", "--pair", "resnet56-resnet20", "--epochs", 1, "--seeds", 1]
    methods = ["--method", "crd", "ab", "ft"]
    said = on_two(HERE / "parallel_reproduce.py", *words, *methods, "--data", data, *where)
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("crd, seed 0") == 1
    assert said.stdout.count("first phase") == 2
    table = pd.read_csv(tmp_path / "runs" / "resnet56-resnet20" / "1-epochs" / "table.csv")
    assert table.method.tolist() == ["teacher", "crd", "ab", "ft"]


def test_a_wrong_batch_is_refused_by_both_before_there_is_data(tmp_path):
    words = ["teach", tmp_path / "nowhere", "--task", "restoration", "--device", "cpu", "--width", 2]
    options = ["--crop", 32, "--weather", "haze", "--batch-size", 1, "--epochs", 1, "--out", tmp_path / "out"]
    said = on_two("--no-python", Path(sys.executable).with_name("kdlab"), *words, *options)
    assert said.returncode != 0
    for who in ("kdlab:", "kdlab (process 1):"):
        assert f"{who} a batch of 1 samples cannot be divided into 2 equal pieces" in said.stderr


@pytest.mark.parametrize("gpus", [0, 1])
def test_no_two_share_a_gpu(gpus, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(
        InputError, match=f"has {gpus} GPUs and 2 processes; wanted: a GPU for each. Start torchrun with"
    ):
        pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


def test_processes_that_see_what_is_on_gpus_alone_are_told_before_the_first_epoch(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    with pytest.raises(InputError, match='joined by nccl alone.*wanted: .*"cpu:gloo,cuda:nccl"'):
        processes.in_parallel(Net())


def test_fewer_samples_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match="there are 1 samples for 2 processes; wanted: at least one for each"):
        processes.own_share(TensorDataset(torch.zeros(1)))


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_of_the_first_is_one_of_all(place, monkeypatch):
    def fail():
        raise InputError("it cannot be read")

    def received(made):
        made[1] = made[1] or InputError("it cannot be read")

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "own_place", lambda: place)
    monkeypatch.setattr(processes.dist, "broadcast_object_list", received)
    with pytest.raises(InputError, match="it cannot be read"):
        processes.from_first(fail)


def test_one_that_torchrun_has_started_alone_joins_nobody(monkeypatch):
    for name, value in (("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    with processes.joined_by_torchrun():
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("place", "order"), [(0, ["inside", "waits"]), (1, ["waits", "inside"])])
def test_the_others_enter_when_the_first_has_left(place, order, monkeypatch):
    seen = []
    monkeypatch.setattr(processes, "own_place", lambda: place)
    monkeypatch.setattr(processes, "wait_for_all", lambda: seen.append("waits"))
    with processes.first_leads():
        seen.append("inside")
    assert seen == order


# --- pieces of a batch, in one process -------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_add_up_to_the_step_of_the_whole_batch(alone, pieces):
    objective, done = train(3, accumulate=pieces)
    alike(objective.student.state_dict(), alone[0])
    pd.testing.assert_frame_equal(done.history[LOSSES], alone[1], rtol=1e-4)


def test_pieces_are_the_batch_and_hold_each_stratum_alike():
    batches = [[0, 1, 10, 11], [2, 3, 12, 13]]
    pieces = Pieces(batches, 2)
    pieces.draw()
    assert len(pieces) == 4
    assert list(pieces) == [[0, 10], [1, 11], [2, 12], [3, 13]]


def test_a_stratum_that_cannot_be_divided_is_refused_before_a_batch_is_drawn():
    batches = BatchSampler(range(12), 6, drop_last=False)
    batches.each = 3
    with pytest.raises(InputError, match="a batch has 3 samples of each kind, which cannot be divided into 2 equal"):
        Pieces(batches, 2)
    Pieces(batches, 3)


def test_several_processes_divide_each_batch_and_its_strata_further(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    batches = BatchSampler(range(12), 6, drop_last=False)
    with pytest.raises(InputError, match="a batch of 6 samples cannot be divided into 4 equal pieces, 2 for each of 2"):
        Pieces(batches, 2).draw()
    batches.each = 2
    with pytest.raises(InputError, match="a batch has 2 samples of each kind, which cannot be divided into 4 equal"):
        Pieces(batches, 2)


def test_a_last_batch_that_cannot_be_divided_is_refused_too():
    pieces = Pieces(BatchSampler(range(7), 4, drop_last=False), 2)
    with pytest.raises(InputError, match="a batch of 3 samples cannot be divided into 2 equal pieces"):
        pieces.draw()


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(InputError, match=r"a batch of 8 samples cannot be divided into 3 equal pieces.*multiple of 3"):
        train(1, accumulate=3)


def test_a_loader_in_pieces_keeps_all_that_does_not_make_the_batches():
    whole = DataLoader(
        TensorDataset(torch.arange(8)), 4, num_workers=1, collate_fn=list, pin_memory=True, timeout=5,
        worker_init_fn=print, generator=torch.Generator(), multiprocessing_context="spawn", prefetch_factor=3,
        persistent_workers=True, in_order=False,
    )  # fmt: skip
    pieces, plain = in_pieces(whole, 2), DataLoader(whole.dataset)
    batches = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "pin_memory_device"}
    names = inspect.signature(DataLoader).parameters.keys() - batches
    assert {name for name in names - {"dataset"} if getattr(whole, name) == getattr(plain, name)} == set()
    assert {name for name in names if getattr(pieces, name) != getattr(whole, name)} == set()


def test_a_loader_in_pieces_loads_as_the_whole_one_does():
    def collate(samples):
        return torch.stack([sample[0] for sample in samples])

    whole = DataLoader(TensorDataset(torch.arange(8)), 4, num_workers=0, collate_fn=collate)
    pieces = in_pieces(whole, 2)
    pieces.batch_sampler.draw()
    assert [piece.tolist() for piece in pieces] == [[0, 2], [1, 3], [4, 6], [5, 7]]
