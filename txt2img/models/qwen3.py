"""Qwen3, a language model whose inner states are text conditions, by transformers.

Yang et al. 2025, "Qwen3 Technical Report". Parameter names are transformers' after `model.`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from txt2img.models.configs import Qwen3TextConfig
from txt2img.models.text_tokenizer import TextTokenizer, chat_prompt
from txt2img.models.transformers_library import quietly, replace_linears


class Qwen3TextEncoder(nn.Module):
    """Qwen3 up to its last tapped layer, with its tokenizer."""

    def __init__(self, config: Qwen3TextConfig, tokenizer: TextTokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        with quietly():
            from transformers import Qwen3Config, Qwen3Model

        self.model = Qwen3Model(
            Qwen3Config(
                vocab_size=config.vocab,
                hidden_size=config.hidden,
                intermediate_size=config.mlp,
                num_hidden_layers=max(config.states),
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                head_dim=config.head_width,
                rope_parameters={"rope_type": "default", "rope_theta": config.theta},
            )
        )
        self.model.norm = nn.Identity()  # a tapped state is a layer's output as it is
        replace_linears(self.model)
        self._restore_rotary()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.model.embed_tokens.weight.device
        return device

    def _restore_rotary(self) -> None:
        """Compute the rotary frequencies, which no file has, anew: meta and .to() spoil them."""
        with torch.device("cpu"):
            self.model.rotary_emb = type(self.model.rotary_emb)(self.model.config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tapped states side by side (N, L, D) of token ids (N, L); `mask` is 0 at padding."""
        self._restore_rotary()
        output = self.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        )
        return torch.cat([output.hidden_states[state] for state in self.config.states], dim=-1)

    def encode(self, prompts: Sequence[str], thinking: bool, padded: bool) -> Tensor:
        """Encode users' prompts in the chat template to tokens (B, L, D), at most the tokenizer's.

        Without padding to that length, prompts must be equally long. They are taken literally:
        a language model has learnt what brackets say, as in ComfyUI and diffusers.
        """
        tokenizer = self.tokenizer
        chunks = [tokenizer.chunk(chat_prompt(prompt, thinking)) for prompt in prompts]
        counts = [len(chunk.ids) for chunk in chunks]
        if padded:
            chunks = [tokenizer.padded(chunk) for chunk in chunks]
        ids = torch.tensor([chunk.ids for chunk in chunks], device=self.device)
        if not padded:
            return self.forward(ids)
        places = torch.arange(ids.shape[1], device=ids.device)
        mask = places < torch.tensor(counts, device=ids.device)[:, None]  # (B, L)
        return self.forward(ids, mask.long())
