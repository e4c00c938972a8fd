"""Prompts → tokens → the conditions that a U-Net attends to."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.models.clip import CLIPText
from txt2img.models.configs import TextConfig
from txt2img.models.tokenizer import PLAIN, Tokenizer
from txt2img.request.compat import PromptRules


class TextEncoder(nn.Module):
    """Prompts → the conditions that a U-Net attends to."""

    def __init__(self, config: TextConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.model = CLIPText(config)
        self.text_projection = (
            nn.Linear(config.width, config.projection, bias=False) if config.projection else None
        )

    @property
    def encoders(self) -> tuple["TextEncoder", ...]:
        """All encoders of a model that has this one alone."""
        return (self,)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.final_layer_norm.weight.device

    def forward(self, ids: Tensor) -> Tensor:
        """The states (N, L, D) that a U-Net attends to, of token ids (N, L)."""
        return self.states(ids)[0]

    def states(self, ids: Tensor, clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """The same, and each text as a whole (N, P) where the model is told that: at its end.

        `clip_skip` is A1111's count, where the tokens leave the last layer. BadRequest.
        """
        layers, penultimate = self.config.layers, self.config.penultimate
        if clip_skip > layers:
            raise BadRequest(
                f"clip skip {clip_skip}: this model's text encoder has {layers} layers"
            )
        states = self.model(ids)
        last = self.model.final_layer_norm(states[-1])
        tokens = last
        if penultimate:
            tokens = states[-2]
        elif clip_skip > 1:
            tokens = self.model.final_layer_norm(states[-clip_skip])
        if self.text_projection is None:
            return tokens, None
        rows = torch.arange(len(ids), device=ids.device)
        return tokens, self.text_projection(last[rows, self.ends(ids)])

    def ends(self, ids: Tensor) -> Tensor:
        """Where each text (N, L) ends (N,): at its first end token, for more of them may pad."""
        return (ids == self.tokenizer.eos_id).int().argmax(dim=-1)

    def chunks(self, prompt: str, reading: PromptRules = PLAIN) -> int:
        """How many chunks the prompt fills."""
        return len(self.tokenizer.read(prompt, reading))

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, reading: PromptRules = PLAIN
    ) -> Cond:
        """Conditions with tokens (B, chunks·L, D); shorter prompts end in empty chunks.

        Each chunk is encoded for itself, and no prompt is cut: `chunks` is at least the longest's.
        """
        rows = [self.tokenizer.read(prompt, reading) for prompt in prompts]
        count = max(chunks or 1, *(len(row) for row in rows))
        empty = self.tokenizer.read("")
        flat = [chunk for row in rows for chunk in row + empty * (count - len(row))]
        ids = torch.tensor([chunk.ids for chunk in flat], device=self.device)
        states, pooled = self.states(ids, reading.clip_skip)  # (B·chunks, L, D), (B·chunks, P)
        weights = torch.tensor([chunk.weights for chunk in flat], device=ids.device)[..., None]
        if bool((weights != 1).any()):
            blank = torch.tensor([empty[0].ids], device=ids.device)
            about = None
            if reading.emphasis == "from_empty":
                about = self.states(blank, reading.clip_skip)[0]
            states = weighted(states, weights.to(states.dtype), about)
        tokens = states.unflatten(0, (len(rows), count)).flatten(1, 2)
        return Cond(tokens, None if pooled is None else pooled[::count])  # the first chunk's


def weighted(states: Tensor, weights: Tensor, empty: Tensor | None) -> Tensor:
    """States (N, L, D), each token's (N, L, 1) times as strong.

    Away from the `empty` prompt's states (1, L, D) as in ComfyUI, or, where there are none, times
    the weight, and then the chunk's mean brought back to what it was, as in A1111.
    """
    if empty is not None:
        return empty + (states - empty) * weights
    strong = states * weights
    means = [x.mean((1, 2), keepdim=True) for x in (states, strong)]
    touched = (weights != 1).any(1, keepdim=True)
    return torch.where(touched, strong * (means[0] / means[1]), states)


class TextEncoders(nn.Module):
    """Several encoders of the same prompt as one: SDXL's."""

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(encoders)

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        """The encoders, each with its own tokenizer."""
        return tuple(part for part in self.parts if isinstance(part, TextEncoder))

    def chunks(self, prompt: str, reading: PromptRules = PLAIN) -> int:
        """How many chunks the prompt fills in the encoder where it fills most."""
        return max(encoder.chunks(prompt, reading) for encoder in self.encoders)

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, reading: PromptRules = PLAIN
    ) -> Cond:
        """Conditions with all encoders' tokens (B, chunks·L, D + D' …), the last's text as a whole.

        No prompt is cut: `chunks` is at least the longest's.
        """
        count = max(chunks or 1, *(self.chunks(prompt, reading) for prompt in prompts))
        conds = [encoder.encode(prompts, count, reading) for encoder in self.encoders]
        return Cond(torch.cat([cond.tokens for cond in conds], dim=-1), conds[-1].pooled)
