"""Networks of ours with the weights of a file, as loading does it, without a whole model."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from txt2img.weights.formats import tensors
from txt2img.weights.layouts.components import Component, check_tensors, published_name

Network = TypeVar("Network", bound=nn.Module)


def loaded(build: Callable[[], Network], component: Component) -> Network:
    """A network built on the meta device, with exactly the weights of a component."""
    network = on_meta(build, component)
    refs = {n: component.tensors[published_name(n)] for n in network.state_dict()}
    state = tensors.read(refs, torch.device("cpu"), torch.float32)
    network.load_state_dict(state, strict=True, assign=True)
    assert not [n for n, value in network.named_buffers() if value.is_meta]
    return network.eval().requires_grad_(False)


def on_meta(build: Callable[[], Network], component: Component) -> Network:
    """A network on the meta device, whose names and shapes are exactly a component's."""
    with torch.device("meta"):
        network = build()
    shapes = {published_name(n): tuple(v.shape) for n, v in network.state_dict().items()}
    check_tensors("network", component, shapes)
    return network
