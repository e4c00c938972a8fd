"""Guidance in a part of the way: what it is written as, where it holds, what travels with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Command
from tests.diffusion.test_guidance import Mock
from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Predictor, guided
from txt2img.diffusion.levels import Diffusion, betas
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.errors import BadRequest
from txt2img.images import image_file
from txt2img.images.metadata.a1111 import describe, to_request
from txt2img.images.metadata.a1111 import parse as read
from txt2img.pipeline.denoiser import guidance_scale
from txt2img.request import Defaults, Sampler, Schedule
from txt2img.request.interval import Interval, parse_interval
from txt2img.request.prompt_line import from_line
from txt2img.request.request import Request
from txt2img.weights.families import SD15

PROCESS = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))


@pytest.mark.parametrize(
    ("text", "low", "high"), [("0.2..0.8", 0.2, 0.8), ("..0.5", 0, 0.5), (" .1.. ", 0.1, 1)]
)
def test_an_interval_is_written_lo_hi(text: str, low: float, high: float) -> None:
    assert parse_interval(text) == Interval(low, high)


@pytest.mark.parametrize("text", ["", "0.5", "a..b", "0.8..0.2", "0.5..0.5", "-1..1", "0..nan"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="interval"):
        parse_interval(text)


@pytest.mark.parametrize("value", [{"low": 0.5}, {"low": "0", "high": 1}, 5, [0, 2], [0]])
def test_a_record_that_is_no_interval_is_refused(value: object) -> None:
    with pytest.raises(BadRequest, match="interval"):
        Request.from_json({"prompt": "x", "cfg_interval": value})


def test_an_interval_travels_with_its_request() -> None:
    made = Request.from_json({"prompt": "x", "cfg_interval": "0.25..0.75"})
    assert made.cfg_interval == Interval(0.25, 0.75)
    assert Request.from_json(json.loads(json.dumps(made.to_json()))) == made
    told = str(describe(made, "m", "0", "1"))
    assert "CFG interval: 0.25..0.75" in told
    assert to_request(read(told))[0].cfg_interval == made.cfg_interval
    assert from_line("x --cfg-interval 0.25..0.75", Request("")) == made


def test_a_picture_with_an_interval_is_written_and_repeated(draw: Command) -> None:
    line = ("a cat", "--cfg-interval", "0.2..0.8", "--seed", "1", "--json", "-o", "a.png")
    outcome = draw(*line)
    assert outcome.code == 0, outcome.err
    found = image_file.read(Path("a.png")).request
    assert found is not None and found.cfg_interval == Interval(0.2, 0.8)
    assert draw("--params-from", "a.png", "-q", "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_all_of_the_way_overrides_a_models_interval() -> None:
    narrow = Defaults(64, 64, 4, 7.0, Sampler.DDIM, Schedule.KARRAS, 0.7, Interval(0.0, 0.3))
    whole = Request.from_json({"prompt": "x", "cfg_interval": "0..1", "cfg_rescale": 0})
    assert Request("x").filled(narrow).cfg_interval == Interval(0.0, 0.3)
    assert Request("x").filled(narrow).cfg_rescale == 0.7
    assert whole.filled(narrow).cfg_interval == Interval(0.0, 1.0)
    assert whole.filled(narrow).cfg_rescale == 0


def scale(interval: Interval | None) -> Callable[[float], float]:
    """The strength at a time of the process, under an interval."""
    found = guidance_scale(SD15, Request("x", cfg=7.0, cfg_interval=interval), PROCESS)
    return lambda time: found(PROCESS.level(time)) if callable(found) else found


def test_guidance_holds_from_one_end_to_the_other() -> None:
    at = scale(Interval(0.25, 0.75))
    assert [at(time) for time in (999, 760, 740, 500, 260, 240, 0)] == [1, 1, 7, 7, 7, 1, 1]
    assert scale(Interval(0, 0.5))(999) == scale(Interval(0.5, 1))(0) == 7.0
    assert scale(None)(999) == scale(None)(0) == 7.0


def test_steps_outside_take_one_pass_and_equal_no_guidance() -> None:
    net = Mock()
    predict = Predictor(net, PROCESS, PREDICTIONS["eps"])
    told, other = Cond(torch.full((1, 2, 3), 0.5)), Cond(torch.full((1, 2, 3), -0.25))
    x, late = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4), PROCESS.level(10.0)
    found = guidance_scale(SD15, Request("x", cfg=7.0, cfg_interval=Interval(0, 0.5)), PROCESS)
    part = guided(predict, lambda _: told, lambda _: other, found)
    assert torch.equal(part(x, late), predict(x, late, told))
    assert [len(called) for called, _, _ in net.calls] == [1, 1]
    early, full = PROCESS.level(900.0), guided(predict, lambda _: told, lambda _: other, 7.0)
    assert torch.equal(part(x, early), full(x, early))
    assert not torch.equal(part(x, late), full(x, late))
