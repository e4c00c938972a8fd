"""When memory or half precision ends, the picture is drawn another way, and that is told."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.pipeline.test_generate import SMALL, Decoder, Net, mock, net, seeds, vae
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import OutOfMemory, Rejected
from txt2img.images.image_file import read
from txt2img.images.output import parse
from txt2img.images.record import Origin
from txt2img.images.resume import items
from txt2img.models.optimize.cuda_graph import CudaGraphed, Recording
from txt2img.pipeline import (
    batch,
    denoiser,
    generate,
)
from txt2img.pipeline import (
    decode as decoding,
)
from txt2img.pipeline.batch import BatchSettings, Finished, Notice, filled_requests, run
from txt2img.pipeline.generate import decode, sample
from txt2img.request.fields import Tile
from txt2img.request.request import Request
from txt2img.system.device import memory
from txt2img.system.device.memory import is_oom, oom_as_error
from txt2img.weights.model import Model

__all__ = ["mock"]
WIDE = torch.linspace(-1, 1, 4 * 80 * 72).reshape(1, 4, 80, 72)
LACK = torch.OutOfMemoryError("CUDA out of memory")


class Narrow(Decoder):
    """Has room for `cells` cells only, and mixes colours over the map as group norms do."""

    cells = 64 * 64

    def decode(self, x: Tensor) -> Tensor:
        if x.shape[-1] * x.shape[-2] > self.cells:
            raise LACK
        return super().decode(x) - 0.1 * x.mean()


class Elsewhere(nn.Module):
    """Pretends to live on a card that has no memory left, until it is moved."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.place, self.config = inner, torch.device("meta"), inner.config

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        yield nn.Parameter(torch.empty((), device=self.place))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Elsewhere":
        self.place = device
        return self

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        if self.place.type == "meta":
            raise LACK
        out: Tensor = self.inner(x, time, cond)
        return out

    def decode(self, x: Tensor) -> Tensor:
        if self.place.type == "meta":
            raise LACK
        out: Tensor = self.inner.decode(x)
        return out


class Overflowing(Net):
    """Gives NaN in half precision, and rounds as its precision does."""

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        half = self.weight.dtype == torch.float16
        return super().forward(x, time, cond) * self.weight * (float("nan") if half else 1.0)


def last(model: Model, requests: list[Request]) -> Tensor:
    """The latents of some requests, whatever it took."""
    [state] = deque(sample(model, requests), maxlen=1)
    return state.x


def told(model: Model) -> list[str]:
    return model.memory.pop_warnings()


