"""The comparison of chapter 10: every method trains, with one budget, and is kept where that is asked for."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kdlab import InputError
from kdlab.data.pairs import PairedImages
from kdlab.data.weather_photos import load_haze
from kdlab.models import KTDN, SRKTDN, DehazingTeacher
from kdlab.recipes import haze
from kdlab.recipes.dehazing import FAST, NARROW, NARROW_TEACHER
from kdlab.recipes.haze import METHODS, HazeRun, budget
from kdlab.training import Fit, ModelCard

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    found = load_haze(crop=32, variants=1)
    return replace(found, val=found.val.only(["homogeneous"]))


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return DehazingTeacher(**NARROW_TEACHER)


def run(method, **options):
    return HazeRun(method, METHODS[method], seed=0, **{"epochs": 1} | options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_its_name_says(method, data, teacher):
    student, done = run(method).run(data, teacher)
    assert type(student) is (SRKTDN if method in ("super-resolution", "both") else KTDN)
    assert ("transfer" in done.history) == (method in ("knowledge transfer", "both"))
    assert done.history.total.notna().all()


def test_few_photographs_with_hazy_twins_are_seen_in_as_many_steps(data, teacher, monkeypatch):
    seen, load = [], PairedImages.__getitem__

    def noted(pairs, place):
        if pairs.crop is not None:  # in training
            seen.append(pairs.pairs[place].name.split("_")[0])
        return load(pairs, place)

    monkeypatch.setattr(PairedImages, "__getitem__", noted)
    steps = []
    for photographs in (8, 4):
        seen.clear()
        run("alone", photographs=photographs).run(data, teacher)
        assert len(set(seen)) == photographs
        steps.append(len(seen))
    assert steps[0] == steps[1]


def test_weight_seed_and_budget_are_what_the_run_says(data, teacher, monkeypatch):
    given, nothing = [], (KTDN(**NARROW), Fit(pd.DataFrame(), {}, "epochs"))
    monkeypatch.setattr(haze, "distill", lambda *words, **_: given.append(words) or nothing)
    for seed in (0, 5):
        HazeRun("both", 0.25, seed, photographs=2, epochs=7, lr=1e-3).run(data, teacher)
    for seed, (seen, _, plan, settings) in zip((0, 5), given, strict=True):
        assert (plan.transfer, settings.seed, settings.epochs, settings.lr) == (0.25, seed, 7, 1e-3)
        assert len({pair.name for pair in seen.train.pairs}) == 2
    one, other = ({pair.name for pair in seen.train.pairs} for seen, *_ in given)
    assert one != other


def test_a_run_starts_at_random_and_is_kept_only_where_that_is_asked_for(data, teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    given, nothing = {}, (KTDN(**NARROW), Fit(pd.DataFrame(), {}, "epochs"))
    monkeypatch.setattr(haze, "distill", lambda *_, **options: given.update(options) or nothing)
    one = run("both")
    for keep, out in ((False, None), (True, one.folder(data, teacher))):
        one.run(data, teacher, keep=keep, after_epoch=bool)
        assert (given["out"], given["after_epoch"], given["weights"]) == (out, bool, "none")


def test_a_budget_is_the_fast_profiles_drawn_out():
    assert budget(FAST.epochs) == FAST
    for epochs in (3, 36):
        settings = budget(epochs)
        ends = [each.rate(each.epochs + 1, each.lr) / each.lr for each in (settings, FAST)]
        assert ends[0] == pytest.approx(ends[1])
        assert settings.freeze_from == round(0.75 * epochs)


def test_a_run_that_is_kept_is_not_made_again(data, teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    first, done = run("both").run(data, teacher, keep=True)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("it trains again"))
    second, again = run("both").run(data, teacher, keep=True)
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    assert again.history.equals(done.history)


def test_a_folder_is_one_runs_and_without_a_teacher_does_not_depend_on_it(data, teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    torch.manual_seed(9)
    other = DehazingTeacher(**NARROW_TEACHER)
    for method in METHODS:
        same = run(method).folder(data, teacher) == run(method).folder(data, other)
        assert same == (method in ("alone", "super-resolution"))
    runs = [run(method, **more) for method in METHODS for more in ({}, {"epochs": 2}, {"lr": 1e-3}, {"photographs": 2})]
    assert len({one.folder(data, teacher) for one in runs}) == len(runs)


def test_a_folder_is_of_one_seed_one_weight_and_one_data_set(data, teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    one = run("both")
    runs = [(one, data), (replace(one, seed=1), data), (replace(one, weight=0.5), data)]
    runs += [(one, replace(data, name="other")), (one, replace(data, size=48))]
    assert len({each.folder(seen, teacher) for each, seen in runs}) == len(runs)


def test_the_teacher_and_seed_0_have_budgets_of_their_own(data, teacher, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    given, card = [], ModelCard({}, (), (0.0,) * 3, (1.0,) * 3, 32)
    networks = {"clean_teacher": teacher, "dehazer_both": KTDN((16, 32, 128), (1, 1, 1), 2)}
    monkeypatch.setattr(haze, "course_model", lambda name, train, *_: (train(), (networks[name], card))[1])
    monkeypatch.setattr(haze, "load_haze", lambda: data)
    monkeypatch.setattr(haze, "teach", lambda data, settings, **options: given.append((settings, options)))
    monkeypatch.setattr(haze.HazeRun, "run", lambda *words, **_: given.append(words))
    monkeypatch.setattr(haze.HazeRun, "folder", lambda *_: tmp_path)
    haze.haze_student("both")
    (settings, options), (one, _, _) = given
    assert settings == budget(haze.TEACHER_EPOCHS)
    assert (options["architecture"], options["weights"]) == (NARROW_TEACHER, "none")
    assert one == HazeRun("both", haze.TRANSFER, seed=0, epochs=haze.EPOCHS, lr=haze.LR)


def test_teacher_and_students_are_trained_where_they_did_not_come_with_the_course(data, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_RETRAIN", "1")
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(haze, "load_haze", lambda: data)
    monkeypatch.setattr(haze, "TEACHER_EPOCHS", 2)
    monkeypatch.setattr(haze, "EPOCHS", 2)
    taught, card = haze.clean_teacher()
    assert card.recipe["task"] == "auto-encode"
    student, card = haze.haze_student("both")
    assert card.recipe["teacher"] is not None
    assert card.metrics["epoch"] == 2  # the last, not the best
    torch.testing.assert_close(haze.haze_student("both")[0].state_dict(), student.state_dict())
    torch.testing.assert_close(haze.clean_teacher()[0].state_dict(), taught.state_dict())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "bot", "weight": 1.0}, "unknown method 'bot'. Did you mean 'both'"),
        ({"method": "both", "weight": 0.0}, "the weight of 'both' is 0.0; wanted: a weight above 0"),
        ({"method": "alone", "weight": 1.0}, "the weight of 'alone' is 1.0; wanted: 0: it has no teacher"),
        ({"method": "both", "weight": -1.0}, "weight is -1.0"),
        ({"method": "both", "weight": 1.0, "photographs": 9}, "photographs is 9; wanted: from 1 to 8"),
    ],
)
def test_what_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        HazeRun(seed=0, **options)


def test_an_unknown_student_is_refused():
    with pytest.raises(InputError, match="unknown method 'super'"):
        haze.haze_student("super")
