"""ControlNets: residuals and final latents equal to diffusers' in every family and layout."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetUnionModel,
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from PIL import Image
from torch import Tensor

from tests.support import tiny, tiny_control
from tests.support.tiny_control import MODELS
from txt2img.diffusion.conditioning import Cond
from txt2img.models.controlnet import ControlNet
from txt2img.pipeline.encode_prompts import encode
from txt2img.pipeline.generate import sample
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.control import control_networks
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
STEPS = 4
FAMILIES = [(name, layout) for name in MODELS for layout in ("folder", "file")]


@cache
def ours(name: str) -> Model:
    return load(str(MODELS[name]().folder), CPU)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hint") / "hint.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return path


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    got = got.expand(wanted.shape) if got.ndim == 4 and got.shape[2:] == (1, 1) else got
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def filled(model: Model, *controls: str, **more: object) -> Request:
    """A request with ControlNets under diffusers' rules, resolved for the model."""
    request = Request(
        "a red apple",
        "blurry",
        "m",
        width=64,
        height=64,
        steps=STEPS,
        cfg=7.5,
        sampler=Sampler.DDIM,
        schedule=Schedule.LEADING,
        seed=5,
        compat=Compat.DIFFUSERS,
    ).with_json({"controls": list(controls), **more})
    return resolve_adapters(model, request).filled(model.family.defaults)


def network(name: str, path: Path, image: Path) -> ControlNet:
    request = filled(ours(name), f"{path}:{image}")
    [one] = control_networks(ours(name), request.controls)
    return one


def inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Cond]:
    """x, times, a hint's pixels, a condition of two texts."""
    torch.manual_seed(0)
    config = ours(name).family.unet
    tokens, pooled, sizes = torch.randn(2, 77, config.cross_dim), None, None
    if config.sizes:
        pooled, sizes = torch.randn(2, config.pooled), torch.tensor([[64, 64, 0, 0, 64, 64]] * 2)
    cond = Cond(tokens, pooled, sizes)
    return torch.randn(2, 4, 16, 16), torch.tensor([981.0, 3.5]), torch.rand(1, 3, 64, 64), cond


def added(cond: Cond) -> dict[str, Tensor]:
    if cond.pooled is None or cond.size_ids is None:
        return {}
    return {"text_embeds": cond.pooled, "time_ids": cond.size_ids}


def check_pass(got: ControlNet, wanted: object, name: str, **more: object) -> None:
    """Compare all residuals of one pass."""
    x, times, pixels, cond = inputs(name)
    with torch.inference_mode():
        down, middle = wanted(  # type: ignore[operator]
            x, times, cond.tokens, pixels.expand(2, -1, -1, -1), added_cond_kwargs=added(cond),
            return_dict=False, **more,
        )  # fmt: skip
        residuals = got.pooled(got(x, times, cond, got.embed_hint(pixels)))
    assert len(residuals) == len(down) + 1
    for own, theirs in zip(residuals, [*down, middle], strict=True):
        assert off(own, theirs) < 1e-5


@pytest.mark.parametrize(("name", "layout"), FAMILIES)
def test_residuals_equal_diffusers(name: str, layout: str, picture: Path) -> None:
    control = tiny_control.control(name)
    check_pass(network(name, getattr(control, layout), picture), control.network, name)


@pytest.mark.parametrize("blocks", [0, 1])
def test_small_variants_for_sdxl_equal_diffusers(blocks: int, picture: Path) -> None:
    control = tiny_control.small(blocks)
    check_pass(network("xl", control.folder, picture), control.network, "xl")


def test_a_control_lora_equals_the_controlnet_that_it_stands_for(picture: Path) -> None:
    whole, path = tiny_control.lora()
    check_pass(network("xl", path, picture), whole, "xl")


def test_shuffle_averages_over_the_map(picture: Path) -> None:
    control = tiny_control.pooling()
    check_pass(network("sd1", control.folder, picture), control.network, "sd1")


