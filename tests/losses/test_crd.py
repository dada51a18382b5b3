"""CRDLoss by its laws."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import ANY, check_any, check_common, check_finite, check_half_precision, fresh, randn

from kdlab import InputError
from kdlab.losses.contrastive import CRDLoss

N, SAMPLES, NEGATIVES = 4, 30, 12
INDEX = torch.tensor([3, 29, 0, 7])


def crd(**options):
    torch.manual_seed(1)
    sizes = {"student_dim": 5, "teacher_dim": 6, "samples": SAMPLES, "dim": 8, "negatives": NEGATIVES}
    return CRDLoss(**sizes | options)


def features(seed=0, n=N, scale=1.0, dtype=torch.float32):
    return randn(n, 5, seed=seed, scale=scale, dtype=dtype), randn(n, 6, seed=seed + 1, scale=scale, dtype=dtype)


def literal(loss, student, teacher, index):
    """The official formula from gathered rows, one sample at a time; draws its negatives as the loss does."""
    torch.manual_seed(0)
    drawn = torch.randint(loss.samples, (len(index), loss.negatives))
    v_s, v_t = (F.normalize(e(x)) for e, x in ((loss.student_embed, student), (loss.teacher_embed, teacher)))
    pn, eps, total, zs = loss.negatives / loss.samples, 1e-7, 0.0, []
    for side, (v, bank) in enumerate(((v_s, loss.teacher_bank), (v_t, loss.student_bank))):
        rows = torch.cat([index[:, None], drawn], 1).tolist()
        p = torch.stack([(bank[row] @ x / loss.temperature).exp() for row, x in zip(rows, v, strict=True)])
        z = loss.log_z[side].exp()
        zs.append(z if z.isfinite() else p.mean().detach() * loss.samples)
        p = p / zs[-1]
        total -= (p[:, 0] / (p[:, 0] + pn + eps)).log().sum() / len(index)
        total -= (pn / (p[:, 1:] + pn + eps)).log().sum() / len(index)
    return total, v_s.detach(), v_t.detach(), zs


def test_equals_the_literal_formula_in_float64():
    loss, sides = crd().double(), features(dtype=torch.float64)
    torch.testing.assert_close(fresh(loss, *sides, INDEX), literal(loss, *sides, INDEX)[0])
    loss.log_z[:] = torch.tensor([5.0, 1.0])
    torch.testing.assert_close(fresh(loss, *sides, INDEX), literal(loss, *sides, INDEX)[0])


def test_more_negatives_than_samples():
    loss, sides = crd(negatives=200).double(), features(dtype=torch.float64)
    torch.testing.assert_close(fresh(loss, *sides, INDEX), literal(loss, *sides, INDEX)[0])


def test_the_official_settings_are_the_defaults():
    loss = CRDLoss(5, 6, SAMPLES)
    assert (loss.student_embed.out_features, loss.negatives, loss.temperature, loss.momentum) == (128, 16384, 0.07, 0.5)


def test_the_common_laws():
    loss = crd().double()
    loss.log_z[:] = 4.0  # at the first batch Z comes from the batch, as a constant, which finite differences would see
    check_common(loss, *features(dtype=torch.float64), INDEX)
    check_half_precision(crd(), *features(), INDEX)


def test_both_embeddings_learn_and_are_all_that_does():
    loss = crd()
    loss(*features(), INDEX).backward()
    names = {name for name, parameter in loss.named_parameters() if parameter.grad.abs().sum() > 0}
    assert names == {f"{side}_embed.{what}" for side in ("student", "teacher") for what in ("weight", "bias")}


def test_banks_and_z_after_a_step_by_hand():
    loss, sides = crd(momentum=0.25), features()
    before = copy.deepcopy(loss)
    torch.manual_seed(0)
    loss(*sides, INDEX)
    _, v_s, v_t, zs = literal(before, *sides, INDEX)
    for name, v in (("student_bank", v_s), ("teacher_bank", v_t)):
        expected = getattr(before, name).clone()
        for i, row in zip(INDEX.tolist(), v, strict=True):
            moved = 0.25 * expected[i] + 0.75 * row
            expected[i] = moved / moved.norm()
        torch.testing.assert_close(getattr(loss, name), expected)
        assert not getattr(loss, name).requires_grad
    torch.testing.assert_close(loss.log_z, torch.stack(zs).log())
    log_z = loss.log_z.clone()
    loss(*features(5), INDEX)
    assert torch.equal(loss.log_z, log_z)  # fixed at the first batch


def test_z_is_of_the_samples_of_all_processes(monkeypatch):
    loss, sides = crd(), features()
    alone = fresh(copy.deepcopy(loss), *sides, INDEX)
    mine = copy.deepcopy(loss)
    fresh(mine, *sides, INDEX)
    # Another process, whose similarities are greater by 3.
    monkeypatch.setattr("kdlab.losses.contrastive.joined", lambda x: torch.cat([x, x + 3]) if len(x) == 2 else x)
    assert fresh(loss, *sides, INDEX) != alone
    torch.testing.assert_close(loss.log_z.exp(), mine.log_z.exp() * (1 + math.exp(3)) / 2)


def test_the_backward_pass_uses_the_banks_of_the_forward_pass():
    loss, (student, teacher) = crd(momentum=0.0), features()
    sides = student.clone().requires_grad_(), student.clone().requires_grad_()
    fresh(loss, sides[0], teacher, INDEX).backward()
    fresh(loss.eval(), sides[1], teacher, INDEX).backward()
    torch.testing.assert_close(sides[0].grad, sides[1].grad)


def test_evaluation_changes_nothing():
    loss = crd().eval()
    before = copy.deepcopy(loss.state_dict())
    assert loss(*features(), INDEX).isfinite()
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())
    assert loss.log_z.isinf().all()


def test_a_checkpoint_resumes_to_the_bit():
    loss = crd()
    for seed in range(3):
        loss(*features(seed), INDEX)
    saved = copy.deepcopy(loss.state_dict())
    torch.manual_seed(7)
    expected = [loss(*features(seed), INDEX) for seed in (8, 9)]
    other = crd()
    other.load_state_dict(saved)
    torch.manual_seed(7)
    assert [other(*features(seed), INDEX) for seed in (8, 9)] == expected
    assert {"student_bank", "teacher_bank", "log_z"} <= set(saved)


def test_it_moves_and_is_copied_with_all_that_it_remembers():
    """In a library the moves of the sampler's tables are lost, and without given negatives it cannot draw at all."""
    loss = crd()
    loss(*features(), INDEX)
    moved = copy.deepcopy(loss).to("meta")
    assert {x.device.type for x in (*moved.parameters(), *moved.buffers())} == {"meta"}
    assert {x.dtype for x in copy.deepcopy(loss).double().buffers()} == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_compares_in_float32_and_remembers_in_its_own(dtype):
    loss = crd().to(dtype)
    for seed in range(2):
        value = loss(*features(seed, dtype=dtype), INDEX)
        assert value.dtype == torch.float32
        assert value.isfinite()
    assert {x.dtype for x in loss.buffers()} == {dtype}


