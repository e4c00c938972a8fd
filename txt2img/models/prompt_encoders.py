"""Prompt encoders of diffusion transformers: several text encoders' states as one condition.

Each gives what its family was trained with; the facts are those of diffusers' pipelines.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.clip import TextEncoder
from txt2img.models.qwen3 import Qwen3TextEncoder
from txt2img.models.t5 import T5TextEncoder
from txt2img.models.tokenizer import PLAIN
from txt2img.request.compat import PromptRules

SD3_WIDTH, SD3_T5_TOKENS = 4096, 256  # of T5's part, where there is no T5


class PromptEncoder(nn.Module):
    """Text encoders of one model that encode a prompt together."""

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(encoders)

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The encoders, each with its own tokenizer."""
        return tuple(self.parts)

    def chunk_count(self, prompt: str, rules: PromptRules = PLAIN) -> int:
        """Number of chunks that the prompt fills: one, for encoders that read it as a whole."""
        return 1

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts; `chunks` is for encoders that read a long one in several. BadRequest."""
        raise NotImplementedError

    def _clips(self) -> list[TextEncoder]:
        return [part for part in self.parts if isinstance(part, TextEncoder)]

    def _t5(self) -> T5TextEncoder | None:
        return next((part for part in self.parts if isinstance(part, T5TextEncoder)), None)

    def _qwen(self) -> Qwen3TextEncoder:
        [part] = self.parts
        assert isinstance(part, Qwen3TextEncoder)
        return part


class FluxText(PromptEncoder):
    """FLUX.1: T5's tokens (B, L, D), and CLIP-L's state at the end of the text as pooled (B, P)."""

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts; CLIP reads only their first chunk."""
        [clip], t5 = self._clips(), self._t5()
        assert t5 is not None
        first = torch.tensor(
            [clip.tokenizer.weighted_chunks(prompt, rules)[0].ids for prompt in prompts],
            device=clip.device,
        )
        return Cond(t5.encode(prompts, rules), clip.states(first)[1])


class SD3Text(PromptEncoder):
    """Stable Diffusion 3: CLIP-L beside CLIP-G, padded to T5's width; T5's tokens after them.

    Pooled is CLIP-L's beside CLIP-G's. T5 may be missing: its tokens are zeros then.
    """

    def __init__(self, encoders: Sequence[nn.Module], width: int = SD3_WIDTH) -> None:
        """`width` is that of the network's tokens, for a model without T5."""
        super().__init__(encoders)
        self.width = width

    def chunk_count(self, prompt: str, rules: PromptRules = PLAIN) -> int:
        """Number of CLIP's chunks that the prompt fills; T5 reads it as a whole."""
        return max(clip.chunk_count(prompt, rules) for clip in self._clips())

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts to tokens (B, chunks·77 + L, D); `chunks` is raised to the longest's."""
        clips, t5 = self._clips(), self._t5()
        count = max(chunks or 1, *(self.chunk_count(prompt, rules) for prompt in prompts))
        conds = [clip.encode(prompts, count, rules) for clip in clips]
        beside = torch.cat([cond.tokens for cond in conds], dim=-1)  # (B, chunks·77, D_L + D_G)
        if t5 is None:
            after = beside.new_zeros(len(prompts), SD3_T5_TOKENS, self.width)
        else:
            after = t5.encode(prompts, rules).to(beside.dtype)
        padded = functional.pad(beside, (0, after.shape[-1] - beside.shape[-1]))
        pooled = [cond.pooled for cond in conds if cond.pooled is not None]
        return Cond(torch.cat([padded, after], dim=1), torch.cat(pooled, dim=-1))


class ZImageText(PromptEncoder):
    """Z-Image: Qwen3's last state but one, of the prompt's own tokens (1, L, D), thinking on."""

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts of the same number of tokens."""
        return Cond(self._qwen().encode(prompts, thinking=True, padded=False))


class Flux2Text(PromptEncoder):
    """FLUX.2 klein: three of Qwen3's states side by side, padded (B, 512, 3·D), thinking off."""

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts of any length up to the tokenizer's."""
        return Cond(self._qwen().encode(prompts, thinking=False, padded=True))
