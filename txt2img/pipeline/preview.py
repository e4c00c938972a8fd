"""Previews of the image after each step: coarse and fast, or by a decoder."""

import torch
from PIL import Image
from torch import Tensor

from txt2img.models.latent_preview import Colours, colours
from txt2img.models.seamless import seamless
from txt2img.models.taesd import AnyVAE, TinyVAE
from txt2img.pipeline.decode import to_image
from txt2img.request.fields import Tile
from txt2img.system.device.memory import free, is_oom
from txt2img.weights.model import Model

SHORT = "Out of memory for a preview: previews are coarse from now on"


class Previewer:
    """Turns a model's latents into previews, and changes nothing of its images."""

    def __init__(self, model: Model, vae: AnyVAE | None = None) -> None:
        self.model = model
        tiny = model.vae if isinstance(model.vae, TinyVAE) else None
        self.vae = tiny if vae is None else vae
        self._colours: Colours | None = None

    def images(self, x0: Tensor, tile: Tile | None = None) -> list[Image.Image]:
        """Images of latents (B, C, h, w): full size by a VAE, else one pixel a latent cell."""
        return [to_image(torch.nan_to_num(pixels)) for pixels in self.pixels(x0, tile)]

    @torch.inference_mode()
    def pixels(self, x0: Tensor, tile: Tile | None = None) -> Tensor:
        """Pixels, (B, 3, H, W) or (B, 3, h, w); the coarse ones where memory is short."""
        placement = self.model.memory.placement
        if self.vae is not None:
            try:
                with placement.using("vae", self.vae), seamless(self.vae, tile):
                    device = next(self.vae.parameters()).device
                    return torch.cat([self.vae.decode(one[None].to(device)) for one in x0])
            except (RuntimeError, MemoryError) as error:
                if not is_oom(error):
                    raise
            self.vae = None
            free()
            self.model.memory.warn(SHORT)
        if self._colours is None:
            with placement.using("vae", self.model.vae):
                self._colours = colours(self.model.vae, self.model.family.vae)
        return self._colours.of(x0)
