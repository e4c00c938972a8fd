"""VAEs of diffusion transformers, against diffusers': 16 channels, and 128 by patches of 32."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, Flux2KleinPipeline
from safetensors.torch import save_file
from torch import Tensor

from tests.support import tiny
from tests.support.loaded import loaded, on_meta
from txt2img.models.configs import FLUX2_VAE, FLUX_VAE, SD3_VAE, VAEConfig
from txt2img.models.tiling import decode_tiled
from txt2img.models.vae import VAE
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import detect, key_maps
from txt2img.weights.layouts.components import component, linear_attention
from txt2img.weights.layouts.vae import open_vae

BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
TINY = {"groups": 8, "channels": (16, 32), "layers": 1}


def flux(scaling: float = 0.3611, shift: float = 0.1159) -> AutoencoderKL:
    """A tiny VAE of FLUX.1's kind."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        **BLOCKS,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=scaling,
        shift_factor=shift,
    )
    return vae.eval().requires_grad_(False)


def flux2(**settings: object) -> AutoencoderKLFlux2:
    """A tiny VAE of FLUX.2's kind, whose batch norm has seen something."""
    torch.manual_seed(2)
    vae = AutoencoderKLFlux2(**BLOCKS | {"latent_channels": 8} | settings)
    vae.bn.running_mean.normal_(generator=torch.Generator().manual_seed(3))
    vae.bn.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(4))
    return vae.eval().requires_grad_(False)


def original(vae: AutoencoderKL | AutoencoderKLFlux2) -> dict[str, Tensor]:
    """The tensors of a VAE as in ae.safetensors."""
    state = tiny.ldm_vae(vae.state_dict(), len(vae.config["block_out_channels"]))
    state = {name.removeprefix("first_stage_model."): v for name, v in state.items()}
    if isinstance(vae, AutoencoderKLFlux2):  # has them inside
        state = {
            {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}.get(
                name.rpartition(".")[0], name.rpartition(".")[0]
            )
            + "."
            + name.rpartition(".")[2]: value
            for name, value in state.items()
        }
    return {name: value.contiguous().clone() for name, value in state.items()}


def written(vae: AutoencoderKL | AutoencoderKLFlux2, layout: str, folder: Path) -> Path:
    """A VAE on disk, in one of its layouts."""
    if layout == "folder":
        vae.save_pretrained(folder / "vae")
        return folder / "vae"
    prefix = {"file": "", "of FLUX": "vae."}[layout]
    save_file({prefix + n: v for n, v in original(vae).items()}, folder / "ae.safetensors")
    return folder / "ae.safetensors"


def ours(path: Path, own: VAEConfig) -> VAE:
    """Our VAE with the weights at a path."""
    files = open_vae(str(path), own)
    assert isinstance(files.config, VAEConfig)
    assert files.config == own
    return loaded(partial(VAE, files.config), files.component)


def pixels() -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(5))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


LAYOUTS = ["folder", "file", "of FLUX"]


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [FLUX_VAE, SD3_VAE], ids=["flux", "sd3"])
def test_16_channels_equal_diffusers(kind, layout, tmp_path):
    theirs = flux(kind.scaling, kind.shift)
    own = VAEConfig(
        latent_channels=16, quant_conv=False, scaling=kind.scaling, shift=kind.shift, **TINY
    )
    vae = ours(written(theirs, layout, tmp_path), own)
    latent = (theirs.encode(pixels()).latent_dist.mode() - kind.shift) * kind.scaling
    close(vae.encode(pixels()), latent)
    close(vae.decode(latent), theirs.decode(latent / kind.scaling + kind.shift).sample)


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("decoder", [None, (8, 16)], ids=["plain", "small decoder"])
def test_patches_and_batch_norm_equal_diffusers(layout, decoder, tmp_path):
    theirs = flux2(decoder_block_out_channels=decoder)
    own = VAEConfig(
        latent_channels=32, scaling=1.0, patch=2, norm_eps=1e-4, decoder_channels=decoder, **TINY
    )
    vae = ours(written(theirs, layout, tmp_path), own)
    pipeline = Flux2KleinPipeline(None, theirs, None, None, None)
    latent = pipeline._encode_vae_image(pixels(), None)
    close(vae.encode(pixels()), latent)
    mean, var = (stat[:, None, None] for stat in (theirs.bn.running_mean, theirs.bn.running_var))
    raw = pipeline._unpatchify_latents(latent * torch.sqrt(var + 1e-4) + mean)
    close(vae.decode(latent), theirs.decode(raw).sample)
    assert vae.config.factor == 4
    assert latent.shape == (2, 32, 4, 6)


@torch.inference_mode()
def test_patches_are_decoded_in_tiles(tmp_path):
    own = VAEConfig(latent_channels=32, scaling=1.0, patch=2, norm_eps=1e-4, **TINY)
    vae = ours(written(flux2(), "file", tmp_path), own)
    latent = torch.randn(1, 32, 12, 16, generator=torch.Generator().manual_seed(6))
    tiled = decode_tiled(vae.decode, latent, vae.config.factor, tile=8, overlap=4)
    whole = vae.decode(latent)
    assert tiled.shape == whole.shape == (1, 3, 48, 64)
    # Each tile's group norms see their own pixels only.
    assert (tiled - whole).abs().mean() < 0.15 * whole.std()


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("name", ["flux", "flux2"])
def test_every_published_tensor_has_its_place(name, layout):
    with torch.device("meta"):
        theirs: AutoencoderKL | AutoencoderKLFlux2 = AutoencoderKLFlux2()
        if name == "flux":
            theirs = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
                latent_channels=16,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
    state = theirs.state_dict() if layout == "diffusers" else original(theirs)
    assert len(state) == {"flux": 244, "flux2": 251}[name]
    refs = {n: TensorRef(Path("x"), n, "F32", tuple(v.shape), 0) for n, v in state.items()}
    own = {"flux": FLUX_VAE, "flux2": FLUX2_VAE}[name]
    table = key_maps.vae_from_old_diffusers()
    if layout == "original":
        table = key_maps.vae_from_ldm(own)
    config = detect.vae_config(refs, own.scaling, layout == "diffusers")
    assert (config.latent_channels, config.factor) == (own.latent_channels, own.factor)
    assert config.quant_conv == own.quant_conv
    on_meta(partial(VAE, own), linear_attention(component(refs, table, "")))
