"""When image prompts are on: their steps and the text's, each by its own count."""

from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.support import ip_adapters, tiny
from txt2img.diffusion.conditioning import Cond, over_time
from txt2img.diffusion.levels import Level
from txt2img.errors import OutOfMemory
from txt2img.images.metadata.a1111 import describe, parse, to_request
from txt2img.pipeline import image_prompts
from txt2img.pipeline.image_prompts import ON_CPU, by_step
from txt2img.request import Request
from txt2img.request.input_image import ImageRef
from txt2img.request.ip_adapter import IPAdapterRef, IPAdapterUse
from txt2img.system.device.device import Device
from txt2img.weights.layouts.ip_adapter import IPAdapterFile, open_ip_adapter
from txt2img.weights.load import load
from txt2img.weights.model import Model

FIRST, SECOND = Cond(torch.zeros(1, 1, 1)), Cond(torch.ones(1, 1, 1))
CHANGING = [(2, FIRST), (6, SECOND)]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("scheduled", [[(1, FIRST)], CHANGING])
def test_text_changes_as_without_them_and_they_in_their_own_steps(
    scheduled: list[tuple[int, Cond]], late: bool
) -> None:
    """Each level finds the text that it found before, and what is on in the step that leaves it."""
    levels = [Level(ratio, "diffusion") for ratio in (6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0)]
    when = [[1, 2, 3], [3, 4]]
    rows = by_step(scheduled, when, 6, late)
    marked = [(until, (text, on)) for until, text, on in rows]
    text = over_time(scheduled, levels, late)
    both = over_time(marked, levels, late)  # type: ignore[arg-type]
    for step, level in enumerate(levels[:-1], start=1):
        found, on = both(level)  # type: ignore[misc]
        assert found is text(level)
        assert on == tuple(i for i, steps in enumerate(when) if step in steps)


def test_a1111s_text_gives_the_use_back_but_for_its_pictures() -> None:
    use = IPAdapterUse(IPAdapterRef("plus", "ab" * 5), (ImageRef("a.png", "12" * 32),), 0.6)
    text = str(describe(Request("x", steps=9, cfg=5.0, seed=1, ip_adapters=(use,)), "m", "", "1"))
    request, notes = to_request(parse(text))
    [read] = request.ip_adapters
    assert (read.model.name, read.weight, read.interval) == ("plus", 0.6, use.interval)
    assert use.model.hash.startswith(read.model.hash) and not request.controls and not notes


def test_where_a_cards_memory_ends_the_cpu_reads_the_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card is none here: what is loaded for one has no memory left."""
    (folder / "image_encoder").symlink_to(ip_adapters.encoder_folder())
    file = open_ip_adapter(ip_adapters.file_of("plus", tiny.sd1().unet, folder, "plus"))
    model = load(str(tiny.sd1().folder), Device(torch.device("cpu"), torch.float32))
    pixels = torch.randn(1, 3, 28, 28)
    read = partial(image_prompts._features, model, file, pixels)
    with torch.no_grad():
        wanted = read()
        assert not model.memory.pop_warnings()
        load_networks = image_prompts.load_networks

        def on_a_full_card(
            model: Model, file: IPAdapterFile, at: Device | None = None
        ) -> tuple[nn.Module, nn.Module]:
            networks = load_networks(model, file, at)
            return networks if at else (networks[0], cast(nn.Module, Full()))

        monkeypatch.setattr(image_prompts, "load_networks", on_a_full_card)
        with pytest.raises(OutOfMemory):  # a CPU has nowhere to go
            read()
        monkeypatch.setattr(image_prompts, "device_of", lambda model: torch.device("meta"))
        assert torch.equal(read(), wanted) and read().device.type == "cpu"
    assert model.memory.pop_warnings() == [ON_CPU]


class Full(nn.Module):
    """Has no room for anything."""

    def forward(self, pixels: Tensor, states: bool) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")
