"""The comparison of chapters 07 to 09: every method trains, on what it is allowed to see."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.data.photos import SPLITS
from kdlab.data.weather import WEATHERS
from kdlab.data.weather_photos import load_weather
from kdlab.models import MSBDN
from kdlab.recipes import weather
from kdlab.recipes.weather import METHODS, NARROW, WeatherRun
from kdlab.training import Fit, ModelCard
from kdlab.training.checkpoints import LAST

pytestmark = pytest.mark.usefixtures("one_thread")


class OneMap(nn.Module):
    """In VGG19's place: five times the image."""

    def forward(self, images):
        return [images] * 5


@pytest.fixture(scope="module")
def course():
    torch.manual_seed(0)
    data = load_weather(crop=32, variants=1)
    few = replace(data, val=data.val.only(["rain"]))
    return few, {name: MSBDN(2, residual=True) for name in WEATHERS}, OneMap()


def run(method, **options):
    return WeatherRun(method, seed=0, epochs=2, batch_size=24, width=2, **options)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, course):
    student, done = run(method).run(*course)
    assert len(done.history) == 2
    assert done.history.total.notna().all()
    assert student.architecture == {"name": "MSBDN", "width": 2, "residual": True}
    collated = {name for name in done.history if name.startswith(("image_", "ckt_", "scr_"))}
    assert bool(collated) == bool(METHODS[method].collation)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("from scratch", {"collation": 0.0, "hcr": 0.0}),
        ("from scratch + HCR", {"collation": 0.0}),
        ("one stage", {"collation": 1.0}),
        ("two stages", {}),
        ("without CKT", {"ckt": 0.0}),
        ("without SCR", {"scr": 0.0}),
        ("without HCR", {"hcr": 0.0}),
        ("without HCR, half the rate", {"hcr": 0.0}),
    ],
)
def test_a_method_changes_what_its_name_says_and_nothing_else(method, changes):
    names = ("collation", "image", "ckt", "scr", "hcr", "pixel")
    mine, two_stages = ({name: getattr(METHODS[one], name) for name in names} for one in (method, "two stages"))
    assert mine == two_stages | changes
    assert WeatherRun(method, seed=0).plan is METHODS[method]


def test_the_baselines_differ_in_the_distance_alone():
    plans = {method: METHODS[method] for method in METHODS if method.startswith("from scratch,")}
    pixels = {method: plan.pixel for method, plan in plans.items()}
    assert set(pixels.values()) == {"l1", "mse"}
    assert pixels["from scratch, squared error"] == "mse"
    assert all(replace(plan, pixel="l1") == METHODS["from scratch"] for plan in plans.values())


def test_few_photographs_have_clean_images_and_the_seed_says_which(course):
    data = course[0]
    photographs = [
        {data.train.pairs[i].name.split("_")[0] for i in WeatherRun("two stages", seed, photographs=2)._paired(data)}
        for seed in range(5)
    ]
    assert all(len(names) == 2 and names <= set(SPLITS["train"]) for names in photographs)
    assert len(set(map(frozenset, photographs))) > 1
    assert run("two stages")._paired(data) is None
    _, done = replace(run("two stages", photographs=3), batch_size=9).run(*course)
    assert done.history.total.notna().all()


def test_the_student_learns_from_the_clean_images_of_these_photographs_alone(course, monkeypatch):
    given, nothing = {}, (nn.Identity(), Fit(pd.DataFrame(), {}, "epochs"))
    monkeypatch.setattr(weather, "distill", lambda *_, **options: given.update(options) or nothing)
    few = run("two stages", photographs=3)
    few.run(*course)
    assert given["paired"] == few._paired(course[0])


def test_the_budget_is_what_the_run_says(course, monkeypatch):
    given, nothing = [], (nn.Identity(), Fit(pd.DataFrame(), {}, "epochs"))
    monkeypatch.setattr(weather, "distill", lambda *given_, **_: given.append(given_[-1]) or nothing)
    for one in (run("two stages", lr=1e-3, max_norm=0.25), WeatherRun("two stages", seed=3, epochs=1)):
        one.run(*course)
        (settings,) = given
        for name in ("epochs", "batch_size", "lr", "max_norm", "seed"):
            assert getattr(settings, name) == getattr(one, name), name
        given.clear()
    assert WeatherRun("two stages", seed=0).max_norm == 0.5