def test_torchs_words_for_lack_of_memory_are_known() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)
    assert is_oom(found.value)
    assert is_oom(MemoryError()) and is_oom(LACK) and not is_oom(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"), oom_as_error("x"):
        raise RuntimeError("a bug")


def test_short_of_memory_a_picture_is_decoded_in_tiles(mock: Model) -> None:
    mock.vae = Narrow()
    [picture] = decode(mock, WIDE)
    assert told(mock) == [decoding.TILED]
    assert mock.memory.used == {"vae": "tiled"}
    mock.memory.tiling = "on"
    [begun] = decode(mock, WIDE)
    assert picture.tobytes() == begun.tobytes()
    assert not told(mock)
    mock.memory.tiling = "off"
    with pytest.raises(OutOfMemory, match="decoding"):
        decode(mock, WIDE)


def test_a_small_picture_after_a_large_one_is_decoded_whole(mock: Model) -> None:
    mock.vae = Narrow()
    decode(mock, WIDE)
    decode(mock, WIDE[..., :32])
    assert mock.memory.used == {}
    decode(mock, WIDE)
    assert told(mock) == [decoding.TILED]  # once


def test_large_pictures_are_decoded_in_tiles_from_the_start(
    mock: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LARGE", 79 * 72 * 64)
    decode(mock, WIDE)
    assert len(vae(mock).sizes) == 4
    assert not told(mock)


def test_a_card_without_any_room_leaves_decoding_to_the_cpu(mock: Model) -> None:
    mock.memory.tiling = "on"
    [begun] = decode(mock, WIDE)
    mock.memory.tiling = "auto"
    mock.vae = Elsewhere(mock.vae)
    [picture] = decode(mock, WIDE)
    assert told(mock) == [decoding.TILED, decoding.ON_CPU]
    assert mock.memory.used == {"vae": "tiled, cpu"}
    assert mock.vae.place.type == "meta"
    assert picture.tobytes() == begun.tobytes()


def test_a_card_decodes_no_more_at_once_than_its_kernels_can_count(
    mock: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(Decoder):
        """On a card that has room for all."""

        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
            yield nn.Parameter(torch.empty((), device="meta"))

        def decode(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().decode(x)

    mock.vae, seen = Counting(), list[int]()
    x = torch.linspace(-1, 1, 5 * 4 * 8 * 8).reshape(5, 4, 8, 8)
    whole = [picture.tobytes() for picture in decode(mock, x)]
    assert seen == [5]
    monkeypatch.setattr(decoding, "BATCH_PIXELS", 2 * (8 * 8) ** 2 + 1)
    assert [picture.tobytes() for picture in decode(mock, x)] == whole
    assert seen[1:] == [2, 2, 1]
    monkeypatch.setattr(decoding, "BATCH_PIXELS", 1)
    assert [picture.tobytes() for picture in decode(mock, x)] == whole
    assert seen[4:] == [1] * 5


def test_recordings_give_way_to_decoding(mock: Model) -> None:
    mock.vae = Narrow()
    made = CudaGraphed(mock.network, pytest.fail)
    mock.graphed, made._recordings[("a shape",)] = made, cast(Recording, None)
    decode(mock, WIDE)
    assert not made._recordings


def test_a_card_without_any_room_leaves_drawing_to_the_cpu(mock: Model) -> None:
    begun = last(mock, seeds(1))
    network = mock.network
    network.config = None
    mock.network = Elsewhere(network)
    assert torch.equal(last(mock, seeds(1)), begun)
    assert told(mock) == [denoiser.PIECEMEAL, generate.ON_CPU]
    assert mock.memory.used == {"unet": "cpu, float32"}
    assert mock.network.place.type == "meta"


def test_what_the_cpu_drew_is_decoded_where_the_model_is(
    mock: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def noted(model: Model, x: Tensor, tile: Tile | None) -> Tensor:
        places.append(x.device.type)
        return torch.zeros(1, 3, 8, 8)

    monkeypatch.setattr(generate, "pixels_of", noted)
    network = mock.network
    network.config = None
    mock.network = Elsewhere(network)
    decode(mock, last(mock, seeds(1)))
    assert places == ["meta"]


@pytest.mark.parametrize("said", memory.SIGNS)
def test_a_lack_of_memory_is_known_however_it_is_worded(said: str) -> None:
    assert is_oom(RuntimeError(f"{said} when calling something"))


def test_a_cpu_without_room_is_the_end(mock: Model) -> None:
    net(mock).room = 0
    with pytest.raises(OutOfMemory) as found:
        last(mock, seeds(1))
    assert found.value.exit_code == 5


def test_a_network_that_overflows_draws_again_in_float32(mock: Model) -> None:
    mock.network = Overflowing()
    begun = last(mock, seeds(1))
    mock.network.half()
    assert torch.equal(last(mock, seeds(1)), begun)
    assert told(mock) == [generate.FLOAT32]
    assert mock.memory.used == {"unet": "float32"}
    assert mock.network.weight.dtype == torch.float16
    assert torch.equal(last(mock, seeds(2)), last(mock, seeds(2)))
    assert not told(mock)


def test_a_network_broken_in_float32_too_is_rejected(mock: Model) -> None:
    nn.init.constant_(net(mock).weight, float("nan"))
    mock.network = Overflowing()
    nn.init.constant_(mock.network.weight, float("nan"))
    mock.network.half()
    with pytest.raises(Rejected, match="no picture"):
        last(mock, seeds(1))


def test_a_decoder_that_overflows_is_told(mock: Model) -> None:
    decoder = vae(mock).half()
    decoder.breaks_in = [torch.float16]
    decode(mock, torch.ones(1, 4, 8, 8))
    assert told(mock) == [decoding.FLOAT32]


def test_no_picture_of_a_batch_is_lost(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(SMALL, steps=1, count=3)

    def events(name: str) -> list[batch.Event]:
        target = parse(f"{name}-{{index}}.png", several=True)
        return list(
            run(
                items(filled_requests([small], sd1_model), target, Origin()),
                sd1_model,
                BatchSettings(target, 3),
            )
        )

    whole = [event for event in events("a") if isinstance(event, Finished)]
    drawn = batch.sample

    def one_only(model: Model, requests: list[Request]) -> Iterator[generate.State]:
        if len(requests) > 1:
            raise OutOfMemory("no room")
        return drawn(model, requests)

    monkeypatch.setattr(batch, "sample", one_only)
    seen = events("b")
    single = [event for event in seen if isinstance(event, Finished)]
    assert Notice(batch.NOTE_SINGLE) in seen
    assert [e.pixels_sha256 for e in single] == [e.pixels_sha256 for e in whole]


def test_a_record_tells_what_was_done_instead(sd1_model: Model, folder: Path) -> None:
    model = replace(sd1_model, memory=replace(sd1_model.memory, tiling="on"))
    target = parse("{index}.png", several=True)
    planned = items(filled_requests([replace(SMALL, steps=1)], model), target, Origin())
    [done] = [e for e in run(planned, model, BatchSettings(target)) if isinstance(e, Finished)]
    assert read(done.path).origin.environment["vae"] == "tiled"
