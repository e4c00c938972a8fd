"""Nothing that goes through a device while a picture is drawn is float64, which MPS has not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.pipeline.test_generate import SMALL
from txt2img.pipeline.generate import generate
from txt2img.request import Sampler
from txt2img.weights.model import Model


class Watch(TorchDispatchMode):
    """Keeps the names of operations that give float64."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.dtype == torch.float64:
                self.seen.add(str(func))
        return out


def test_the_watch_sees_it() -> None:
    with Watch() as watch:
        torch.ones(2).double()
    assert watch.seen


@pytest.mark.parametrize("sampler", [Sampler.DPMPP_2M, Sampler.DPMPP_SDE, Sampler.UNIPC])
def test_a_picture_is_drawn_without_it(sd1_model: Model, sampler: Sampler) -> None:
    with Watch() as watch:
        generate(replace(SMALL, sampler=sampler, steps=2, cfg_rescale=0.5), sd1_model)
    assert not watch.seen