def test_the_rate_rises_over_two_epochs_at_most_and_the_students_look_is_handed_on(course, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    given, nothing = [], (nn.Identity(), Fit(pd.DataFrame(), {}, "epochs"))
    monkeypatch.setattr(weather, "distill", lambda *words, **options: given.append((words[-1], options)) or nothing)
    for epochs, warm_up in ((8, 2), (2, 1), (1, 0)):
        WeatherRun("two stages", seed=0, epochs=epochs, width=6).run(*course, after_epoch=bool)
        settings, options = given.pop()
        assert settings.warm_up == warm_up
        assert options["architecture"] == {"width": 6, "residual": True}
        assert (options["after_epoch"], options["out"]) == (bool, None)


def test_a_teacher_has_its_weathers_distance_and_the_teachers_crop(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    given, places, nothing = [], [], (MSBDN(2), ModelCard({}, (), (0.0,) * 3, (1.0,) * 3, 32))
    monkeypatch.setattr(weather, "course_model", lambda _, train, *__: places.append(train()) or nothing)
    monkeypatch.setattr(weather, "load_weather", lambda crop: SimpleNamespace(crop=crop))
    monkeypatch.setattr(weather, "recipe_of", lambda *_, **what: what)
    monkeypatch.setattr(weather, "teach", lambda *words, **options: given.append((*words, options)))
    assert weather.weather_teachers().keys() == set(WEATHERS)
    assert len(set(places)) == 3
    for kind, place, (data, weathers, settings, options) in zip(WEATHERS, places, given, strict=True):
        assert (data.crop, weathers, settings) == (weather.TEACHER_CROP, [kind], weather.TEACHER)
        assert options["pixel"] == weather.TEACHER_PIXEL[kind]
        assert options["out"] == place


def test_the_courses_student_is_a_long_run_of_seed_0_with_the_features_of_its_name(monkeypatch, tmp_path):
    given, nothing = [], (MSBDN(2), ModelCard({}, (), (0.0,) * 3, (1.0,) * 3, 32))
    monkeypatch.setattr(weather, "course_model", lambda _, train, *__: given.append(train()) or nothing)
    monkeypatch.setattr(weather, "load_weather", lambda: "data")
    monkeypatch.setattr(weather, "weather_teachers", lambda device: {})
    monkeypatch.setattr(weather, "feature_slices", lambda weights: given.append(weights) or nn.Identity())
    monkeypatch.setattr(WeatherRun, "run", lambda one, *_, **options: given.append((one, options)))
    monkeypatch.setattr(WeatherRun, "folder", lambda *_: tmp_path)
    weather.weather_student("from scratch")
    long = WeatherRun("from scratch", seed=0, epochs=weather.LONG)
    assert given == ["scenes", (long, {"keep": True}), tmp_path / LAST]


def test_one_stage_learns_the_same_from_however_few_clean_images(course):
    runs = (replace(run("one stage", photographs=count), batch_size=9) for count in (3, 8))
    one, other = (one.run(*course)[0].state_dict() for one in runs)
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_run_that_is_kept_is_not_made_again(course, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    first, done = run("from scratch").run(*course, keep=True)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("it trains again"))
    second, again = run("from scratch").run(*course, keep=True)
    torch.testing.assert_close(first.state_dict(), second.state_dict())
    assert again.history.equals(done.history)


def test_a_run_without_teachers_does_not_depend_on_them(course, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    data, teachers, _ = course
    torch.manual_seed(9)
    others = {name: MSBDN(2) for name in WEATHERS}
    for method, same in (("from scratch", True), ("two stages", False)):
        assert (run(method).folder(data, teachers) == run(method).folder(data, others)) == same


def test_a_folder_is_one_runs(course, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    changes = ({}, {"seed": 1}, {"epochs": 3}, {"lr": 1e-3}, {"photographs": 2}, {"max_norm": 1.0}, {"width": 4})
    runs = [replace(run("from scratch"), **change) for change in changes] + [run("from scratch, longer")]
    assert len({one.folder(*course[:2]) for one in runs}) == len(runs)


def test_a_folder_is_of_one_data_set_and_one_plan(course, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    data, teachers, _ = course
    one = run("two stages")
    folders = [one.folder(seen, teachers) for seen in (data, replace(data, size=48), replace(data, name="other"))]
    monkeypatch.setitem(METHODS, "two stages", replace(METHODS["two stages"], eps=0.5))
    assert len({*folders, one.folder(data, teachers)}) == 4


def test_teachers_and_students_are_trained_where_they_did_not_come_with_the_course(course, monkeypatch, tmp_path):
    monkeypatch.setenv("KDLAB_RETRAIN", "1")
    monkeypatch.setenv("KDLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(weather, "load_weather", lambda *crop: course[0])
    monkeypatch.setattr(weather, "TEACHER", replace(weather.TEACHER, epochs=1, batch_size=8, warm_up=0))
    monkeypatch.setattr(weather, "LONG", 2)
    monkeypatch.setattr(weather, "feature_slices", lambda weights: OneMap())
    teacher, card = weather.weather_teacher("rain")
    assert card.classes == ("rain",)
    assert teacher.architecture == {"name": "MSBDN", **NARROW}
    monkeypatch.setattr(weather, "weather_teachers", lambda device: course[1])
    student, card = weather.weather_student("from scratch")
    assert card.classes == WEATHERS
    assert card.metrics["epoch"] == 2  # the last, not the best
    torch.testing.assert_close(weather.weather_student("from scratch")[0].state_dict(), student.state_dict())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "two stage"}, "'two stage'. Did you mean 'two stages'"),
        ({"method": "two stages", "photographs": 0}, "photographs is 0; wanted: from 1 to 8"),
        ({"method": "two stages", "photographs": 9}, "photographs is 9"),
    ],
)
def test_what_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        WeatherRun(seed=0, **options)
