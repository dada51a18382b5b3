"""A compiled student, and a distiller on two processes."""

import copy
import shutil

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from kdlab.distill import Distiller, Term
from kdlab.losses import KDLoss

IMAGES, LABELS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3


class Net(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(channels, 3)

    def forward(self, images):
        return self.classifier(self.relu(self.conv(images)).mean(dim=(2, 3)))


class Gap(nn.Module):
    def forward(self, student, teacher):
        return (student - teacher.detach()).square().mean()


def joined(student, teacher):
    kd = Term("kd", KDLoss(2.0), "classifier", "classifier", 0.5)
    return Distiller(student, teacher, [kd, Term("hint", Gap(), "conv", "conv")], task=nn.CrossEntropyLoss())


def gradients(module):
    return [p.grad.clone() for p in module.parameters()]


def test_a_traced_teacher_teaches_as_the_network_does():
    torch.manual_seed(0)
    student, teacher = Net(), Net().eval()
    kd = Term("kd", KDLoss(2.0), "classifier", "")
    eager, traced = (
        Distiller(student, one, [kd], nn.CrossEntropyLoss())(IMAGES, LABELS)["kd"]
        for one in (teacher, torch.jit.trace(teacher, IMAGES))
    )
    torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_a_compiled_student_computes_the_same_and_is_read_at_each_step(how):
    torch._dynamo.reset()
    torch.manual_seed(0)
    student, teacher = Net(), Net()
    eager = joined(copy.deepcopy(student), teacher)
    if how == "in place":
        student.compile(backend="aot_eager")
    compiled = joined(student if how == "in place" else torch.compile(student, backend="aot_eager"), teacher)
    for step in range(3):  # other images each time: a stale record would show
        for d in (eager, compiled):
            d.zero_grad()
            d.train()
            losses = d(IMAGES + step, LABELS)
            losses["total"].backward()
        expected = eager(IMAGES + step, LABELS)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name])
        for mine, its in zip(gradients(compiled), gradients(eager), strict=True):
            torch.testing.assert_close(mine, its)
        student.eval()(IMAGES)  # evaluation between steps runs without hooks


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile's own backend wants a C++ compiler, c++")
def test_what_torch_compile_takes_by_default_computes_the_same_too():
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    student, teacher = Net(), Net()
    eager = joined(copy.deepcopy(student), teacher)
    student.compile()
    compiled = joined(student, teacher)
    for step in range(2):
        for d in (eager, compiled):
            d.zero_grad()
            d(IMAGES + step, LABELS)["total"].backward()
        torch.testing.assert_close(compiled(IMAGES + step, LABELS), eager(IMAGES + step, LABELS))
        for mine, its in zip(gradients(compiled), gradients(eager), strict=True):
            torch.testing.assert_close(mine, its)
    assert counters["inductor"]  # it was compiled, and did not fall back


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential()
        self.body.add_module("conv", nn.Conv2d(3, 4, 3))
        self.body.add_module("relu", nn.ReLU(inplace=True))

    def forward(self, images):
        return self.body(images).mean(dim=(2, 3))


@pytest.mark.parametrize("what", ["student's part", "teacher's part", "distiller"])
def test_compiled_in_part_or_around_it_all_a_tap_is_what_its_layer_put_out(what):
    torch._dynamo.reset()
    student, teacher = Parts(), Parts()
    expected = (student.body.conv(IMAGES) - teacher.body.conv(IMAGES)).square().mean()
    if what != "distiller":
        network = student if what == "student's part" else teacher
        network.body = torch.compile(network.body, backend="aot_eager")
    d = Distiller(student, teacher, [Term("hint", Gap(), "body.conv", "body.conv")], nn.CrossEntropyLoss())
    if what == "distiller":
        d.compile(backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(d(IMAGES, LABELS)["hint"], expected)


def on_one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    parallel = DistributedDataParallel(joined(Net(), Net()))
    mine = slice(4 * rank, 4 * rank + 4)
    for _ in range(2):
        parallel.zero_grad()
        parallel(IMAGES[mine], LABELS[mine])["total"].backward()
    torch.save(gradients(parallel), f"{folder}/{rank}.pt")
    del parallel  # freed after the group, it may wait for ever for a thread of gloo that waits for Python's lock
    dist.destroy_process_group()


def test_two_processes_have_the_gradient_of_one_with_the_joined_batch(tmp_path):
    mp.spawn(on_one_of_two, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    alone = joined(Net(), Net())
    alone(IMAGES, LABELS)["total"].backward()
    for rank in (0, 1):
        for theirs, ours in zip(torch.load(tmp_path / f"{rank}.pt"), gradients(alone), strict=True):
            torch.testing.assert_close(theirs, ours)
