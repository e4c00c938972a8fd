"""The transformer of Z-Image: noisy latent, time, text → rectified-flow velocity.

One kind of block for picture and text; before they meet, two blocks refine each by itself. Alibaba
2025, "Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion
Transformer"; parameter names are diffusers' ZImageTransformer2DModel's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import ZImageConfig
from txt2img.models.layers import Linear, time_features
from txt2img.models.transformer_layers import (
    TIME_FEATURES,
    Grid,
    SelfAttention,
    add_gated,
    patchify,
    rotations,
    unpatchify,
)

EPS = 1e-5
GROUP = 32  # text and picture are padded to a multiple of so many tokens
TIME_WIDTH = 1024
PATCH = "2-1"  # a patch's side in latent cells, and its frames


class ZImageFeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): a projection, times the SiLU of another, projected back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = int(width / 3 * 8)
        self.w1 = Linear(width, inner, bias=False)
        self.w2 = Linear(inner, width, bias=False)
        self.w3 = Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        train = torch.is_grad_enabled()
        gate, inner = functional.silu(self.w1(x), inplace=not train), self.w3(x)
        out: Tensor = self.w2(gate * inner if train else gate.mul_(inner))
        return out


class ZImageBlock(nn.Module):
    """Attention and feed-forward with norms before and after; scales and gates depend on time.

    The refiners of the text are not `modulated`.
    """

    def __init__(self, config: ZImageConfig, modulated: bool = True) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.heads, bias=False, eps=EPS)
        self.feed_forward = ZImageFeedForward(width)
        self.attention_norm1 = nn.RMSNorm(width, eps=EPS)
        self.ffn_norm1 = nn.RMSNorm(width, eps=EPS)
        self.attention_norm2 = nn.RMSNorm(width, eps=EPS)
        self.ffn_norm2 = nn.RMSNorm(width, eps=EPS)
        self.adaLN_modulation = (
            nn.ModuleList([Linear(config.time_width, 4 * width)]) if modulated else None
        )

    def forward(self, x: Tensor, turned: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (B, L, D), with rotations of L tokens and the time embedding (B, T)."""
        if self.adaLN_modulation is None or embedding is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), turned))
            out: Tensor = x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
            return out
        mods = self.adaLN_modulation[0](embedding)[:, None].chunk(4, dim=-1)  # each (B, 1, D)
        scale, gate, ff_scale, ff_gate = mods
        mixed = self.attention(scaled(self.attention_norm1, x, 1 + scale), turned)
        x = add_gated(x, gate.tanh(), self.attention_norm2(mixed))
        inner = self.feed_forward(scaled(self.ffn_norm1, x, 1 + ff_scale))
        return add_gated(x, ff_gate.tanh(), self.ffn_norm2(inner))


def scaled(norm: nn.RMSNorm, x: Tensor, scale: Tensor) -> Tensor:
    """RMSNorm of x (B, L, D), times a scale (B, 1, D)."""
    if len(scale) == 1:  # in one pass
        return functional.rms_norm(x, x.shape[-1:], norm.weight * scale[0, 0], norm.eps)
    out: Tensor = norm(x) * scale
    return out


class FinalLayer(nn.Module):
    """Norm with a scale that depends on time, and the projection to patches."""

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.linear = Linear(config.width, 4 * config.out_channels)
        # Index 0 is SiLU in the published layout; it has no weights.
        self.adaLN_modulation = nn.ModuleList(
            [nn.Identity(), Linear(config.time_width, config.width)]
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale = 1 + self.adaLN_modulation[1](functional.silu(embedding))[:, None]  # (B, 1, D)
        out: Tensor = self.linear(functional.layer_norm(x, x.shape[-1:], eps=1e-6) * scale)
        return out


class ZImageTimeEmbedding(nn.Module):
    """Time, from 0 for pure noise to 1000 for a clean picture, → its embedding (B, T)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Index 1 is SiLU in the published layout; it has no weights.
        layers = [Linear(TIME_FEATURES, TIME_WIDTH), nn.Identity(), Linear(TIME_WIDTH, width)]
        self.mlp = nn.ModuleList(layers)

    def forward(self, time: Tensor, dtype: torch.dtype) -> Tensor:
        features = time_features(time, TIME_FEATURES).to(dtype)
        out: Tensor = self.mlp[2](functional.silu(self.mlp[0](features)))
        return out


class ZImageTransformer(nn.Module):
    """Latent x (B, C, H, W), time (B,), text without padding → (B, C, H, W).

    Text and picture are each padded to a multiple of 32 tokens by a learnt one.
    """

    broadcasts_latents = False

    def __init__(self, config: ZImageConfig) -> None:
        super().__init__()
        self.config = config
        width, refiners = config.width, range(config.refiner_layers)
        self.all_x_embedder = nn.ModuleDict({PATCH: Linear(4 * config.in_channels, width)})
        self.all_final_layer = nn.ModuleDict({PATCH: FinalLayer(config)})
        self.noise_refiner = nn.ModuleList(ZImageBlock(config) for _ in refiners)
        self.context_refiner = nn.ModuleList(ZImageBlock(config, modulated=False) for _ in refiners)
        self.t_embedder = ZImageTimeEmbedding(config.time_width)
        self.cap_embedder = nn.ModuleList(
            [nn.RMSNorm(config.cross_dim, eps=EPS), Linear(config.cross_dim, width)]
        )
        self.x_pad_token = nn.Parameter(torch.zeros(1, width))
        self.cap_pad_token = nn.Parameter(torch.zeros(1, width))
        self.layers = nn.ModuleList(ZImageBlock(config) for _ in range(config.layers))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """x (B, C, H, W), time (B,) 0 to 1000, cond.tokens (B, M, T) → (B, C, H, W)."""
        height, width = x.shape[-2:]
        count = height * width // 4
        embedding = self.t_embedder(1000 - time, x.dtype)  # (B, T)
        text = padded(self._embed_text(cond.tokens.to(x.dtype)), self.cap_pad_token)
        h = padded(self.all_x_embedder[PATCH](patchify(x, channels_last=True)), self.x_pad_token)
        length = h.shape[1]
        turned = self.rotations(text.shape[1], height, width, x.device)
        for block in self.noise_refiner:
            h = block(h, turned[:length], embedding)
        for block in self.context_refiner:
            text = block(text, turned[length:])
        h = torch.cat([h, text], dim=1)
        for block in self.layers:
            h = block(h, turned, embedding)
        tokens = self.all_final_layer[PATCH](h[:, :count], embedding)
        # The network learnt the way from noise to picture.
        return unpatchify(tokens, height, width, channels_last=True).neg()

    def _embed_text(self, tokens: Tensor) -> Tensor:
        norm, linear = self.cap_embedder
        out: Tensor = linear(norm(tokens))
        return out

    def rotations(self, text: int, height: int, width: int, device: torch.device) -> Tensor:
        """Rotations of the latent's patches, which come after the text on the first axis, padding
        and text."""
        rows, columns = height // 2, width // 2
        grids = (
            Grid((text + 1, 0, 0), (1, rows, columns)),
            Grid((0, 0, 0), (1, 1, 1), -rows * columns % GROUP),
            Grid((1, 0, 0), (text, 1, 1)),
        )
        return rotations(grids, self.config.axes, self.config.theta, device, single=True)


def padded(x: Tensor, token: Tensor) -> Tensor:
    """Tokens x (B, L, D), followed by `token` (1, D) up to a multiple of 32."""
    missing = -x.shape[1] % GROUP
    return torch.cat([x, token.expand(len(x), missing, -1)], dim=1) if missing else x
