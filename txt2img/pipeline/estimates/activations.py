"""Estimates of the memory that networks compute in, besides their weights; needs no torch."""

from collections.abc import Sequence

from txt2img.models.configs import NetworkConfig, TextEncoderConfig, TinyConfig, VAEConfig

# Memory of a pass in feature maps of the network's largest size and width: skip connections, and a
# feed-forward layer's eightfold width with its inputs.
MAPS = 40
TOKENS = 28  # of a transformer's tokens: queries, keys, values, a feed-forward's width, copies
TEXT_TOKENS = 512  # that a transformer reads, at most
VAE_MAPS = 4  # of an image's size and the decoder's second width
TEXT_STATES = 24  # of a text encoder's states of all tokens


def of_network(config: NetworkConfig, cells: int, rows: int, itemsize: int) -> int:
    """The bytes of a pass on latents of so many cells, for `rows` of prompts at once."""
    if config.has_maps:
        return MAPS * rows * cells * config.memory_width * itemsize
    tokens = cells // config.multiple**2 + TEXT_TOKENS
    return TOKENS * rows * tokens * config.memory_width * itemsize


def of_vae(config: VAEConfig | TinyConfig, pixels: int, itemsize: int) -> int:
    """The bytes of decoding or encoding so many pixels."""
    width = config.channels[:2][-1] if isinstance(config, VAEConfig) else config.width
    return VAE_MAPS * pixels * width * itemsize


def of_texts(configs: Sequence[TextEncoderConfig], itemsize: int) -> int:
    """The bytes of encoding a prompt by the largest of some text encoders."""
    return max(TEXT_STATES * one.length * one.width for one in configs) * itemsize
