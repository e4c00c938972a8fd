"""IP-Adapter: each kind against diffusers, in one pass of a U-Net; published names at full size."""

import copy
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.support import ip_adapters, tiny, tiny_xl
from txt2img.diffusion.conditioning import Cond, ImagePrompt
from txt2img.models.clip_vision import CLIPVision
from txt2img.models.configs import UNetConfig
from txt2img.models.control_configs import IPAdapterConfig
from txt2img.models.ip_adapter import IPAdapter, level_masks
from txt2img.models.optimize.cpu import CpuPlan, optimize
from txt2img.models.unet import UNet
from txt2img.pipeline.image_prompts import pixels_for_clip
from txt2img.system.device.device import Device
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.clip_vision import clip_vision_in, open_clip_vision
from txt2img.weights.layouts.ip_adapter import cross_widths, ip_adapter_in
from txt2img.weights.load import load

CPU = Device(torch.device("cpu"), torch.float32)
MODELS = {"sd1": tiny.sd1, "xl": tiny_xl.base}
SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
XL = {
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
}
XL_UNET = UNetConfig(
    channels=(320, 640, 1280),
    attention=(False, True, True),
    depth=(0, 2, 10),
    heads=(5, 10, 20),
    cross_dim=2048,
)


@cache
def unet(name: str) -> UNet:
    network = load(str(MODELS[name]().folder), CPU).network
    assert isinstance(network, UNet)
    return network


def off(got: Tensor, wanted: Tensor) -> float:
    """The largest miss, relative to the largest value."""
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


def refs(state: Mapping[str, Tensor]) -> dict[str, TensorRef]:
    """The tensors as a file's header describes them."""
    return {n: TensorRef(Path("f"), n, "F32", tuple(v.shape), 0) for n, v in state.items()}


def adapter_of(state: Mapping[str, Tensor]) -> IPAdapter:
    """Our network with a published state."""
    config, part = ip_adapter_in(refs(state), "f")
    network, own = IPAdapter(config), {}
    for name in part.tensors:
        fused = re.sub(r"to_[kv]\.weight", "to_kv.weight", name)
        is_half = fused in state and fused != name
        own[name] = state[fused].chunk(2)["to_v." in name] if is_half else state[name]
    network.load_state_dict(own)
    return network.eval()


def features_of(kind: str, count: int) -> Tensor:
    shape = (ip_adapters.PROJECTION,) if kind == "base" else (5, ip_adapters.WIDTH)
    return torch.randn(count, *shape)


@torch.no_grad()
@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(
    ("name", "kind", "weights", "masked"),
    [
        ("sd1", "base", (0.7,), False),
        ("sd1", "plus", (1.0, -0.5), True),
        ("sd1", "full", (0.5,), True),
        ("xl", "plus", (0.8,), False),
        ("xl", "base", (0.4, 1.3), True),
    ],
)
def test_one_pass_equals_diffusers(
    name: str, kind: str, weights: tuple[float, ...], masked: bool, optimized: bool
) -> None:
    """Each attention gets the keys of its own number; several adapters add up, masked or not."""
    network, theirs = unet(name), copy.deepcopy(MODELS[name]().unet)
    states = [ip_adapters.state_of(kind, theirs, seed) for seed, _ in enumerate(weights)]
    theirs._load_ip_adapter_weights([ip_adapters.nested(state) for state in states])
    theirs.set_attn_processor(theirs.attn_processors)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = list(weights)
    features = [features_of(kind, 2) for _ in weights]
    x, time, text = torch.randn(2, 4, 24, 16), torch.tensor([981.0, 3.5]), None
    text = torch.randn(2, 77, network.config.cross_dim)
    told: dict[str, object] = {"image_embeds": [one[:, None] for one in features]}
    more: tuple[Tensor, ...] = ()
    if name == "xl":
        more = torch.randn(2, network.config.pooled), torch.tensor([[96.0, 64, 0, 0, 96, 64]] * 2)
        told |= {"text_embeds": more[0], "time_ids": more[1]}
    areas = [(torch.rand(1, 1, 192, 128) > 0.5).float() for _ in weights] if masked else None
    with torch.no_grad():
        wanted = theirs(
            x,
            time,
            text,
            added_cond_kwargs=told,
            cross_attention_kwargs={"ip_adapter_masks": areas} if areas else None,
        ).sample
    heads, prompts = [one.heads for one in network.cross_attentions], []
    for i, weight in enumerate(weights):
        adapter = adapter_of(states[i])
        mask = level_masks(areas[i], (24, 16)).expand(2, -1) if areas else None
        prompts.append(ImagePrompt(adapter.pairs(adapter(features[i]), heads, weight), mask))
    cond = Cond(text, *more, image_prompts=tuple(prompts))
    optimize(network, CpuPlan(2) if optimized else None)
    plain = network(x, time, replace_prompts(cond))
    assert off(network(x, time, cond), wanted) < 1e-5
    assert off(plain, wanted) > 0.01
    assert torch.equal(network(x, time, replace_prompts(cond)), plain)


