"""Tiny diffusion transformers with random weights, as diffusers' pipelines and in all layouts."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from tests.support import tiny, tiny_text
from tests.support.transformers import original, randomise
from txt2img.models.tokenizer import EOS
from txt2img.weights.layouts.transformer_configs import (
    flux2_from_diffusers,
    flux_from_diffusers,
    sd3_from_diffusers,
    z_image_from_diffusers,
)
from txt2img.weights.layouts.transformer_key_maps import (
    flux2_layers,
    flux_layers,
    sd3_layers,
    z_image_layers,
)
from txt2img.weights.tokenizer_files import clip_tokenizer

State = dict[str, Tensor]
LEVELS = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
}
TEXT_PREFIXES = {
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
    "z-image": {"text_encoder": "qwen3_4b"},
    "flux2": {"text_encoder": "qwen3_4b"},
}


@dataclass(frozen=True)
class TinyTransformer:
    """A pipeline of diffusers, and its files: a folder, one file, and a file for each part."""

    family: str
    pipeline: DiffusionPipeline
    folder: Path
    single: Path
    network: Path
    texts: tuple[Path, ...]
    vae: Path


@cache
def flux_dev() -> TinyTransformer:
    """FLUX.1 dev."""
    return _flux("tiny-flux-dev", True)


@cache
def flux_schnell() -> TinyTransformer:
    """FLUX.1 schnell."""
    return _flux("tiny-flux-schnell", False)


@cache
def flux_fill() -> TinyTransformer:
    """FLUX.1 Fill."""
    return _flux("tiny-flux-fill", True, 384)


@cache
def flux_depth() -> TinyTransformer:
    """FLUX.1 Depth."""
    return _flux("tiny-flux-depth", True, 128)


def _flux(name: str, dev: bool, inputs: int = 64) -> TinyTransformer:
    transformer = FluxTransformer2DModel(
        in_channels=inputs,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,  # as published: single files do not tell the axes' shares of it
        num_attention_heads=1,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=dev,
    )
    shift = {"use_dynamic_shifting": True} if dev else {"shift": 1.0}
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**shift),
        _vae(0.3611, 0.1159),
        tiny_text.clip_l(False),
        _clip_words(EOS),
        tiny_text.t5(),
        tiny_text.their_t5_tokenizer(),
        transformer,
    )
    layers = flux_layers(flux_from_diffusers(_config(transformer)))
    return _written(name, "flux", pipeline, lambda state: original(state, layers))


@cache
def sd3() -> TinyTransformer:
    """Stable Diffusion 3.5 medium: a second attention of the picture in the first block."""
    transformer = SD3Transformer2DModel(
        sample_size=32,
        in_channels=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=28,
        pos_embed_max_size=48,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(1.5305, 0.0609),
        tiny_text.clip_l(True),
        _clip_words(EOS),
        tiny_text.clip_g(),
        _clip_words("!"),
        tiny_text.t5(),
        tiny_text.their_t5_tokenizer(),
    )
    layers = sd3_layers(sd3_from_diffusers(_config(transformer)))
    return _written("tiny-sd3", "sd3", pipeline, lambda state: original(state, layers))


@cache
def z_image() -> TinyTransformer:
    """Z-Image."""
    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=128,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=1,
        n_kv_heads=1,
        cap_feat_dim=24,
        axes_lens=[256, 64, 64],
    )
    pipeline = ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        _vae(0.3611, 0.1159),
        tiny_text.qwen3(),
        tiny_text.their_qwen_tokenizer(),
        transformer,
    )
    layers = z_image_layers(z_image_from_diffusers(_config(transformer)))
    return _written("tiny-z-image", "z-image", pipeline, lambda state: original(state, layers))


@cache
def flux2_klein() -> TinyTransformer:
    """FLUX.2 klein base, which is not distilled and takes true guidance."""
    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=72,
        guidance_embeds=False,
    )
    vae = randomise(AutoencoderKLFlux2(**LEVELS))
    vae.bn.running_mean.normal_(std=0.1)
    vae.bn.running_var.uniform_(0.5, 2.0)
    pipeline = Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae,
        tiny_text.qwen3(28),
        tiny_text.their_qwen_tokenizer(),
        transformer,
    )
    layers = flux2_layers(flux2_from_diffusers(_config(transformer)))
    return _written("tiny-klein-base", "flux2", pipeline, lambda state: original(state, layers))


def _vae(scaling: float, shift: float) -> AutoencoderKL:
    return randomise(
        AutoencoderKL(
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=scaling,
            shift_factor=shift,
            **LEVELS,
        )
    )


def _config(network: nn.Module) -> dict[str, object]:
    return dict(network.config) | {"_class_name": type(network).__name__}


@cache
def _clip_words(pad: str) -> CLIPTokenizer:
    folder = Path(tempfile.mkdtemp(dir=tiny._ROOT.name)) / "words"
    tiny.write_tokenizer(folder, clip_tokenizer(77, pad))
    return CLIPTokenizer.from_pretrained(folder)


def _written(
    name: str,
    family: str,
    pipeline: DiffusionPipeline,
    to_original: Callable[[State], State],
) -> TinyTransformer:
    """Write a pipeline in every layout."""
    randomise(pipeline.transformer).requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    root = Path(tiny._ROOT.name) / name
    pipeline.save_pretrained(root / name)
    network = to_original(pipeline.transformer.state_dict())
    encoders = {
        prefix: tiny_text.tensors_of(getattr(pipeline, component))
        for component, prefix in TEXT_PREFIXES[family].items()
    }
    levels = len(LEVELS["block_out_channels"])
    vae = {
        key.removeprefix("first_stage_model."): value
        for key, value in tiny.ldm_vae(pipeline.vae.state_dict(), levels).items()
    }
    texts = []
    for prefix, tensors in encoders.items():
        texts.append(root / f"{prefix}.safetensors")
        _save(tensors, texts[-1])
    single = {f"model.diffusion_model.{key}": value for key, value in network.items()}
    single |= {f"vae.{key}": value for key, value in vae.items()}
    for prefix, tensors in encoders.items():
        single |= {f"text_encoders.{prefix}.transformer.{key}": v for key, v in tensors.items()}
    files = {"single": single, "network": network, "vae": vae}
    paths = {key: root / f"{name}-{key}.safetensors" for key in files}
    for key, tensors in files.items():
        _save(tensors, paths[key])
    return TinyTransformer(
        family, pipeline, root / name, paths["single"], paths["network"], tuple(texts), paths["vae"]
    )


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
