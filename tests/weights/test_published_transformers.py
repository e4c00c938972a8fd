"""Published diffusion transformers open from headers alone, and weights.md has their memory."""

import json
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model, T5Config, T5EncoderModel

from tests.support import published
from tests.support.published import Shapes
from tests.support.transformers import PUBLISHED, config_of, full
from tests.weights.test_published import LISTS, TABLE, hollow
from txt2img.models.configs import FLUX2_VAE, FLUX_VAE, SD3_VAE, VAEConfig
from txt2img.models.vae import VAE
from txt2img.pipeline.estimates.forecast import Forecast, forecast_for
from txt2img.request import Request
from txt2img.request.resolve import AdapterPaths, ComponentOverrides
from txt2img.system.text import format_size

SD3_TEXTS = ("clip-l-projected", "clip-g", "t5")
# A short name's network in tests/support/transformers.py, its text encoders, its VAE.
MODELS: dict[str, tuple[str, tuple[str, ...], VAEConfig]] = {
    "flux-schnell": ("flux-schnell", ("clip-l", "t5"), FLUX_VAE),
    "flux-dev": ("flux-dev", ("clip-l", "t5"), FLUX_VAE),
    "sd3-medium": ("sd3-medium", SD3_TEXTS, SD3_VAE),
    "sd35-medium": ("sd35-medium", SD3_TEXTS, SD3_VAE),
    "sd35-large": ("sd35-large", SD3_TEXTS, SD3_VAE),
    "sd35-large-turbo": ("sd35-large", SD3_TEXTS, SD3_VAE),
    "z-image": ("z-image", ("qwen3-4b",), FLUX_VAE),
    "z-image-turbo": ("z-image", ("qwen3-4b",), FLUX_VAE),
    "flux2-klein-4b": ("flux2-klein-4b", ("qwen3-4b",), FLUX2_VAE),
    "flux2-klein-base-4b": ("flux2-klein-4b", ("qwen3-4b",), FLUX2_VAE),
    "flux2-klein-9b": ("flux2-klein-9b", ("qwen3-8b",), FLUX2_VAE),
}
QWEN = {
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288},
}
QWEN_ALL = {
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def shapes_of(network: nn.Module, prefix: str = "") -> Shapes:
    return {f"{prefix}{name}": tuple(v.shape) for name, v in network.state_dict().items()}


@cache
def text_shapes(kind: str) -> Mapping[str, tuple[int, ...]]:
    """A text encoder's tensors as ComfyUI's files have them."""
    if kind == "clip-l-projected":
        return {**published.shapes("clip-l"), "text_projection.weight": (768, 768)}
    if kind.startswith("clip"):
        return published.shapes(kind)
    with torch.device("meta"):
        if kind == "t5":
            config = T5Config(
                vocab_size=32128,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                **T5_XXL,
            )
            found = shapes_of(T5EncoderModel(config))
            found.pop("encoder.embed_tokens.weight", None)  # the same as shared
            return found
        return shapes_of(Qwen3Model(Qwen3Config(**QWEN_ALL, **QWEN[kind])), "model.")


def forecast(name: str, folder: Path, dtype: str | None) -> tuple[Forecast, int]:
    """The forecast for a model's folder without weights, and its number of parameters."""
    key, texts, vae = MODELS[name]
    network = full(key)
    home = folder / name
    for part in ("transformer", "vae"):
        (home / part).mkdir(parents=True, exist_ok=True)
    (home / "transformer" / "config.json").write_text(json.dumps(config_of(network)))
    parts = {
        home / "transformer" / "diffusion_pytorch_model.safetensors": shapes_of(network),
        **{folder / f"{name}-{kind}.safetensors": text_shapes(kind) for kind in texts},
        home / "vae.safetensors": vae_shapes(vae),
    }
    files = {path: hollow(path, dict(shapes)) for path, shapes in parts.items()}
    (home / "vae").rmdir()
    overrides = ComponentOverrides(None, tuple(str(f) for f in files if f.parent == folder))
    library = AdapterPaths(vae=str(home / "vae.safetensors"), overrides=overrides)
    count = sum(prod(shape) for shapes in parts.values() for shape in shapes.values())
    return forecast_for(str(home), library, "cpu", dtype), count


@cache
def vae_shapes(config: VAEConfig) -> Mapping[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(VAE(config))


def test_every_transformer_of_the_table_is_here() -> None:
    others = {name for name in TABLE if LISTS.get(name, name) in published.MODELS}
    assert set(MODELS) == set(TABLE) - others
    assert {key for key, _, _ in MODELS.values()} <= set(PUBLISHED)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_table_has_the_sizes_and_estimates(name: str, tmp_path: Path) -> None:
    whole, count = forecast(name, tmp_path, None)
    narrow, _ = forecast(name, tmp_path, "bf16")
    request = narrow.filled(Request(""))
    found = [
        format_size(2 * count),
        format_size(whole.weights),
        format_size(narrow.peak(request).least),
    ]
    assert [TABLE[name][1], *TABLE[name][3:]] == found
