"""How long past runs took: kept, mixed, and never in the way."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.history import Speed
from txt2img.request import Request, Sampler

SPEED = Speed(per_evaluation=2.0, other=1.0, load=3.0, base=4e8, memory=1e9)
REQUEST = Request("", width=504, height=400, steps=10, cfg=7.0, sampler=Sampler.EULER)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_a_speed_is_kept_and_read_again() -> None:
    assert history.read() == {}
    history.record("a", SPEED)
    history.record("b", replace(SPEED, per_evaluation=9.0))
    assert history.read() == {"a": SPEED, "b": replace(SPEED, per_evaluation=9.0)}
    assert [path.name for path in history.path().parent.iterdir()] == ["speeds.json"]


def test_runs_are_averaged_and_later_ones_count_more_in_the_end() -> None:
    for look in (1.0, 2.0, 3.0):
        history.record("a", replace(SPEED, per_evaluation=look))
    mean = history.read()["a"]
    assert mean.per_evaluation == pytest.approx(2.0) and mean.runs == 3
    for _ in range(30):
        history.record("a", replace(SPEED, per_evaluation=5.0))
    assert history.read()["a"].per_evaluation == pytest.approx(5.0, abs=0.001)


def test_what_a_run_did_not_measure_stays() -> None:
    assert history.mixed(SPEED, replace(SPEED, memory=0.0, load=5.0)) == replace(
        SPEED, load=4.0, runs=2
    )


@pytest.mark.parametrize(
    ("change", "looks"),
    [
        ({}, 20),
        ({"cfg": 1.0}, 10),
        ({"sampler": Sampler.HEUN}, 38),
        ({"steps": 5}, 10),
        ({"reuse": 2}, 11),
        ({"cfg_interval": {"low": 0.2, "high": 1.0}}, 18),
        ({"prompt": "a AND b", "cfg": 1.0}, 30),
        ({"controls": ["a:b:1:0..0.5", "c:d:0"]}, 24),
    ],
)
def test_a_picture_takes_as_long_as_its_looks_and_pixels(
    change: dict[str, object], looks: int
) -> None:
    request = Request.from_json({**REQUEST.to_json(), **change})
    assert history.evaluations(request) == pytest.approx(looks)
    assert history.seconds(SPEED, request) == pytest.approx(0.2016 * (2.0 * looks + 1.0))


def test_a_second_pass_costs_what_its_larger_size_does() -> None:
    request = replace(REQUEST, hires=2.0, hires_strength=0.5)
    costs = history.costs(request)
    first, second = costs[:10], costs[10:]
    assert first == pytest.approx([2 / 4] * 10) and second == pytest.approx([2.0] * 5)
    pixels = 1008 * 800 / 1e6
    assert history.megapixels(request) == pytest.approx(pixels)
    assert history.seconds(SPEED, request) == pytest.approx(pixels * (2.0 * (5 + 10) + 1.0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"version": 3, "speeds": {}}',
        b'{"version": 2, "speeds": []}',
        b'{"version": 2, "speeds": {"a": 1}}',
        b'{"version": 2, "speeds": {"a": {"per_evaluation": "x", "other": 1}}}',
        b'{"version": 2, "speeds": {"a": {"per_evaluation": -1, "other": 1}}}',
        b'{"version": 2, "speeds": {"a": {"per_evaluation": 1, "other": 1, "more": 1}}}',
    ],
)
def test_a_file_that_cannot_be_believed_is_none(content: bytes) -> None:
    history.path().parent.mkdir(parents=True)
    history.path().write_bytes(content)
    assert history.read() == {}
    history.record("a", SPEED)
    assert history.read() == {"a": SPEED}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_error(home: Path) -> None:
    home.chmod(0o500)
    history.record("a", SPEED)
    home.chmod(0o700)
    assert history.read() == {}


def test_a_file_in_place_of_the_folder_is_no_error(home: Path) -> None:
    (home / "state").write_text("")
    history.record("a", SPEED)
    assert history.read() == {}


def test_nothing_but_figures_is_kept() -> None:
    history.record(history.key("Stable Diffusion 1", 859_520_964, "cpu", "float32"), SPEED)
    [(key, row)] = json.loads(history.path().read_text())["speeds"].items()
    assert key == "Stable Diffusion 1, 859.5M | cpu | float32"
    assert set(row) == {"per_evaluation", "other", "load", "base", "memory", "runs"}
    merged = history.key("Stable Diffusion 1", 859_520_964, "cpu", "float32", 0.5)
    assert merged == f"{key} | merging 0.5"


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEYS_MAX", 3)
    for name in ("a", "b", "c", "a", "d"):
        history.record(name, SPEED)
    assert list(history.read()) == ["c", "a", "d"]
