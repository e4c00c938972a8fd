"""Parts of a model that wait elsewhere draw the same bits, and are gone when not in use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.conftest import Command
from tests.pipeline.test_generate import SMALL
from txt2img.errors import BadFile, BadRequest
from txt2img.pipeline.generate import generate
from txt2img.system.device import offload
from txt2img.system.device.device import Device, choose
from txt2img.system.device.offload import Placement, moved
from txt2img.system.resources import CPU_ROOM, ROOM, choose_mode
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = torch.device("cpu")
SIZES = {"unet": 2 * ROOM, "vae": ROOM, "text_encoder": ROOM}
ONE = replace(SMALL, steps=1)


def drawn(model: Model) -> bytes:
    [picture] = generate(ONE, model)
    return picture.tobytes()


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_parts_that_come_for_their_use_draw_the_same_bits(model: Model, mode: str) -> None:
    memory = model.memory
    plain = drawn(model)
    before = list(model.network.parameters())
    assert drawn(replace(model, memory=replace(memory, placement=Placement(CPU, mode)))) == plain
    after = list(model.network.parameters())
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(before, after, strict=True))


def test_only_the_part_in_use_is_on_the_card(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {id(model.text): "text", id(model.network): "unet", id(model.vae): "vae"}
    seen: list[str] = []

    @contextmanager
    def watched(network: nn.Module, device: torch.device) -> Iterator[None]:
        seen.append(f"{parts[id(network)]} comes")
        with moved(network, device):
            yield
        seen.append(f"{parts[id(network)]} goes")

    monkeypatch.setattr(offload, "moved", watched)
    placement = Placement(CPU, "model")
    drawn(replace(model, memory=replace(model.memory, placement=placement), prompt_cache={}))
    assert seen == [
        f"{part} {way}" for part in ("text", "unet", "vae") for way in ("comes", "goes")
    ]


def test_moved_weights_are_copies_and_what_replaces_them_stays() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    weight, buffer = network[0].weight, network[1].running_mean
    learnt = nn.Parameter(torch.ones(3, 2))
    with moved(network, torch.device("meta")):
        assert network[0].weight.is_meta and network[1].running_mean.is_meta
        assert network[0].bias.is_meta
        network[0].bias = learnt
    assert network[0].weight is weight and network[1].running_mean is buffer
    assert network[0].bias is learnt


@pytest.mark.parametrize(
    ("free", "mode"),
    [(None, "none"), (5 * ROOM, "none"), (5 * ROOM - 1, "model"), (3 * ROOM - 1, "sequential")],
)
def test_the_mode_follows_what_is_free(free: int | None, mode: str) -> None:
    found, line = choose_mode("auto", "cuda", SIZES, free)
    assert found == mode
    assert bool(line) == (mode != "none")


def test_a_mode_is_told_and_a_wrong_one_refused() -> None:
    assert choose_mode("model", "cuda", SIZES, None) == (
        "model",
        "Offload: each part of the model comes to cuda for its use",
    )
    with pytest.raises(BadRequest, match=r'--offload "half"; choose from none, model'):
        choose_mode("half", "cuda", SIZES, None)


def test_main_memory_counts_where_a_cpu_computes() -> None:
    total = sum(SIZES.values())
    assert choose_mode("auto", "cpu", SIZES, total + CPU_ROOM) == ("none", "")
    mode, line = choose_mode("auto", "cpu", SIZES, total)
    assert mode == "model" and "from its file" in line and "free" in line
    mode, line = choose_mode("auto", "cpu", SIZES, ROOM, 3 * 10**9)
    assert mode == "sequential" and line.endswith("--max-memory 3.0 GB)")


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_on_a_cpu_parts_come_from_their_files_with_the_same_bits(draw: Command, mode: str) -> None:
    plain = draw("a", "--seed", "1", "-o", "plain.png")
    told = draw("a", "--seed", "1", "--offload", mode, "-o", "told.png")
    assert (plain.code, told.code) == (0, 0), told.err
    assert "from its file" in told.err and "Offload" not in plain.err
    pixels = [Image.open(f"{name}.png").tobytes() for name in ("plain", "told")]
    assert pixels[0] == pixels[1]


@pytest.fixture
def half(sd1_folder: Path, tmp_path: Path) -> Path:
    """The tiny model's folder in half precision."""
    for path in sorted(sd1_folder.rglob("*")):
        target = tmp_path / path.relative_to(sd1_folder)
        if path.is_dir():
            target.mkdir()
        elif path.suffix == ".safetensors":
            save_file({n: t.half() for n, t in load_file(path).items()}, target)
        else:
            target.write_bytes(path.read_bytes())
    return tmp_path


def lean(folder: Path) -> Model:
    return load(str(folder), replace(Device(CPU, torch.float32), low=True))


@pytest.mark.usefixtures("as_written")
def test_with_low_memory_a_part_is_in_memory_only_while_it_is_in_use(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lean(half)
    parts = {"text": model.text, "unet": model.network, "vae": model.vae}
    held: list[set[str]] = []
    using = Placement.using

    @contextmanager
    def watched(self: Placement, part: str, network: nn.Module, needed: int = 0) -> Iterator[None]:
        with using(self, part, network, needed):
            held.append({p for p, n in parts.items() if not next(n.parameters()).is_meta})
            yield

    monkeypatch.setattr(Placement, "using", watched)
    plain = drawn(load(str(half), choose("cpu")))
    held.clear()
    assert drawn(model) == plain
    assert held == [{"text"}, {"unet"}, {"vae"}]
    assert all(p.is_meta for part in parts.values() for p in part.parameters())
    assert drawn(model) == plain


def test_a_file_that_changes_between_two_uses_is_named(half: Path) -> None:
    model = lean(half)
    drawn(model)
    path = half / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BadFile, match="changed while it was in use"):
        drawn(model)
