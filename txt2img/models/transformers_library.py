"""The transformers library, which has the language models that encode prompts.

It is imported when such a model is built, never for CLIP: that takes seconds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from txt2img.models.layers import Linear


@contextmanager
def quietly() -> Iterator[None]:
    """Import transformers without the warnings of what it tries to import in its turn."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def replace_linears(network: nn.Module) -> None:
    """Make a network's linear layers ours, so that optimisations know them.

    Their weights stay to be loaded.
    """
    for module in list(network.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear:
                with torch.device(layer.weight.device):
                    replacement = Linear(
                        layer.in_features, layer.out_features, layer.bias is not None
                    )
                setattr(module, name, replacement)
