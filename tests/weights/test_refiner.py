"""A refiner takes over as in diffusers, is recorded in the picture, and needs little memory."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from torch import Tensor, nn

from tests.conftest import Command
from tests.parity import test_parity_xl
from tests.support import tiny, tiny_xl
from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.levels import Diffusion, betas
from txt2img.errors import BadRequest, ModelNotFound
from txt2img.images import image_file
from txt2img.models.unet import UNet
from txt2img.pipeline.generate import generate, noise_levels, sample
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.adapters import Refiner
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.system.device.memory import MemoryState
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model
from txt2img.weights.refiner import add_refiner, is_refiner_step

CPU = Device(torch.device("cpu"), torch.float32)
REQUEST = Request("a red apple", "blurry", "m", 64, 96, 5, 7.5, seed=5, schedule=Schedule.LEADING)
BASE, REFINER = str(tiny_xl.base().file), str(tiny_xl.refiner().file)
PROCESS = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))


def both(device: Device = CPU) -> Model:
    """The base, with its refiner."""
    model = load(BASE, device)
    model.memory = MemoryState(low_memory=device.low, placement=model.memory.placement)
    add_refiner(model, REFINER, device)
    return model


@pytest.fixture(scope="module")
def model() -> Model:
    return both()


def filled(model: Model, **values: object) -> Request:
    """The request, with the refiner."""
    base = replace(REQUEST, **values)
    return resolve_adapters(model, base).filled(model.family.defaults)


def last(model: Model, request: Request) -> Tensor:
    """The latent (1, C, h, w) after the last step."""
    *_, state = sample(model, [request])
    return state.x


def test_it_takes_over_after_a_fraction_of_the_timesteps() -> None:
    levels = [PROCESS.entry(time) for time in (999, 201, 200, 199, 0)]
    assert [is_refiner_step(PROCESS, level, 0.8) for level in levels] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert all(is_refiner_step(PROCESS, level, 0.0) for level in levels)
    assert not any(is_refiner_step(PROCESS, level, 1.0) for level in levels)


@pytest.mark.parametrize("switch", [0.8, 0.55])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_final_latents_equal_diffusers_two_pipelines(
    model: Model, sampler: str, switch: float
) -> None:
    request = filled(model, sampler=Sampler.parse(sampler), refiner_switch=switch)
    first, second = test_parity_xl.theirs("base"), test_parity_xl.theirs("refiner")
    assert isinstance(second, StableDiffusionXLImg2ImgPipeline)
    first.scheduler = test_parity_xl.scheduler(sampler)
    second.scheduler = test_parity_xl.scheduler(sampler)
    level = noise_levels(model, request, rules(request))[0]
    x = level.sigma * fresh_noise([request], rules(request), (4, 24, 16), torch.device("cpu"))()
    x = x / level.alpha if sampler == "euler" else x
    first.scheduler.set_timesteps(request.steps)
    common = {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "output_type": "latent",
    }
    begun = first(
        height=96,
        width=64,
        latents=x / first.scheduler.init_noise_sigma,
        denoising_end=switch,
        **common,
    ).images
    wanted = second(image=begun, denoising_start=switch, **common).images
    assert test_parity_xl.off(last(model, request), wanted) < 1e-4


def test_one_model_draws_all_steps_if_the_switch_is_0_or_1(model: Model) -> None:
    whole = last(model, filled(model, refiner_switch=1.0))
    alone = replace(filled(model), refiner=None)
    assert torch.equal(whole, last(model, alone))
    none = last(model, filled(model, refiner_switch=0.0))
    refiner = load(REFINER, CPU)
    assert torch.equal(none, last(refiner, replace(alone, model="r")))


def test_second_order_and_multistep_samplers_continue(model: Model) -> None:
    for sampler in (Sampler.HEUN, Sampler.DPMPP_2M, Sampler.DPMPP_SDE):
        request = filled(model, sampler=sampler, schedule=Schedule.KARRAS)
        x = last(model, request)
        assert bool(torch.isfinite(x).all())
        assert not torch.equal(x, last(model, replace(request, refiner=None)))


def held(model: Model) -> tuple[int, int]:
    """Bytes of the weights of both models, but for the VAE."""
    assert model.refiner is not None
    sizes = []
    for one in (model, model.refiner.model):
        networks: list[nn.Module] = [one.network, *one.text.encoders]
        weights = [weight for network in networks for weight in network.parameters()]
        sizes.append(sum(weight.nbytes for weight in weights if not weight.is_meta))
    return sizes[0], sizes[1]


@pytest.mark.usefixtures("as_written")
def test_with_little_memory_only_one_of_the_two_has_its_weights(tmp_path: Path) -> None:
    low = both(Device(torch.device("cpu"), torch.float32, low=True))
    request = replace(filled(low), refiner_switch=0.6)
    assert held(low) == (0, 0)
    seen = []
    states: Iterator[object] = sample(low, [request])
    for _ in states:
        seen.append(tuple(size > 0 for size in held(low)))
    # The last state comes when its network is no longer needed.
    assert seen == [(True, False)] * 3 + [(False, True), (False, False)]
    assert held(low) == (0, 0)
    normal = both()
    once = last(low, request)
    assert torch.equal(once, last(low, request))  # the base is read again
    assert test_parity_xl.off(once, last(normal, request)) < 1e-4


def test_a_picture_records_both_models_and_is_drawn_again(command: Command) -> None:
    small = ("-W", "64", "-H", "64", "--steps", "3", "--seed", "4")
    wish = ("a red apple", "-m", BASE, *small, "--refiner", f"{REFINER}:0.5")
    made = command(*wish, "-o", "a.png", "--json")
    assert made.code == 0, made.err
    record = json.loads(made.out)
    found = image_file.read(Path("a.png"))
    assert found.request is not None and found.request.refiner is not None
    assert found.request.refiner == Refiner("tiny-xl-refiner", found.request.refiner.hash)
    assert len(found.request.refiner.hash) == 10 and found.request.refiner_switch == 0.5
    assert record["refiner"] == {**vars(found.request.refiner), "switch": 0.5}
    assert found.origin.hash != found.request.refiner.hash
    written = f"Refiner: tiny-xl-refiner [{found.request.refiner.hash}], Refiner switch at: 0.5"
    assert written in found.texts["parameters"]
    assert "--refiner=tiny-xl-refiner:0.5" in command("info", "--command", "a.png").out
    lacking = command("replay", "a.png", "-m", BASE, "-o", "b.png")
    assert lacking.code == 1 and "--refiner" in lacking.err and len(lacking.err.splitlines()) == 1
    again = command("replay", "a.png", "-m", BASE, "--refiner", REFINER, "-o", "b.png")
    assert again.code == 0, again.err
    other = image_file.read(Path("b.png"))
    assert (other.pixels_sha256, other.request) == (found.pixels_sha256, found.request)
    without = command("replay", "a.png", "-m", BASE, "--refiner", "none", "-o", "c.png")
    assert without.code == 0, without.err
    plain = image_file.read(Path("c.png"))
    assert plain.request is not None and plain.request.refiner is None
    assert plain.pixels_sha256 != found.pixels_sha256
    assert "Refiner" not in plain.texts["parameters"]


def test_what_cannot_refine_is_refused_in_one_line(command: Command) -> None:
    for refiner, code, words in (
        (str(tiny.own()), 2, "their latents differ"),
        (str(tiny_xl.inpaint().file), 2, "it is no refiner"),
        ("nowhere", 1, 'no model "nowhere"'),
        (f"{REFINER}:1.5", 2, "0 … 1"),
    ):
        refused = command("x", "-m", BASE, "--refiner", refiner, "-o", "x.png")
        assert refused.code == code, refused.err
        assert words in refused.err and len(refused.err.splitlines()) == 1
    assert not Path("x.png").exists()


def test_a_missing_refiner_is_named() -> None:
    base = load(BASE, CPU)
    request = replace(REQUEST, refiner=Refiner("r"))
    with pytest.raises(ModelNotFound, match="refiner"):
        generate(request, base)
    with pytest.raises(BadRequest, match="refiner"):
        list(sample(base, [request.filled(base.family.defaults)]))


def test_deepcache_features_are_each_networks_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, own = list[UNet](), UNet.deep_features

    def deep(self: UNet, x: Tensor, clock: Tensor, tokens: Tensor, cond: Cond) -> Tensor:
        whole.append(self)
        return own(self, x, clock, tokens, cond)

    monkeypatch.setattr(UNet, "deep_features", deep)
    request = filled(model, refiner_switch=0.5, steps=8, reuse=3)
    levels = noise_levels(model, request, rules(request))
    found = last(model, request)
    first = sum(not is_refiner_step(PROCESS, level, 0.5) for level in levels[:-1])
    assert 0 < first < 8
    assert model.refiner is not None
    networks = [model.network] * -(-first // 3) + [model.refiner.model.network] * -(
        -(8 - first) // 3
    )
    assert whole == networks
    assert torch.equal(last(model, request), found)