@pytest.mark.parametrize("kind", [0, 3, 5])
def test_a_union_model_equals_diffusers(kind: int, picture: Path) -> None:
    got = network("xl", tiny_control.union(), picture)
    wanted = ControlNetUnionModel.from_pretrained(tiny_control.union()).eval()
    x, times, pixels, cond = inputs("xl")
    x, cond = x[:1], Cond(cond.tokens[:1], cond.pooled[:1], cond.size_ids[:1])  # type: ignore[index]
    chosen = torch.zeros(1, 6)
    chosen[0, kind] = 1
    with torch.inference_mode():
        down, middle = wanted(
            x, times[:1], cond.tokens, [pixels], chosen, [kind], 1.0,
            added_cond_kwargs=added(cond), return_dict=False,
        )  # fmt: skip
        hint = got.embed_hint(pixels, kind)
        residuals = got(x, times[:1], cond, hint, got.embed_kind(kind, x))
    for own, theirs in zip(residuals, [*down, middle], strict=True):
        assert off(own, theirs) < 1e-5


def pipeline(name: str, controls: object, kind: type | None = None) -> object:
    """diffusers' pipeline of a tiny model; ours encodes the texts."""
    model = MODELS[name]()
    prediction = "v_prediction" if name == "sd2" else "epsilon"
    scheduler = DDIMScheduler(**tiny.LEADING, prediction_type=prediction)
    parts = {"vae": model.vae, "unet": model.unet, "scheduler": scheduler}
    parts |= {"controlnet": controls, "text_encoder": None, "tokenizer": None}
    if name == "xl":
        more: dict[str, object] = {"text_encoder_2": None, "tokenizer_2": None}
        kind = kind or StableDiffusionXLControlNetPipeline
    else:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        kind = kind or StableDiffusionControlNetPipeline
    made = kind(**parts, **more)
    made.set_progress_bar_config(disable=True)
    return made


def call(model: Model, request: Request) -> dict[str, object]:
    [(_, positive)], [(_, negative)] = encode(model, request, rules(request))
    named: dict[str, object] = {"prompt_embeds": positive.tokens}
    named["negative_prompt_embeds"] = negative.tokens
    if positive.pooled is not None:
        named |= {"pooled_prompt_embeds": positive.pooled}
        named |= {"negative_pooled_prompt_embeds": negative.pooled}
    return named | {
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "generator": torch.Generator().manual_seed(request.seed or 0),
        "output_type": "latent",
    }


def drawn(model: Model, request: Request) -> Tensor:
    *_, last = sample(model, [request])
    return last.x


CASES = [
    ("sd1", "folder", "0.7", {}),
    ("sd1", "file", "1.3:0.25..0.75", {}),
    ("sd1", "file", "0.8", {"control_mode": "control"}),
    ("sd2", "folder", "1:0..0.5", {}),
    ("sd2", "file", "0.6:0.5..1", {"control_mode": "control"}),
    ("xl", "folder", "0.9", {}),
    ("xl", "file", "1:0.25..1", {"control_mode": "control"}),
]


@pytest.mark.parametrize(("name", "layout", "use", "more"), CASES)
def test_final_latents_equal_diffusers(
    name: str, layout: str, use: str, more: dict[str, object], picture: Path
) -> None:
    control, model = tiny_control.control(name), ours(name)
    request = filled(model, f"{getattr(control, layout)}:{picture}:{use}", **more)
    [one] = request.controls
    wanted = pipeline(name, control.network)(  # type: ignore[operator]
        **call(model, request),
        image=opened(picture),
        controlnet_conditioning_scale=one.weight,
        control_guidance_start=one.interval.low,
        control_guidance_end=one.interval.high,
        guess_mode="control_mode" in more,
    ).images
    got, plain = drawn(model, request), drawn(model, request.changed(controls=()))
    assert off(got, wanted) < 1e-4
    assert off(plain, wanted) > 1e-2


def test_several_add_up(picture: Path) -> None:
    first, second = tiny_control.control("sd1"), tiny_control.control("sd1", 1)
    model = ours("sd1")
    uses = f"{first.file}:{picture}:0.7", f"{second.folder}:{picture}:0.4:0..0.5"
    wanted = pipeline("sd1", [first.network, second.network])(  # type: ignore[operator]
        **call(model, filled(model, *uses)),
        image=[opened(picture)] * 2,
        controlnet_conditioning_scale=[0.7, 0.4],
        control_guidance_start=[0.0, 0.0],
        control_guidance_end=[1.0, 0.5],
    ).images
    assert off(drawn(model, filled(model, *uses)), wanted) < 1e-4


