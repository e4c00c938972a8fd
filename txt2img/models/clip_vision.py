"""CLIP's image encoder, by transformers: a picture → the features that an IP-Adapter reads.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
Parameter names are transformers' after `model.`.
"""

import torch
from torch import Tensor, nn

from txt2img.models import control_configs
from txt2img.models.transformers_library import quietly, replace_linears


class CLIPVision(nn.Module):
    """A vision transformer with CLIP's projection."""

    def __init__(self, config: control_configs.CLIPVisionConfig) -> None:
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

    def _restore_places(self, device: torch.device) -> None:
        """Number the patches, which no file does, anew: the meta device spoils the numbers."""
        embeddings = self.model.vision_model.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]

    def forward(self, pixels: Tensor, states: bool = False) -> Tensor:
        """The embeddings (B, E) of normalised pixels (B, 3, size, size).

        Or the last states but one, (B, patches + 1, width), if `states`.
        """
        weight = next(self.model.parameters())
        self._restore_places(weight.device)
        out = self.model(pixels.to(weight.device, weight.dtype), output_hidden_states=states)
        result: Tensor = out.hidden_states[-2] if states else out.image_embeds
        return result
