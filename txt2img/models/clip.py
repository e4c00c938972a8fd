"""CLIP's text transformer: token ids → the hidden states of every layer.

Parameter names are the published ones, without the prefix `text_model` that some files have.
Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.configs import TextConfig
from txt2img.models.layers import Linear


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
