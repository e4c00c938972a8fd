"""ControlNet of a U-Net: its first half, trained to follow maps of pictures, as diffusers has it.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.levels import Level
from txt2img.errors import BadRequest
from txt2img.images.preprocess import preprocess
from txt2img.models.configs import UNetConfig
from txt2img.models.control_configs import ControlNetConfig
from txt2img.models.controlnet import ControlNet
from txt2img.request.preprocess import parse_preprocess
from txt2img.train import checkpoint
from txt2img.train.adapter_stage import SHEET_PROMPTS, AdapterStage, cond_of
from txt2img.train.config import TrainConfig
from txt2img.train.data import ImageCache, shuffled_indices
from txt2img.train.losses import LevelBatch, add_noise
from txt2img.train.samples import save_sheet
from txt2img.train.stages import GIB
from txt2img.weights.convert.folder import controlnet_config
from txt2img.weights.layouts.control import HALF_UNET

HINT = (16, 32, 96, 256)  # channels of the hint's convolutions; each after the first halves it


class ControlObjective(nn.Module):
    """The loss of a ControlNet; the network that it steers is frozen."""

    def __init__(self, control: ControlNet, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.control, self.loss = control, loss
        self.requires_grad_(True)

    def forward(
        self,
        x0: Tensor,
        noise: Tensor,
        time: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        hints: Tensor,
        *texts: Tensor,
    ) -> Tensor:
        """A batch as AdapterStage.batch gives it, with hints (B, 3, H, W) in 0…1 → a scalar."""
        cond = cond_of(*texts)
        noisy = add_noise(x0, noise, LevelBatch(alpha, sigma))
        residuals = self.control(noisy, time, cond, self.control.embed_hint(hints))
        with_them = replace(cond, residuals=tuple(residuals))
        return self.loss(with_them, x0, noise, time, alpha, sigma)


class ControlStage(AdapterStage):
    """Trains a ControlNet on the maps that a preprocessor makes of the training pictures."""

    name = "control"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.how = parse_preprocess(config.control)
        if self.how.model:
            raise BadRequest(f"--control {self.how}: it is trained on maps that OpenCV makes")
        super().__init__(config, accelerator, config.control_run)
        self.network.to(accelerator.device)
        self.images = ImageCache(self.pictures, self.config.size, config.keep_gib * GIB)
        self.control = control_of(self.network, self.family.vae.factor)
        self.learner = ControlObjective(self.control, self.loss)

    def row_inputs(self, rows: Sequence[int]) -> tuple[Tensor, ...]:
        """The maps of pictures: (B, 3, H, W) in 0…1."""
        maps = [
            np.asarray(preprocess(Image.fromarray(one.permute(1, 2, 0).numpy()), self.how))
            for one in self.images(rows)
        ]
        hints = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float() / 255
        return (hints.to(self.accelerator.device),)

    def draw(self, path: Path) -> None:
        """Draw some captions by their pictures' maps, each beside its map."""
        count, seed = len(self.pictures.rows), self.config.seed
        generator, pairs = torch.Generator().manual_seed(seed), list[Tensor]()
        for row in shuffled_indices(count, 0, min(count, SHEET_PROMPTS), seed + 1):
            [hint] = self.row_inputs([row])
            features = self.control.embed_hint(hint)

            def follow(
                x: Tensor,
                times: Tensor,
                level: Level,
                cond: Cond,
                first: bool,
                features: Tensor = features,
            ) -> Cond:
                return replace(cond, residuals=tuple(self.control(x, times, cond, features)))

            caption = self.pictures.rows[row].captions[0]
            pairs += [hint.cpu() * 2 - 1, self.drawn(caption, generator, follow)]
        save_sheet(path, torch.cat(pairs))

    def export(self) -> None:
        """Write diffusers' folder of the ControlNet, in half precision."""
        config = controlnet_config(self.control.control_config)
        checkpoint.save_json(self.config.out / "config.json", config)
        checkpoint.save_weights(
            self.control.state_dict(), self.config.out / checkpoint.NETWORK_FILE
        )


def control_of(network: nn.Module, factor: int) -> ControlNet:
    """A ControlNet that begins as a copy of a U-Net's first half, and changes nothing."""
    config = network.config
    assert isinstance(config, UNetConfig)
    halvings = factor.bit_length() - 1
    control = ControlNet(ControlNetConfig(config, HINT[: halvings + 1]))
    weights = {n: v.float() for n, v in network.state_dict().items() if n.startswith(HALF_UNET)}
    left_out = control.load_state_dict(weights, strict=False)
    own = "controlnet_"
    if left_out.unexpected_keys or not all(n.startswith(own) for n in left_out.missing_keys):
        raise BadRequest("the model's U-Net is quantised; train on its file in full precision")
    zeros = control.controlnet_down_blocks, control.controlnet_mid_block
    for module in (*zeros, control.controlnet_cond_embedding.conv_out):
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return control
