"""How long past runs took: kept, mixed, and never in the way."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.history import Speed
from txt2img.request.request import Request, Sampler

SPEED = Speed(look=2.0, rest=1.0, load=3.0, base=4e8, memory=1e9)
REQUEST = Request("", width=504, height=400, steps=10, cfg=7.0, sampler=Sampler.EULER)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_a_speed_is_kept_and_read_again() -> None:
    assert history.read() == {}
    history.note("a", SPEED)
    history.note("b", replace(SPEED, look=9.0))
    assert history.read() == {"a": SPEED, "b": replace(SPEED, look=9.0)}
    assert [path.name for path in history.place().parent.iterdir()] == ["speeds.json"]


def test_runs_are_averaged_and_later_ones_count_more_in_the_end() -> None:
    for look in (1.0, 2.0, 3.0):
        history.note("a", replace(SPEED, look=look))
    mean = history.read()["a"]
    assert mean.look == pytest.approx(2.0) and mean.runs == 3
    for _ in range(30):
        history.note("a", replace(SPEED, look=5.0))
    assert history.read()["a"].look == pytest.approx(5.0, abs=0.001)


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
    ],
)
def test_a_picture_takes_as_long_as_its_looks_and_pixels(
    change: dict[str, object], looks: int
) -> None:
    request = Request.from_json({**REQUEST.to_json(), **change})
    assert history.looks(request) == pytest.approx(looks)
    assert history.seconds(SPEED, request) == pytest.approx(0.2016 * (2.0 * looks + 1.0))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"version": 2, "speeds": {}}',
        b'{"version": 1, "speeds": []}',
        b'{"version": 1, "speeds": {"a": 1}}',
        b'{"version": 1, "speeds": {"a": {"look": "x", "rest": 1}}}',
        b'{"version": 1, "speeds": {"a": {"look": -1, "rest": 1}}}',
        b'{"version": 1, "speeds": {"a": {"look": 1, "rest": 1, "more": 1}}}',
    ],
)
def test_a_file_that_cannot_be_believed_is_none(content: bytes) -> None:
    history.place().parent.mkdir(parents=True)
    history.place().write_bytes(content)
    assert history.read() == {}
    history.note("a", SPEED)
    assert history.read() == {"a": SPEED}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_no_error(home: Path) -> None:
    home.chmod(0o500)
    history.note("a", SPEED)
    home.chmod(0o700)
    assert history.read() == {}


def test_a_file_in_place_of_the_folder_is_no_error(home: Path) -> None:
    (home / "state").write_text("")
    history.note("a", SPEED)
    assert history.read() == {}


def test_nothing_but_figures_is_kept() -> None:
    history.note(history.key("Stable Diffusion 1", 859_520_964, "cpu", "float32"), SPEED)
    [(key, row)] = json.loads(history.place().read_text())["speeds"].items()
    assert key == "Stable Diffusion 1, 859.5M | cpu | float32"
    assert set(row) == {"look", "rest", "load", "base", "memory", "runs"}
    merged = history.key("Stable Diffusion 1", 859_520_964, "cpu", "float32", 0.5)
    assert merged == f"{key} | merging 0.5"


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEYS_MAX", 3)
    for name in ("a", "b", "c", "a", "d"):
        history.note(name, SPEED)
    assert list(history.read()) == ["c", "a", "d"]
