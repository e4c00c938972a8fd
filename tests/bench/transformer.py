"""A diffusion transformer beside diffusers': Z-Image's depth, a fraction of its width."""

import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

HEADS = 6  # of 30, for a step
WIDER = 10  # for memory, of which libraries and the tokenizer take 0.3 GB at any width
PIXELS = 256
TOKENS = 40  # of a caption


def step(
    heads: int = HEADS, layers: int = 30, pixels: int = PIXELS, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One evaluation by ours and by diffusers' network, which share their random weights."""
    from diffusers import ZImageTransformer2DModel

    from txt2img.diffusion.conditioning import Cond
    from txt2img.diffusion.guidance import Predictor
    from txt2img.diffusion.levels import Flow
    from txt2img.diffusion.predictions import PREDICTIONS
    from txt2img.models.configs import ZImageConfig
    from txt2img.models.z_image import ZImageTransformer

    torch.manual_seed(0)
    config = ZImageConfig(heads=heads, layers=layers)
    other = ZImageTransformer2DModel(
        dim=config.width, n_heads=heads, n_kv_heads=heads, n_layers=layers
    )
    other.eval().to(dtype)
    with torch.device("meta"):
        mine = ZImageTransformer(config)
    mine.load_state_dict(other.state_dict(), strict=True, assign=True)
    mine.eval()
    process = Flow()
    level, x = process.level(500.0), torch.randn(1, 16, pixels // 8, pixels // 8)
    tokens = torch.randn(1, TOKENS, config.cross_dim)
    predict, cond = Predictor(mine, process, PREDICTIONS["flow"]), Cond(tokens)

    def ours() -> Tensor:
        return predict(x, level, cond)

    def theirs() -> Tensor:
        latents, time = x.to(dtype)[:, :, None], torch.tensor([(1000 - 500.0) / 1000])
        out = other(list(latents), time, list(tokens.to(dtype))).sample[0]
        return x + level.sigma * out[None, :, 0].float()

    return ours, theirs


def write_folder(folder: Path, heads: int = WIDER, layers: int = 30) -> None:
    """A whole model's folder: the network in float32, and tiny text encoder and VAE."""
    from diffusers import ZImageTransformer2DModel

    from tests.support.tiny_transformers import z_image

    shutil.copytree(z_image().folder, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "transformer")
    torch.manual_seed(0)
    ZImageTransformer2DModel(
        dim=128 * heads, n_heads=heads, n_kv_heads=heads, n_layers=layers, cap_feat_dim=24
    ).save_pretrained(folder / "transformer")


def weights_bytes(folder: Path) -> int:
    """Bytes of all weights in float32."""
    from txt2img.weights.formats import safetensors_file

    paths = [folder] if folder.is_file() else folder.glob("*/*.safetensors")
    headers = (safetensors_file.header(path) for path in paths)
    return sum(4 * prod(ref.shape) for header in headers for ref in header.tensors.values())
