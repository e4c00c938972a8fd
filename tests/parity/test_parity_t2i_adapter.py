"""T2I-Adapters: final latents of diffusers' own pipelines, in both layouts and families."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionXLAdapterPipeline,
    T2IAdapter,
)
from diffusers.models.adapter import LightAdapterBlock
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.models.test_t2i_adapter import original
from tests.parity.test_parity_ip_adapter import MODELS, arguments, filled, final, off, opened
from tests.support import ip_adapters, tiny
from txt2img.errors import BadRequest, UnknownLayout
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)


@cache
def ours(name: str) -> Model:
    return load(str(MODELS[name]().folder), CPU)


@cache
def theirs(name: str, kind: str, inputs: int = 3, seed: int = 0) -> T2IAdapter:
    """A random adapter for a tiny model, whose VAE halves twice."""
    unet = MODELS[name]().unet.config
    torch.manual_seed(seed)
    channels, side = list(unet.block_out_channels), 4
    if name == "xl":
        channels, side = [*channels, channels[-1]], 8
    if kind == "light_adapter":
        channels = channels[:-1]
    adapter = T2IAdapter(inputs, channels, 2, side, kind).eval().requires_grad_(False)
    if kind == "light_adapter":  # whose last two levels are equally wide, unlike the U-Net's
        adapter.adapter.body[-1] = LightAdapterBlock(*unet.block_out_channels, 2, down=True)
        adapter.requires_grad_(False)
    for value in adapter.parameters():
        value.copy_(torch.randn(value.shape) * (0.08 if value.ndim > 1 else 0.3))
    return adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for name, kind, inputs in CASES:
        adapter = theirs(name, kind, inputs)
        adapter.save_pretrained(folder / f"{name}-{kind}-{inputs}")
        state = original(dict(adapter.state_dict()), kind == "light_adapter")
        save_file(state, folder / f"{name}-{kind}-{inputs}.safetensors")
    rng = np.random.default_rng(0)
    for name, mode in (("hint", "RGB"), ("grey", "L")):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        image.convert(mode).save(folder / f"{name}.png")
    return folder


CASES = [
    ("sd1", "full_adapter", 3),
    ("sd1", "full_adapter", 1),
    ("sd1", "light_adapter", 3),
    ("xl", "full_adapter_xl", 3),
]


def pipeline(name: str, adapter: T2IAdapter | MultiAdapter) -> StableDiffusionAdapterPipeline:
    model = MODELS[name]()
    scheduler = DDIMScheduler(**tiny.LEADING | {"prediction_type": "epsilon"})
    parts = {"vae": model.vae, "unet": model.unet, "scheduler": scheduler, "adapter": adapter}
    parts |= {"text_encoder": None, "tokenizer": None}
    if name == "xl":
        made = StableDiffusionXLAdapterPipeline(
            **parts, text_encoder_2=None, tokenizer_2=None, feature_extractor=None
        )
    else:
        more = {"safety_checker": None, "requires_safety_checker": False}
        made = StableDiffusionAdapterPipeline(**parts, **more, feature_extractor=None)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("layout", ["", ".safetensors"])
@pytest.mark.parametrize(("name", "kind", "inputs"), CASES)
def test_each_kind_equals_diffusers(
    name: str, kind: str, inputs: int, layout: str, folder: Path
) -> None:
    """Theirs is on up to a share of the steps in SDXL's pipeline, always in the other."""
    model, picture = ours(name), folder / ("hint.png" if inputs == 3 else "grey.png")
    end = 0.5 if name == "xl" else 1.0
    text = f"{folder}/{name}-{kind}-{inputs}{layout}:{picture}:0.8:0..{end}"
    request = filled(model, controls=text)
    call = arguments(model, request) | {"adapter_conditioning_scale": 0.8}
    with Image.open(picture) as image:
        call |= {"image": image.convert("RGB" if inputs == 3 else "L")}
    if name == "xl":
        call |= {"adapter_conditioning_factor": end}
    wanted = pipeline(name, theirs(name, kind, inputs))(**call).images
    got = final(model, request)
    assert off(got, wanted) < 1e-4
    assert off(final(model, filled(model)), wanted) > 0.01


def test_two_add_up_and_join_an_ip_adapter(folder: Path) -> None:
    model = ours("sd1")
    other = theirs("sd1", "full_adapter", 3, seed=1)
    other.save_pretrained(folder / "other")
    texts = [
        f"{folder}/sd1-full_adapter-3:{folder}/hint.png:0.5",
        f"{folder}/other:{folder}/grey.png:0.25",
    ]
    request = filled(model, controls=texts)
    both = MultiAdapter([theirs("sd1", "full_adapter"), other])
    call = arguments(model, request) | {
        "image": [opened(folder / "hint.png"), opened(folder / "grey.png")],
        "adapter_conditioning_scale": [0.5, 0.25],
    }
    assert off(final(model, request), pipeline("sd1", both)(**call).images) < 1e-4
    path = ip_adapters.file_of("base", tiny.sd1().unet, folder, "ip")
    (folder / "image_encoder").symlink_to(ip_adapters.encoder_folder())
    joined = filled(model, controls=texts, ip_adapters=f"{path}:{folder}/hint.png")
    assert off(final(model, joined), final(model, request)) > 0.01


def test_modes_and_weight_0(folder: Path) -> None:
    """With "control" negatives are spared, with weight 0 no bit changes."""
    model, text = ours("sd1"), f"{folder}/sd1-full_adapter-3:{folder}/hint.png"
    plain = final(model, filled(model))
    assert torch.equal(final(model, filled(model, controls=f"{text}:0")), plain)
    drawn: list[Tensor] = [plain]
    for mode in ("balanced", "prompt", "control"):
        drawn.append(final(model, filled(model, controls=text, control_mode=mode)))
    assert all(off(a, b) > 1e-3 for i, a in enumerate(drawn) for b in drawn[:i])


def test_one_for_another_family_is_told(folder: Path) -> None:
    text = f"{folder}/xl-full_adapter_xl-3:{folder}/hint.png"
    with pytest.raises(UnknownLayout, match=r"is made for .*; the model is "):
        filled(ours("sd1"), controls=text)
    typed = f"{folder}/sd1-full_adapter-3@depth:{folder}/hint.png"
    with pytest.raises(BadRequest, match="takes no type depth"):
        filled(ours("sd1"), controls=typed)
