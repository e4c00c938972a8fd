"""Samplers, sigmas and guidance methods of a request, through a tiny model."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support import tiny
from txt2img.errors import BadRequest
from txt2img.pipeline.generate import batch_key, noise_levels, sample
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.request.hires import second_pass
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

PLAIN = Request(
    "a cat", "", "m", 64, 64, 3, 7.5, 0.0, sampler=Sampler.EULER, schedule=Schedule.KARRAS, seed=42
)


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny Stable Diffusion 1."""
    return load(str(tiny.sd1().folder), Device(torch.device("cpu"), torch.float32))


def drawn(model: Model, *requests: Request) -> Tensor:
    """The last latents of filled requests, drawn together."""
    [last] = deque(sample(model, requests), maxlen=1)
    return last.x


METHODS = {
    "pag": 3.0,
    "seg": "3,2",
    "apg": "0,15,-0.5",
    "dynamic_thresholding": "3,0.9",
    "freeu": "1.2,1.4,0.9,0.2",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_changes_the_picture_and_leaves_no_trace(model: Model, method: str) -> None:
    before = drawn(model, PLAIN)
    asked = replace(PLAIN, **{method: METHODS[method]})
    one, other = drawn(model, asked), drawn(model, replace(asked, seed=43, prompt="a dog in snow"))
    assert float((one - before).abs().max()) > 1e-3
    together = drawn(model, asked, replace(asked, seed=43, prompt="a dog in snow"))
    assert torch.equal(together, torch.cat([one, other]))
    assert torch.equal(drawn(model, PLAIN), before)


def test_perturbed_attention_works_beside_another_mix_and_without_cfg(model: Model) -> None:
    with_mix = replace(PLAIN, apg="1,0,0", pag=3.0)
    without = drawn(model, replace(PLAIN, pag=3.0))
    torch.testing.assert_close(drawn(model, with_mix), without, rtol=1e-4, atol=1e-3)
    alone = replace(PLAIN, cfg=1.0)
    assert not torch.equal(drawn(model, replace(alone, pag=3.0)), drawn(model, alone))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pag": 3.0, "seg": "3"}, "--pag and --seg do the same"),
        ({"apg": "0", "dynamic_thresholding": "7"}, "--apg and --dynamic-thresholding"),
        ({"apg": "0", "cfg_rescale": 0.7}, "--apg takes the place of --cfg-rescale"),
        ({"apg": "0", "prompt": "a cat AND a dog"}, "take one prompt, without AND"),
    ],
)
def test_what_does_not_go_together_is_told(
    model: Model, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        drawn(model, replace(PLAIN, **changes))


def test_an_adaptive_sampler_draws_each_picture_alone() -> None:
    asked = replace(PLAIN, sampler=Sampler.DPM_ADAPTIVE)
    assert batch_key(asked) != batch_key(replace(asked, seed=43))
    assert batch_key(PLAIN) == batch_key(replace(PLAIN, seed=43))


@pytest.mark.parametrize("name", [Sampler.DDIM, Sampler.PLMS, Sampler.DDIM_CFGPP])
def test_samplers_of_whole_times_have_a1111s_steps(model: Model, name: Sampler) -> None:
    asked = replace(PLAIN, sampler=name, compat=Compat.A1111, steps=20)
    levels = noise_levels(model, asked, rules(asked))
    process = model.family.process.build()
    assert [process.time(level) for level in levels] == [*range(951, 0, -50)]


def test_samplers_that_drop_the_last_level_but_one_do(model: Model) -> None:
    asked = replace(PLAIN, sampler=Sampler.DPMPP_3M_SDE, steps=5)
    own = noise_levels(model, replace(asked, steps=6), rules(asked))
    a1111 = replace(asked, compat=Compat.A1111)
    assert noise_levels(model, a1111, rules(a1111)) == [*own[:-2], own[-1]]


def test_sigmas_are_the_levels_of_the_first_pass(model: Model) -> None:
    asked = replace(PLAIN, steps=None, sigmas="14.6,3,1").filled(model.family.defaults)
    levels = noise_levels(model, asked, rules(asked))
    assert [level.ratio for level in levels] == [14.6, 3.0, 1.0, 0.0]
    assert drawn(model, asked).isfinite().all()
    larger = replace(asked, hires=2.0, hires_steps=7)
    assert (second_pass(larger).sigmas, second_pass(larger).steps) == (None, 7)


def test_the_scale_of_ddim_cfg_pp_is_divided(model: Model) -> None:
    """A1111 maps 12.5 to 1; Euler's, as ComfyUI's, is as it is given."""
    asked = replace(PLAIN, sampler=Sampler.DDIM_CFGPP, cfg=10.0)
    same = replace(PLAIN, sampler=Sampler.EULER_CFGPP, cfg=0.8)
    torch.testing.assert_close(drawn(model, asked), drawn(model, same))
