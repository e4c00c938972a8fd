"""Quantisation of linear layers to 8 bits, by torchao; it changes pixels a little.

Activations keep the network's dtype; each row of a weight has a scale of its own.
"""

import logging

from torch import Tensor, nn

from txt2img.errors import BadRequest
from txt2img.system.device_names import TORCHAO
from txt2img.system.text import shown

KINDS = ("int8", "fp8")


def quantize(network: nn.Module, kind: str) -> None:
    """Quantise the weights of all linear layers in place. BadRequest."""
    if kind not in KINDS:
        raise BadRequest(f"--quantize {shown(kind)}; choose from {', '.join(KINDS)}")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns of each of its kernels that this machine lacks
    try:
        from torchao import quantization
    except ImportError as error:
        raise BadRequest(f"--quantize {kind} {TORCHAO}") from error
    finally:
        logging.disable(level)
    configs = {
        "int8": quantization.Int8WeightOnlyConfig,
        "fp8": quantization.Float8WeightOnlyConfig,
    }
    quantization.quantize_(network, configs[kind](set_inductor_config=False))
    network.requires_grad_(False)


def is_quantized(weight: Tensor) -> bool:
    """Whether a weight is one of torchao's, which multiplies in its own way."""
    return type(weight) not in (Tensor, nn.Parameter)
