"""A U-Net whose linear layers keep their weights in 8 bits, by torchao: it changes pixels a little.

Activations stay in the network's own precision; each row of a weight has a factor of its own.
"""

import logging

from torch import nn

from txt2img.errors import BadRequest
from txt2img.system.text import shown

KINDS = ("int8", "fp8")
INSTALL = 'needs torchao, which is not installed: pip install "txt2img[quantize]"'


def quantize(network: nn.Module, kind: str) -> None:
    """Make the weights of all linear layers 8 bits narrow, in place. BadRequest."""
    if kind not in KINDS:
        raise BadRequest(f"--quantize {shown(kind)}; choose from {', '.join(KINDS)}")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of each of its kernels that this machine lacks
    try:
        from torchao import quantization
    except ImportError as error:
        raise BadRequest(f"--quantize {kind} {INSTALL}") from error
    finally:
        logging.disable(level)
    made = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}
    quantization.quantize_(network, made[kind](set_inductor_config=False))
    network.requires_grad_(False)
