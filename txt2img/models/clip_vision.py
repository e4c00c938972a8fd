"""CLIP's image encoder, by transformers: a picture → the features that an IP-Adapter reads.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
Parameter names are transformers' after `model.`.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from txt2img.models import configs
from txt2img.models.transformers_library import quietly, replace_linears

MEAN = 0.48145466, 0.4578275, 0.40821073  # of the pictures that CLIP was trained on, by channel
DEVIATION = 0.26862954, 0.26130258, 0.27577711


class CLIPVision(nn.Module):
    """A vision transformer with CLIP's projection."""

    def __init__(self, config: configs.CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        with quietly():
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.model = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp,
                projection_dim=config.projection,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                image_size=config.size,
                patch_size=config.patch,
                hidden_act=config.act,
            )
        )
        replace_linears(self.model)

    def forward(self, pixels: Tensor, states: bool = False) -> Tensor:
        """The embeddings (B, E) of normalised pixels (B, 3, size, size).

        Or the last states but one, (B, patches + 1, width), if `states`.
        """
        weight = next(self.model.parameters())
        out = self.model(pixels.to(weight.device, weight.dtype), output_hidden_states=states)
        result: Tensor = out.hidden_states[-2] if states else out.image_embeds
        return result


def pixels_for_clip(image: Image.Image, side: int) -> Tensor:
    """An RGB picture's middle square as CLIP sees it: (1, 3, side, side), normalised."""
    short = min(image.size)
    width, height = (side * length // short for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, up = (width - side) // 2, (height - side) // 2
    values = np.asarray(image.crop((left, up, left + side, up + side)), np.float32) / 255
    values = (values - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]
