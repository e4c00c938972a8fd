"""T5's encoder, by transformers: token ids → the states of its last layer.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer". Parameter names are transformers' after `model.`, with one for the token vectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from txt2img.models.clip import emphasized
from txt2img.models.configs import T5TextConfig
from txt2img.models.text_tokenizer import TextTokenizer
from txt2img.models.tokenizer import PLAIN
from txt2img.models.transformers_library import quietly, replace_linears
from txt2img.request.compat import PromptRules


class T5TextEncoder(nn.Module):
    """T5's encoder with its tokenizer: prompts → tokens, padded to one length."""

    def __init__(self, config: T5TextConfig, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        with quietly():
            from transformers import T5Config, T5EncoderModel

        self.model = T5EncoderModel(
            T5Config(
                vocab_size=config.vocab,
                d_model=config.width,
                d_kv=config.head_width,
                d_ff=config.mlp,
                num_layers=config.layers,
                num_heads=config.heads,
                relative_attention_num_buckets=config.buckets,
                relative_attention_max_distance=config.max_distance,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                use_cache=False,
            )
        )
        del self.model.shared  # the same tensor as encoder.embed_tokens
        replace_linears(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.model.encoder.embed_tokens.weight.device
        return device

    def forward(self, ids: Tensor) -> Tensor:
        """States (N, L, D) of token ids (N, L); the padding is read too, as diffusers has it."""
        states: Tensor = self.model(input_ids=ids).last_hidden_state
        return states

    def encode(self, prompts: Sequence[str], rules: PromptRules = PLAIN) -> Tensor:
        """Encode prompts to tokens (B, L, D); what does not fit in L is left out. BadRequest.

        Weights scale the distance from the empty prompt's states, as in ComfyUI: without a mean
        to speak of, A1111's rule for CLIP would divide by next to nothing.
        """
        chunks = [self.tokenizer.padded(self.tokenizer.chunk(one, rules)) for one in prompts]
        states = self.forward(self._tensor([chunk.ids for chunk in chunks]))
        weights = self._tensor([chunk.weights for chunk in chunks])[..., None]
        if not bool((weights != 1).any()):
            return states
        empty = self.tokenizer.padded(self.tokenizer.chunk(""))
        return emphasized(states, weights.to(states.dtype), self.forward(self._tensor([empty.ids])))

    def _tensor(self, rows: list[list[int]] | list[list[float]]) -> Tensor:
        return torch.tensor(rows, device=self.device)