def replace_prompts(cond: Cond) -> Cond:
    """The same condition without image prompts."""
    return Cond(cond.tokens, cond.pooled, cond.size_ids)


@pytest.mark.parametrize(
    ("kind", "config", "sizes"),
    [
        ("base", SD1, {"tokens": 4}),
        ("plus", SD1, {"tokens": 16, "width": 768, "depth": 4, "heads": 12, "mlp": 3072}),
        ("full", SD1, {}),
        ("base", XL, {"tokens": 4}),
        ("plus", XL, {"tokens": 16, "width": 1280, "depth": 4, "heads": 20, "mlp": 5120}),
    ],
)
def test_published_names_at_full_size_load_into_diffusers(
    kind: str, config: dict[str, object], sizes: dict[str, int]
) -> None:
    """diffusers converts what our network names, all of it, and we read the config back."""
    own = UNetConfig() if config is SD1 else XL_UNET
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**config)
        features = 1280 if kind != "base" else 1024
        wanted = IPAdapterConfig(
            kind, features, own.cross_dim, cross_widths(own), sizes.get("tokens", 0)
        )
        wanted = IPAdapterConfig(**(vars(wanted) | sizes))
        state = dict(IPAdapter(wanted).state_dict())
        for name in [name for name in state if name.endswith(".0.to_k.weight")]:
            k, v = state.pop(name), state.pop(name.replace("to_k", "to_v"))
            state[name.replace("to_k", "to_kv")] = torch.cat([k, v])
        parts = ip_adapters.nested(state)
        theirs._convert_ip_adapter_image_proj_to_diffusers(
            parts["image_proj"], low_cpu_mem_usage=False
        )
        used = theirs._convert_ip_adapter_attn_to_diffusers([parts], low_cpu_mem_usage=False)
    loaded = sum(len(list(one.parameters())) for one in used.values() if hasattr(one, "parameters"))
    assert loaded == len(parts["ip_adapter"]) == (32 if config is SD1 else 140)
    got, part = ip_adapter_in(refs(state), "f")
    assert got == wanted
    assert {n: r.shape for n, r in part.tensors.items()} == {
        n: tuple(v.shape) for n, v in IPAdapter(wanted).state_dict().items()
    }


@torch.no_grad()
def test_image_encoder_equals_transformers(tmp_path: Path) -> None:
    """The pixels of CLIP's own preparation, the embedding and the states."""
    import numpy as np
    from PIL import Image
    from transformers import CLIPImageProcessor

    pixels = np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((90, 67), Image.Resampling.BICUBIC)
    wanted = CLIPImageProcessor(size=28, crop_size=28)(image, return_tensors="pt").pixel_values
    assert off(pixels_for_clip(image, 28), wanted) < 1e-6
    theirs = ip_adapters.encoder()
    file = open_clip_vision(ip_adapters.encoder_folder())
    own, part = CLIPVision(file.config), file.component
    own.model.load_state_dict(theirs.state_dict())
    assert set(part.tensors) == set(theirs.state_dict())
    expected = theirs(wanted, output_hidden_states=True)
    assert off(own(wanted), expected.image_embeds) < 1e-5
    assert off(own(wanted, states=True), expected.hidden_states[-2]) < 1e-5


@pytest.mark.parametrize(
    ("width", "layers", "mlp", "projection"),
    [(1280, 32, 5120, 1024), (1664, 48, 8192, 1280)],
)
def test_published_image_encoders_at_full_size(
    width: int, layers: int, mlp: int, projection: int
) -> None:
    """ViT-H/14 and bigG: transformers' own names and shapes, and the config read back of them."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        theirs = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=16,
                intermediate_size=mlp,
                projection_dim=projection,
                patch_size=14,
                hidden_act="gelu",
            )
        )
        config, part = clip_vision_in(refs(theirs.state_dict()), "f")
        own = CLIPVision(config)
    assert (config.heads, config.size, config.act) == (16, 224, "gelu")
    assert {n.removeprefix("model."): tuple(v.shape) for n, v in own.state_dict().items()} == {
        n: ref.shape for n, ref in part.tensors.items()
    }
