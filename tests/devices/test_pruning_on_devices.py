"""Pruning on another device: the same channels go, and what is left computes the same."""

import copy

import torch
from on_devices import agree
from torch import nn

from kdlab import pruning
from kdlab.models import StudentCNN


def test_a_pruned_network_stays_on_its_device_and_computes_as_on_the_cpu(device):
    network, images = StudentCNN(3, (8, 8, 8, 8)).eval(), torch.rand(2, 3, 16, 16)
    for norm in pruning.gammas(network):
        nn.init.uniform_(network.get_submodule(norm).weight)
    there = copy.deepcopy(network).to(device)
    plan = pruning.plan_pruning(there, images.to(device), keep=0.5, at_least=2)
    assert plan == pruning.plan_pruning(network, images, keep=0.5, at_least=2)
    mine = pruning.prune(there, images.to(device), plan)
    assert {parameter.device.type for parameter in mine.parameters()} == {device.type}
    with torch.no_grad():
        agree(mine(images.to(device)), pruning.prune(network, images, plan)(images), device)


def test_the_penalty_on_gammas_is_the_cpus(device):
    network = StudentCNN(3, (4, 4, 4, 4), drop_rate=0.0).eval()
    there = copy.deepcopy(network).to(device)
    images = torch.rand(2, 3, 16, 16)
    for one, seen in ((network, images), (there, images.to(device))):
        one(seen).square().sum().backward()
        pruning.add_gamma_l1(one, 0.5)
    agree(there.features[0][1].weight.grad, network.features[0][1].weight.grad, device)