def test_the_banks_begin_uniform_as_the_official_ones():
    loss = crd(samples=2000, dim=12)
    for bank in (loss.student_bank, loss.teacher_bank):
        assert bank.abs().max() <= 0.5  # 1 / sqrt(12 / 3)
        assert bank.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.02)


def test_training_tells_a_sample_from_the_others():
    loss, (student, teacher) = crd(negatives=20), features(n=30)
    student = student.requires_grad_()
    optimiser = torch.optim.Adam([student, *loss.parameters()], lr=0.02)
    values = []
    for _ in range(100):
        value = loss(student, teacher, torch.arange(30))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert sum(values[-10:]) < 0.8 * sum(values[:10])


@pytest.mark.parametrize("temperature", [0.001, 0.07, 100.0])
def test_finite_at_extremes(temperature):
    for dtype in (torch.float16, torch.float32):
        same = [torch.full((N, d), 6e4, dtype=dtype) for d in (5, 6)]
        check_finite(crd(temperature=temperature), *same, INDEX)
        check_finite(crd(temperature=temperature), *(0 * x for x in same), INDEX)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 9), T=st.floats(0.01, 10), negatives=st.integers(1, 50), **ANY)
def test_any_input_gives_a_finite_value_or_a_refusal(n, T, negatives, scale, dtype, seed):
    index = torch.randint(SAMPLES, (n,), generator=torch.Generator().manual_seed(seed))
    check_any(crd(temperature=T, negatives=negatives), *features(seed, n, scale, dtype), index)


def test_what_does_not_fit_is_refused(shapes_unchecked):
    student, teacher = features()
    for index, words in ((INDEX + 1, "numbers from 1 to 30; all must be of 0 to 29"), (INDEX[:2], r"index is \(2,\)")):
        with pytest.raises(InputError, match=words):
            crd()(student, teacher, index)
    with pytest.raises(InputError, match=r"index is on meta and the network's output on cpu.*index.to\('cpu'\)"):
        crd()(student, teacher, INDEX.to("meta"))
    with pytest.raises(InputError, match="dtype torch.float32; wanted: integers"):
        crd()(student, teacher, INDEX.float())
    with pytest.raises(InputError, match="teacher's features have width 5.*teacher_dim=6"):
        crd()(student, student, INDEX)
    for wrong in ({"momentum": 1.5}, {"temperature": 0.0}, {"samples": 0}, {"negatives": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            crd(**wrong)
