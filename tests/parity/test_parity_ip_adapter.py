"""IP-Adapters: final latents of diffusers' own pipelines with load_ip_adapter.

Under --compat diffusers. Theirs get our text conditions, which test_whole.py proves equal.
"""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor

from tests.support import ip_adapters, tiny, tiny_xl
from txt2img.pipeline.encode_prompts import encode
from txt2img.pipeline.generate import sample
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.compat import rules
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
MODELS = {"sd1": tiny.sd1, "xl": tiny_xl.base}
SIZE = 64


@cache
def ours(name: str, layout: str) -> Model:
    return load(str(getattr(MODELS[name](), layout)), CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of every kind for both models, pictures, masks, and the encoder beside them."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, model in MODELS.items():
        for i, kind in enumerate(ip_adapters.KINDS):
            ip_adapters.file_of(kind, model().unet, folder, f"{name}-{kind}", i)
    (folder / "image_encoder").symlink_to(ip_adapters.encoder_folder())
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((72, SIZE), Image.Resampling.BICUBIC)
        image.save(folder / f"{name}.png")
    for name, box in {"left": (0, 0, 24, SIZE), "right": (30, 10, SIZE, SIZE)}.items():
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(255, box)
        mask.save(folder / f"{name}.png")
    return folder


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def filled(model: Model, **more: object) -> Request:
    """A request under diffusers' rules, as the command makes it."""
    request = Request(
        "a red apple",
        "blurry",
        "m",
        SIZE,
        SIZE,
        4,
        7.5,
        sampler=Sampler.DDIM,
        schedule=Schedule.LEADING,
        seed=5,
        compat=Compat.DIFFUSERS,
    )
    return resolve_adapters(model, request.with_json(more)).filled(model.family.defaults)


def pipeline(
    name: str, folder: Path, files: list[str], weights: list[float], kind: type[DiffusionPipeline]
) -> DiffusionPipeline:
    """Theirs, with IP-Adapters of these weights."""
    model = MODELS[name]()
    scheduler = DDIMScheduler(**tiny.LEADING | {"prediction_type": "epsilon"})
    parts = {"vae": model.vae, "unet": copy.deepcopy(model.unet), "scheduler": scheduler}
    parts |= {"text_encoder": None, "tokenizer": None, "image_encoder": ip_adapters.encoder()}
    parts |= {"feature_extractor": CLIPImageProcessor(size=28, crop_size=28)}
    if name == "xl":
        parts |= {"text_encoder_2": None, "tokenizer_2": None}
    else:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    made = kind(**parts)
    made.set_progress_bar_config(disable=True)
    names = [f"{file}.safetensors" for file in files]
    made.load_ip_adapter(str(folder), subfolder="", weight_name=names, image_encoder_folder=None)
    made.set_ip_adapter_scale(weights)
    return made


def arguments(model: Model, request: Request) -> dict[str, object]:
    """What a call of a pipeline of theirs is given."""
    [(_, positive)], [(_, negative)] = encode(model, request, rules(request))
    named = {"prompt_embeds": positive.tokens, "negative_prompt_embeds": negative.tokens}
    if positive.pooled is not None:
        named |= {"pooled_prompt_embeds": positive.pooled}
        named |= {"negative_pooled_prompt_embeds": negative.pooled}
    return {
        **named,
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "generator": torch.Generator().manual_seed(request.seed or 0),
        "height": request.height,
        "width": request.width,
        "output_type": "latent",
    }


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def final(model: Model, request: Request) -> Tensor:
    *_, last = sample(model, [request])
    return last.x


@pytest.mark.parametrize(
    ("name", "layout", "kind", "weight"),
    [
        ("sd1", "folder", "base", 1.0),
        ("sd1", "file", "plus", 0.6),
        ("sd1", "folder", "full", 0.8),
        ("xl", "folder", "base", 0.5),
        ("xl", "file", "plus", 1.0),
    ],
)
def test_each_kind_equals_diffusers(
    name: str, layout: str, kind: str, weight: float, folder: Path
) -> None:
    model, file = ours(name, layout), f"{name}-{kind}"
    use = f"{folder}/{file}.safetensors:{folder}/a.png:{weight}"
    request = filled(model, ip_adapters=use)
    theirs = StableDiffusionXLPipeline if name == "xl" else StableDiffusionPipeline
    made = pipeline(name, folder, [file], [weight], theirs)
    call = arguments(model, request) | {"ip_adapter_image": opened(folder / "a.png")}
    assert off(final(model, request), made(**call).images) < 1e-4


def test_several_pictures_of_one_adapter_and_an_interval_equal_diffusers(folder: Path) -> None:
    """Their scale is set by a callback, which is what users of diffusers do."""
    model = ours("sd1", "folder")
    use = f"{folder}/sd1-plus.safetensors:{folder}/a.png,{folder}/b.png:0.7:0.25..0.75"
    request = filled(model, ip_adapters=use)
    made = pipeline("sd1", folder, ["sd1-plus"], [0.0], StableDiffusionPipeline)

    def on_step_end(pipe: object, step: int, *_: object) -> dict[str, object]:
        made.set_ip_adapter_scale([0.7 if step + 1 in (1, 2) else 0.0])
        return {}

    pictures = [opened(folder / "a.png"), opened(folder / "b.png")]
    call = arguments(model, request) | {"ip_adapter_image": [pictures]}
    assert off(final(model, request), made(**call, callback_on_step_end=on_step_end).images) < 1e-4


def test_two_adapters_with_masks_equal_diffusers(folder: Path) -> None:
    model = ours("sd1", "folder")
    names, weights = ["sd1-base", "sd1-plus", "sd1-plus"], [0.9, 0.7, 0.4]
    uses = [
        f"{folder}/{name}.safetensors:{folder}/{picture}.png:{weight}"
        for name, picture, weight in zip(names, "abc", weights, strict=True)
    ]
    areas = [folder / "left.png", folder / "right.png"]
    request = filled(model, ip_adapters=uses, ip_masks=list(map(str, areas)))
    made = pipeline("sd1", folder, names, weights, StableDiffusionPipeline)
    masks = IPAdapterMaskProcessor().preprocess(
        [Image.open(area) for area in areas] + [Image.new("L", (SIZE, SIZE), 255)],
        height=SIZE,
        width=SIZE,
    )
    call = arguments(model, request) | {
        "ip_adapter_image": [opened(folder / f"{name}.png") for name in "abc"],
        "cross_attention_kwargs": {"ip_adapter_masks": [mask[None] for mask in masks]},
    }
    assert off(final(model, request), made(**call).images) < 1e-4


@pytest.mark.parametrize("masked", [False, True])
def test_together_with_a_picture_to_begin_from_it_equals_diffusers(
    folder: Path, masked: bool
) -> None:
    model = ours("sd1", "folder")
    use = f"{folder}/sd1-base.safetensors:{folder}/b.png:0.8"
    image = opened(folder / "a.png").resize((SIZE, SIZE))
    image.save(folder / "start.png")
    more: dict[str, object] = {"image": str(folder / "start.png"), "strength": 0.75}
    more |= {"mask": str(folder / "right.png")} if masked else {}
    request = filled(model, ip_adapters=use, **more)
    kind = StableDiffusionInpaintPipeline if masked else StableDiffusionImg2ImgPipeline
    made = pipeline("sd1", folder, ["sd1-base"], [0.8], kind)
    call = arguments(model, request) | {"image": image, "strength": 0.75}
    call |= {"ip_adapter_image": opened(folder / "b.png")}
    if masked:
        call |= {"mask_image": Image.open(folder / "right.png")}
    else:
        call = {key: value for key, value in call.items() if key not in ("height", "width")}
    assert off(final(model, request), made(**call).images) < 1e-4


def test_weight_0_and_steps_outside_the_interval_change_no_bit(folder: Path) -> None:
    model = ours("sd1", "folder")
    plain = final(model, filled(model))
    use = f"{folder}/sd1-plus.safetensors:{folder}/a.png"
    assert torch.equal(final(model, filled(model, ip_adapters=f"{use}:0")), plain)
    assert torch.equal(final(model, filled(model, ip_adapters=f"{use}:1:0.1..0.2")), plain)
    assert not torch.equal(final(model, filled(model, ip_adapters=use)), plain)
    assert torch.equal(final(model, filled(model)), plain)


def test_a_batch_and_a_second_pass_see_it_too(folder: Path) -> None:
    """Each picture of a batch is as it is alone; the larger pass has masks of its own size."""
    model = ours("sd1", "folder")
    use = f"{folder}/sd1-plus.safetensors:{folder}/a.png:0.7"
    request = filled(model, ip_adapters=use, ip_masks=str(folder / "left.png"))
    *_, both = sample(model, [request, replace(request, seed=6)])
    for x, seed in zip(both.x, (5, 6), strict=True):
        *_, alone = sample(model, [replace(request, seed=seed)])
        assert torch.equal(alone.x[0], x)
    larger = request.with_json({"hires": 1.5, "hires_upscaler": "latent", "hires_strength": 0.5})
    plain = replace(larger, ip_adapters=(), ip_masks=())
    assert off(final(model, larger), final(model, plain)) > 0.01


def test_the_masked_part_alone_has_its_part_of_the_mask(folder: Path) -> None:
    """A mask as large as the picture is cut as the picture is."""
    from txt2img.pipeline.image_prompts import _cells

    model = ours("sd1", "folder")
    opened(folder / "a.png").resize((SIZE, SIZE)).save(folder / "start.png")
    repainted = Image.new("L", (SIZE, SIZE))
    repainted.paste(255, (40, 0, SIZE, 24))
    repainted.save(folder / "corner.png")
    half = Image.new("L", (SIZE, SIZE))
    half.paste(255, (0, 0, 52, SIZE))  # the left half of the part that is drawn
    half.save(folder / "half.png")
    given = {"image": str(folder / "start.png"), "mask": str(folder / "corner.png")}
    use = f"{folder}/sd1-base.safetensors:{folder}/b.png"
    more = {"ip_adapters": use, "ip_masks": str(folder / "half.png"), "only_masked": 0}
    request = filled(model, **given, **more)
    cells = _cells(model, request, rules(request), request.ip_masks[0])
    shown = cells[0, : 16 * 16].view(16, 16)
    assert shown[:, :6].min() > 0.9 and shown[:, 10:].max() < 0.1
    final(model, request)


def test_half_precision_draws_nearly_the_same(folder: Path) -> None:
    """Masks too are in the network's dtype."""
    use = f"{folder}/sd1-plus.safetensors:{folder}/a.png:0.5"
    more = {"ip_adapters": use, "ip_masks": str(folder / "left.png")}
    exact = ours("sd1", "folder")
    narrow = load(str(tiny.sd1().folder), Device(torch.device("cpu"), torch.bfloat16))
    assert off(final(narrow, filled(narrow, **more)), final(exact, filled(exact, **more))) < 0.2