def test_shuffle_reaches_the_prompts_pass_alone(picture: Path) -> None:
    control, model = tiny_control.pooling(), ours("sd1")
    request = filled(model, f"{control.folder}:{picture}")
    wanted = pipeline("sd1", control.network)(  # type: ignore[operator]
        **call(model, request), image=opened(picture)
    ).images
    assert off(drawn(model, request), wanted) < 1e-4


def test_a_unions_latents_equal_diffusers(picture: Path) -> None:
    model = ours("xl")
    request = filled(model, f"{tiny_control.union()}@depth:{picture}:0.8")
    union = ControlNetUnionModel.from_pretrained(tiny_control.union()).eval()
    made = pipeline("xl", union, StableDiffusionXLControlNetUnionPipeline)
    wanted = made(  # type: ignore[operator]
        **call(model, request),
        control_image=[opened(picture)],
        control_mode=[1],
        controlnet_conditioning_scale=0.8,
    ).images
    assert off(drawn(model, request), wanted) < 1e-4


def test_with_a_picture_to_begin_from_the_interval_is_of_the_steps_drawn(picture: Path) -> None:
    control, model = tiny_control.control("sd1"), ours("sd1")
    use = f"{control.file}:{picture}:1:0..0.5"
    request = filled(model, use, image=str(picture), strength=0.5)
    made = pipeline("sd1", control.network, StableDiffusionControlNetImg2ImgPipeline)
    wanted = made(  # type: ignore[operator]
        **call(model, request),
        image=opened(picture),
        control_image=opened(picture),
        strength=0.5,
        controlnet_conditioning_scale=1.0,
        control_guidance_end=0.5,
    ).images
    assert off(drawn(model, request), wanted) < 1e-4


@pytest.mark.parametrize("inputs", [4, 9])
def test_with_a_mask_it_equals_diffusers(inputs: int, picture: Path) -> None:
    """Models of four channels, and those of nine, of which a ControlNet sees four."""
    base = tiny.sd1() if inputs == 4 else tiny.inpaint()
    control, model = tiny_control.control("sd1"), load(str(base.folder), CPU)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (29, 10, 64, 50))
    mask.save(picture.with_name("mask.png"))
    start = {"image": str(picture), "mask": str(picture.with_name("mask.png")), "strength": 0.5}
    request = filled(model, f"{control.file}:{picture}", **start)
    made = pipeline("sd1", control.network, StableDiffusionControlNetInpaintPipeline)
    made.unet = base.unet  # type: ignore[attr-defined]
    made.vae = base.vae  # type: ignore[attr-defined]
    wanted = made(  # type: ignore[operator]
        **call(model, request),
        image=opened(picture),
        mask_image=mask,
        control_image=opened(picture),
        strength=0.5,
        controlnet_conditioning_scale=1.0,
    ).images
    assert off(drawn(model, request), wanted) < 1e-4
    assert off(drawn(model, request.changed(controls=())), wanted) > 1e-3


@pytest.mark.parametrize("name", ["sd1", "xl"])
def test_weight_0_is_the_picture_without_it_bit_for_bit(name: str, picture: Path) -> None:
    control, model = tiny_control.control(name), ours(name)
    request = filled(model, f"{control.file}:{picture}:0")
    assert torch.equal(drawn(model, request), drawn(model, request.changed(controls=())))


def test_outside_its_interval_nothing_of_it_is_computed(picture: Path) -> None:
    control, model = tiny_control.control("sd1"), ours("sd1")
    request = filled(model, f"{control.file}:{picture}:1:0.5..1")
    [one] = control_networks(model, request.controls)
    calls: list[str] = []
    hooks = [
        one.register_forward_hook(lambda *_: calls.append("pass")),
        one.controlnet_cond_embedding.register_forward_hook(lambda *_: calls.append("hint")),
    ]
    drawn(model, request)
    for hook in hooks:
        hook.remove()
    assert calls == ["hint", "pass", "pass"]
