"""CLIP's text transformer, and the text encoder that gives it prompts: token ids → conditioning.

Parameter names are the published ones, without the prefix `text_model` that some files have.
Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.models.configs import TextConfig
from txt2img.models.layers import Linear
from txt2img.models.tokenizer import PLAIN, Tokenizer
from txt2img.request.compat import PromptRules


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of the GELU: x·σ(1.702x)."""
    return x * torch.sigmoid(1.702 * x)


ACTS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


class Embeddings(nn.Module):
    """Token plus position embeddings: ids (N, L) → (N, L, D)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = _table(config.vocab, config.width)
        self.position_embedding = _table(config.length, config.width)

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Tensor = self.token_embedding(ids)
        return tokens + self.position_embedding.weight[: ids.shape[-1]]


def _table(rows: int, width: int) -> nn.Embedding:
    """An embedding without initial values."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    return table


class SelfAttention(nn.Module):
    """Causal self-attention: (N, L, D) → (N, L, D)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, L, d)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(-2))
        return out


class MLP(nn.Module):
    """Feed-forward half of a layer: (N, L, D) → (N, L, D)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.act = ACTS[config.act]
        self.fc1 = Linear(config.width, config.mlp)
        self.fc2 = Linear(config.mlp, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it and a residual connection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    """Stack of layers."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class CLIPText(nn.Module):
    """CLIP's text model: token ids (N, L) → the hidden states between layers."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width)
        # Initialising on the meta device does nothing, but makes torch load its compiler: 2 s.
        if not self.final_layer_norm.weight.is_meta:
            self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: TextConfig) -> None:
        """Initialise weights for training, as OpenAI's `initialize_parameters`."""
        width, deep = config.width, (2 * config.layers) ** -0.5
        nn.init.normal_(self.embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(self.embeddings.position_embedding.weight, std=0.02)
        stds = {
            **dict.fromkeys(("q_proj", "k_proj", "v_proj"), width**-0.5 * deep),
            "out_proj": width**-0.5,
            "fc1": (2 * width) ** -0.5,
            "fc2": width**-0.5 * deep,
        }
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=stds[name.rpartition(".")[2]])
                nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> list[Tensor]:
        """Hidden states (N, L, D) before the first layer and after each, without the final norm."""
        states = [self.embeddings(ids)]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return states


class TextEncoder(nn.Module):
    """One CLIP text encoder with its tokenizer: prompts → conditioning."""

    def __init__(self, config: TextConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.model = CLIPText(config)
        self.text_projection = (
            Linear(config.width, config.projection, bias=False) if config.projection else None
        )

    @property
    def encoders(self) -> tuple["TextEncoder", ...]:
        """All encoders of a model that has only this one."""
        return (self,)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.final_layer_norm.weight.device

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states (N, L, D) that a U-Net attends to, of token ids (N, L)."""
        return self.states(ids)[0]

    def states(self, ids: Tensor, clip_skip: int = 1) -> tuple[Tensor, Tensor | None]:
        """Hidden states (N, L, D), and the pooled embedding (N, P) where the model has one.

        `clip_skip` is A1111's count; models that take the penultimate layer ignore it. BadRequest.
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
        if self.text_projection is None and not self.config.pooled:
            return tokens, None
        end = last[torch.arange(len(ids), device=ids.device), self.end_positions(ids)]
        return tokens, end if self.text_projection is None else self.text_projection(end)

    def end_positions(self, ids: Tensor) -> Tensor:
        """Position of each text's first end token, (N,), of ids (N, L): padding may repeat it."""
        return (ids == self.tokenizer.eos_id).int().argmax(dim=-1)

    def chunk_count(self, prompt: str, rules: PromptRules = PLAIN) -> int:
        """Number of chunks that the prompt fills."""
        return len(self.tokenizer.weighted_chunks(prompt, rules))

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts to tokens (B, chunks·L, D); shorter ones are padded by empty chunks.

        Each chunk is encoded by itself, and `chunks` is raised to the longest prompt's.
        """
        rows = [self.tokenizer.weighted_chunks(prompt, rules) for prompt in prompts]
        count = max(chunks or 1, *(len(row) for row in rows))
        empty = self.tokenizer.weighted_chunks("")
        flat = [chunk for row in rows for chunk in row + empty * (count - len(row))]
        ids = torch.tensor([chunk.ids for chunk in flat], device=self.device)
        states, pooled = self.states(ids, rules.clip_skip)  # (B·chunks, L, D), (B·chunks, P)
        weights = torch.tensor([chunk.weights for chunk in flat], device=ids.device)[..., None]
        if bool((weights != 1).any()):
            empty_ids = torch.tensor([empty[0].ids], device=ids.device)
            empty_states = None
            if rules.emphasis == "from_empty":
                empty_states = self.states(empty_ids, rules.clip_skip)[0]
            states = emphasized(states, weights.to(states.dtype), empty_states)
        tokens = states.unflatten(0, (len(rows), count)).flatten(1, 2)
        return Cond(tokens, None if pooled is None else pooled[::count])  # of the first chunk


def emphasized(states: Tensor, weights: Tensor, empty: Tensor | None) -> Tensor:
    """Apply token weights (N, L, 1) to hidden states (N, L, D).

    ComfyUI scales the distance from the `empty` prompt's states (1, L, D). Without these, as in
    A1111, states are multiplied, and then each chunk's mean is restored.
    """
    if empty is not None:
        return empty + (states - empty) * weights
    scaled = states * weights
    mean, new_mean = (x.mean((1, 2), keepdim=True) for x in (states, scaled))
    touched = (weights != 1).any(1, keepdim=True)
    return torch.where(touched, scaled * (mean / new_mean), states)


class TextEncoders(nn.Module):
    """Several encoders of the same prompt as one, as in SDXL."""

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(encoders)

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        """The encoders, each with its own tokenizer."""
        return tuple(part for part in self.parts if isinstance(part, TextEncoder))

    def chunk_count(self, prompt: str, rules: PromptRules = PLAIN) -> int:
        """Number of chunks that the prompt fills, at most over the encoders."""
        return max(encoder.chunk_count(prompt, rules) for encoder in self.encoders)

    def encode(
        self, prompts: Sequence[str], chunks: int | None = None, rules: PromptRules = PLAIN
    ) -> Cond:
        """Encode prompts to all encoders' tokens (B, chunks·L, D + D' …), pooled by the last.

        `chunks` is raised to the longest prompt's.
        """
        count = max(chunks or 1, *(self.chunk_count(prompt, rules) for prompt in prompts))
        conds = [encoder.encode(prompts, count, rules) for encoder in self.encoders]
        return Cond(torch.cat([cond.tokens for cond in conds], dim=-1), conds[-1].pooled)
