"""Latent cache: training pictures are encoded once and stored with a run's states."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from txt2img.errors import BadFile
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.train import checkpoint
from txt2img.train.config import TrainConfig
from txt2img.train.data import Pictures
from txt2img.weights.formats.safetensors_file import write

BATCH = 32  # pictures encoded together


def load_trained_vae(config: TrainConfig) -> VAE:
    """The trained VAE of the model's folder, in float32. Raises BadFile without one."""
    path = config.out / "vae" / checkpoint.NETWORK_FILE
    if not path.exists():
        raise BadFile(f"{config.out} has no VAE yet; train it first, with --stage vae or all")
    vae = VAE(config.vae)
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return vae.eval().requires_grad_(False)


def load_trained_unet(config: TrainConfig) -> UNet:
    """The trained U-Net of the model's folder, in float32. Raises BadFile without one."""
    path = config.out / "unet" / checkpoint.NETWORK_FILE
    if not path.exists():
        raise BadFile(f"{config.out} has no U-Net yet; train it first, with --stage unet or all")
    unet = UNet(config.unet)
    checkpoint.load_weights_from(unet, path)
    return unet.eval()


def all_latents(
    vae: VAE, pictures: Pictures, config: TrainConfig, accelerator: Accelerator
) -> Tensor:
    """The latents (N, C, h, w) of all training pictures, in the order of the rows.

    They are read from the run's folder where they were made of the same pictures by the same
    encoder: a run that goes on begins at once, and so does the next stage.
    """
    key = digest(pictures.fingerprint(), str(config.size), vae.encoder, vae.quant_conv)

    def make() -> Tensor:
        rows = list(range(len(pictures.rows)))
        with accelerator.autocast():
            network = vae.to(accelerator.device)
            return encode_rows(network, pictures, rows, config.size, accelerator.device)

    return cached("latents", key, make, config, accelerator)


def cached(
    name: str,
    key: str,
    make: Callable[[], Tensor],
    config: TrainConfig,
    accelerator: Accelerator,
) -> Tensor:
    """The tensor that `make` returns, in half precision, cached in the run's folder under a key.

    The first process makes it, the others wait and read it.
    """
    path = config.out / "state" / f"{name}.safetensors"
    with accelerator.main_process_first():
        tensor = (
            read_cached(path, key) if config.resume or not accelerator.is_main_process else None
        )
        if tensor is None:
            tensor = make().half()
            if accelerator.is_main_process:
                path.parent.mkdir(parents=True, exist_ok=True)
                write({name: tensor}, path, {"key": key})
    return tensor.to(accelerator.device).float()


def read_cached(path: Path, key: str) -> Tensor | None:
    """Read the tensor of a cache file; None unless it was written with this key."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        tensor: Tensor = file.get_tensor(path.stem)
        return tensor


def digest(*parts: str | nn.Module) -> str:
    """SHA-256 of texts and networks' weights."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode() + b"\0")
        else:
            for name, value in part.state_dict().items():
                total.update(name.encode())
                total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@torch.no_grad()
def encode_rows(
    vae: VAE, pictures: Pictures, rows: list[int], size: int, device: torch.device
) -> Tensor:
    """Encode rows to latents (N, C, h, w), float32."""
    latents = []
    for start in range(0, len(rows), BATCH):
        entries = [pictures.rows[n] for n in rows[start : start + BATCH]]
        pixels = pictures.paint_all(entries, size)
        latents.append(vae.encode(pixels.to(device)).float())
    return torch.cat(latents)


@torch.no_grad()
def normalise_latents(vae: VAE, latents: Tensor) -> None:
    """Fold the latents' mean and deviation per channel into the adjacent 1×1 convolutions.

    So latents have mean 0, but for a shift, and deviation `scaling` in any program that loads
    the folder.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        return
    assert before.bias is not None and after.bias is not None
    channels = vae.config.latent_channels
    latents = latents / vae.config.scaling + vae.config.shift
    mean = latents.mean(dim=(0, 2, 3)).to(before.weight)
    spread = latents.std(dim=(0, 2, 3)).to(before.weight)
    before.bias[:channels] = (before.bias[:channels] - mean) / spread
    before.weight[:channels] /= spread[:, None, None, None]
    before.bias[channels:] -= 2.0 * spread.log()  # the other half is the log variance
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= spread[None, :, None, None]
