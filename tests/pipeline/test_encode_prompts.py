"""What a model is told of prompts: each text is encoded once, until what it means changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support import tiny
from txt2img.pipeline.encode_prompts import CACHE_SIZE, encode_prompts
from txt2img.pipeline.generate import generate
from txt2img.request import Compat, Request, Sampler
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
SMALL = Request("red", "", "m", 64, 64, 2, 2.0, seed=1)


class Counted:
    """A model, and how often its text encoder was asked."""

    def __init__(self) -> None:
        self.model: Model = load(str(tiny.sd1().folder), CPU)
        self.texts: list[str] = []
        encode = self.model.text.encode

        def counted(prompts: list[str], *more: object) -> object:
            self.texts += prompts
            return encode(prompts, *more)  # type: ignore[arg-type]

        self.model.text.encode = counted  # type: ignore[assignment, method-assign]

    def told(self, **changes: object) -> Tensor:
        """What is told of the prompt, of the small request so changed."""
        request = replace(SMALL, **changes).filled(self.model.family.defaults)
        [[[(_, cond)], _]] = encode_prompts(self.model, [request], rules(request))
        return cond.tokens


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_a_text_is_encoded_once_for_a_whole_sweep(counted: Counted) -> None:
    first = counted.told()
    for changes in ({"seed": 2}, {"cfg": 9.0}, {"sampler": Sampler.HEUN}, {"eta": 0.5}):
        assert counted.told(**changes) is first
    assert counted.texts == ["red", ""]


def test_a_negative_that_is_not_looked_at_is_not_encoded(counted: Counted) -> None:
    counted.told(cfg=1.0, negative="blue")
    assert counted.texts == ["red"]
    counted.told(cfg=2.0, negative="blue")
    assert counted.texts == ["red", "red", "blue"]
    request = replace(SMALL, prompt="red AND dog", negative="blue", cfg=1.0)
    encode_prompts(counted.model, [request], rules(request))  # is weighed against the negative
    assert counted.texts[3:] == ["red ", " dog", "blue"]


def test_what_changes_its_meaning_is_encoded_anew(counted: Counted) -> None:
    first = counted.told()
    for changes in ({"negative": "blue"}, {"compat": Compat.COMFYUI}, {"clip_skip": 2}):
        assert counted.told(**changes) is not first
    assert len(counted.texts) == 8
    assert not torch.equal(counted.told(clip_skip=2), first)


def test_few_are_remembered_and_the_oldest_goes_first(counted: Counted) -> None:
    first = counted.told()
    for number in range(CACHE_SIZE - 1):
        counted.told(prompt=f"{number}")
    assert counted.told() is first  # used again, so it is not the oldest any more
    counted.told(prompt="one more")
    assert len(counted.model.prompt_cache) == CACHE_SIZE
    assert counted.told() is first
    assert counted.texts.count("0") == 1
    counted.told(prompt="0")
    assert counted.texts.count("0") == 2


def test_pictures_are_those_of_a_model_that_remembers_nothing(counted: Counted) -> None:
    folder: Path = tiny.sd1().folder
    for prompt in ("red", "[red:blue:0.5] sky", "red"):
        request = replace(SMALL, prompt=prompt)
        [mine] = generate(request, counted.model)
        [fresh] = generate(request, load(str(folder), CPU))
        assert mine.tobytes() == fresh.tobytes()
