"""The widgets of chapter 01 without a browser: pure functions first, then the thin views."""

import re
import threading

import pytest
import torch
import torch.nn.functional as F

from kdlab.classroom.response import LiveDistillation, alpha_explorer, pull, soften, temperature_explorer

TEACHER, STUDENT = torch.randn(4, 5) * 3, torch.randn(4, 5)
LABELS = torch.tensor([0, 3, 2, 2])
CLASSES = tuple("abcde")


def test_softened_answers_are_the_softmax_their_entropy_and_their_divergence():
    seen = soften(TEACHER[0], STUDENT[0], 3.0)
    p_t, p_s = (F.softmax(z[0] / 3, dim=0) for z in (TEACHER, STUDENT))
    torch.testing.assert_close(seen.teacher, p_t)
    torch.testing.assert_close(seen.student, p_s)
    assert seen.teacher_entropy == pytest.approx(-(p_t * p_t.log()).sum().item(), abs=1e-5)
    assert seen.kl == pytest.approx((p_t * (p_t / p_s).log()).sum().item(), abs=1e-5)


def test_entropy_rises_with_temperature_up_to_the_logarithm_of_the_classes():
    entropies = [soften(TEACHER[0], STUDENT[0], T).teacher_entropy for T in (0.25, 1.0, 4.0, 20.0, 1e4)]
    assert entropies == sorted(entropies)
    assert entropies[-1] == pytest.approx(torch.tensor(5.0).log().item(), abs=1e-4)


def test_the_pull_is_minus_the_gradient_of_the_weighted_losses():
    seen = pull(STUDENT, TEACHER, LABELS, index=1, temperature=2.0, alpha=0.4)
    hard = F.one_hot(LABELS[1], 5) - F.softmax(STUDENT[1], dim=0)
    soft = 2.0 * (F.softmax(TEACHER[1] / 2, dim=0) - F.softmax(STUDENT[1] / 2, dim=0))
    torch.testing.assert_close(seen.from_labels, 0.6 * hard)
    torch.testing.assert_close(seen.from_teacher, 0.4 * soft)
    assert -1 <= seen.cosine <= 1


def test_label_and_teacher_pull_alike_where_the_teacher_says_the_label():
    certain = F.one_hot(LABELS, 5) * 50.0
    assert pull(STUDENT, certain, LABELS, 0, temperature=1.0, alpha=0.5).cosine == pytest.approx(1, abs=1e-4)


def test_moving_the_temperature_redraws_the_view():
    panel = temperature_explorer(torch.randn(4, 3, 8, 8), TEACHER, STUDENT, LABELS, CLASSES)
    before = panel.view.value
    panel.temperature.value = 7.0
    assert "T = 7" in panel.view.value
    assert before != panel.view.value
    panel.image.value = 2
    bars = re.findall(r"teacher, \w: ([\d.]+)", panel.view.value)
    torch.testing.assert_close(torch.tensor([float(b) for b in bars]), F.softmax(TEACHER[2] / 7, 0), atol=6e-4, rtol=0)


def test_alpha_explorer_shows_both_parts_and_their_sum():
    panel = alpha_explorer(TEACHER, STUDENT, LABELS, CLASSES)
    panel.alpha.value = 0.25
    assert "0.75 × cross-entropy" in panel.view.value
    assert "0.25 × KD" in panel.view.value


def test_a_panel_without_a_kernel_says_what_it_is():
    panel = alpha_explorer(TEACHER, STUDENT, LABELS, CLASSES)
    assert "run the notebook" in panel._repr_mimebundle_()["text/plain"]


def fake_training(epochs=10, gate=None):
    def train(labels, temperature, alpha, after_epoch):
        for epoch in range(1, epochs + 1):
            if gate:
                gate.wait(5)
            if after_epoch({"epoch": epoch, "val_accuracy": epoch / 20}):
                break
        return 0.5

    return train


def test_a_live_run_draws_a_curve_and_ends_with_its_accuracy():
    live = LiveDistillation(fake_training(), epochs=10)
    live.start()
    live.wait()
    assert "Done after 10 epochs: 50.0%" in live.view.value
    (curve,) = live.runs.values()
    assert curve[-1] == (10, 0.5)
    assert not live.start_button.disabled
    assert live.stop_button.disabled


def test_stop_ends_a_live_run_with_its_epoch():
    gate = threading.Event()
    live = LiveDistillation(fake_training(1000, gate), epochs=1000)
    live.start()
    assert live.start_button.disabled
    live.start()  # a second press while it runs does nothing
    assert len(live.runs) == 1
    live.stop()
    gate.set()
    live.wait()
    assert "Stopped after 1 epochs" in live.view.value


def test_what_goes_wrong_in_a_live_run_is_shown():
    def broken(*_):
        raise ValueError("no teacher")

    live = LiveDistillation(broken, epochs=10)
    live.start()
    live.wait()
    assert "failed: no teacher" in live.view.value
    assert not live.start_button.disabled
