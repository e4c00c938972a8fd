"""SDXL, inpainting and pix2pix models load in every layout, or are refused in one line."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import Command
from tests.support import tiny, tiny_xl
from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.clip import TextEncoder, TextEncoders
from txt2img.pipeline.generate import generate
from txt2img.request import Request, Sampler, Schedule
from txt2img.system.device.device import Device
from txt2img.weights.checkpoint import summary
from txt2img.weights.formats.safetensors_file import TensorRef, header
from txt2img.weights.formats.tensors import read_stored
from txt2img.weights.load import load

CPU = Device(torch.device("cpu"), torch.float32)
State = dict[str, Tensor]


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    """A tiny SDXL folder of links, free to be changed by writing new files."""
    copy = tmp_path / "xl"
    shutil.copytree(tiny_xl.base().folder, copy, copy_function=os.link)
    return copy


def write(path: Path, **values: object) -> None:
    """Write a JSON file with other values in place of a link."""
    content = json.loads(path.read_text()) | values
    path.unlink()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("build", [tiny_xl.base, tiny_xl.refiner, tiny_xl.ssd, tiny_xl.inpaint])
def test_layouts_hold_the_same_weights(build: Callable[[], tiny_xl.TinyXL]) -> None:
    a, b = (load(str(path), CPU) for path in (build().folder, build().file))
    assert (a.family.network, a.family.texts) == (b.family.network, b.family.texts)
    assert (a.family.pad_tokens, a.family.zero_empty_negative) == (
        b.family.pad_tokens,
        b.family.zero_empty_negative,
    )
    for mine, other in ((a.network, b.network), (a.vae, b.vae), (a.text, b.text)):
        state = other.state_dict()
        assert all(torch.equal(v, state[n]) for n, v in mine.state_dict().items())


def test_text_encoders_are_those_of_the_family() -> None:
    base, refiner = load(str(tiny_xl.base().file), CPU), load(str(tiny_xl.refiner().file), CPU)
    assert isinstance(base.text, TextEncoders) and isinstance(refiner.text, TextEncoder)
    pads = [encoder.tokenizer.chunks("a cat")[0][-1] for encoder in base.text.encoders]
    assert pads == [49407, 0]
    assert [encoder.tokenizer.pad_id for encoder in refiner.text.encoders] == [0]
    assert (base.family.zero_empty_negative, refiner.family.zero_empty_negative) == (True, False)


def test_a_folder_says_whether_an_empty_negative_prompt_is_zeros(xl: Path) -> None:
    write(xl / "model_index.json", force_zeros_for_empty_prompt=False)
    assert not load(str(xl), CPU).family.zero_empty_negative
    (xl / "model_index.json").unlink()
    assert load(str(xl), CPU).family.zero_empty_negative


def test_half_precision_names_load(xl: Path) -> None:
    wanted = load(str(xl), CPU)
    for path in list(xl.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    model = load(str(xl), CPU)
    assert torch.equal(model.network.conv_in.weight, wanted.network.conv_in.weight)


def test_a_refiner_in_place_of_a_base_is_named(xl: Path) -> None:
    shutil.rmtree(xl / "text_encoder")
    with pytest.raises(UnknownLayout, match="reads text of width 192, the encoder gives 128"):
        load(str(xl), CPU)


SECOND = "conditioner.embedders.1.model."
BROKEN: list[tuple[Callable[[State], object], str]] = [
    (
        lambda s: s.pop(f"{SECOND}ln_final.bias"),
        f'text_encoder_2: "{SECOND}ln_final.bias" missing',
    ),
    (
        lambda s: s.update({f"{SECOND}extra": torch.zeros(1)}),
        f'text_encoder_2: "{SECOND}extra" unknown',
    ),
    (
        lambda s: s.update({f"{SECOND}ln_final.bias": torch.zeros(3)}),
        r"\(3,\); \(128,\) is needed",
    ),
    (lambda s: s.pop(f"{SECOND}text_projection"), "text_projection.*incomplete"),
    (lambda s: s.pop("model.diffusion_model.label_emb.0.2.bias"), r"label_emb\.0\.2\.bias"),
    (
        lambda s: s.update({"conditioner.embedders.2.x": torch.zeros(1)}),
        r"embedders\.2\.x.*belong to no part",
    ),
]


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_broken_files_name_their_tensors(
    tmp_path: Path, change: Callable[[State], object], words: str
) -> None:
    state = load_file(tiny_xl.base().file)
    for name in [n for n in state if "token_embedding" in n]:
        state[name] = state[name][:9].clone()  # less to write; what is wrong is found before words
    change(state)
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    with pytest.raises((MissingWeights, UnknownLayout), match=words) as caught:
        load(str(path), CPU)
    assert "\n" not in str(caught.value)


def test_a_transposed_matrix_is_read_transposed(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    save_file({"a": matrix}, tmp_path / "a.safetensors")
    stored: TensorRef = header(tmp_path / "a.safetensors").tensors["a"]
    assert stored.transpose().shape == (3, 2)
    assert torch.equal(read_stored("a", stored.transpose()), matrix.T)
    assert torch.equal(read_stored("a", stored.transpose().transpose()), matrix)


def test_defaults_are_those_of_the_family(xl: Path, tmp_path: Path) -> None:
    link = tmp_path / "my_lightning_8step.safetensors"
    os.link(tiny_xl.base().file, link)
    found = summary(str(link)).family.defaults
    assert (found.width, found.steps, found.cfg) == (1024, 8, 1.0)
    assert (found.sampler, found.schedule) == (Sampler.EULER, Schedule.TRAILING)
    assert summary(str(xl)).family.defaults.cfg == 5.0
    write(xl / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")
    assert summary(str(xl)).family.defaults.sampler == Sampler.LCM
    (xl / "txt2img.json").write_text('{"steps": 6, "sampler": "euler"}')
    found = summary(str(xl)).family.defaults
    assert (found.steps, found.sampler, found.cfg) == (6, Sampler.EULER, 1.0)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_an_inpainting_model_loads_and_draws_without_a_picture(layout: str) -> None:
    model = load(str(getattr(tiny_xl.inpaint(), layout)), CPU)
    assert model.family.name == "latent diffusion inpainting"
    x, time = torch.randn(1, 9, 8, 8), torch.tensor([9.0])
    cond = model.text.encode(["a cat"])
    told = type(cond)(cond.tokens, cond.pooled, torch.zeros(1, 6))
    assert model.network(x, time, told).shape == (1, 4, 8, 8)
    # Without a picture all of it is painted, as in A1111.
    [drawn] = generate(Request("a cat", width=64, height=64, steps=1), model)
    assert drawn.size == (64, 64)


def test_the_command_refuses_a_model_of_edits_without_a_picture_in_one_line(
    command: Command,
) -> None:
    outcome = command("-m", str(tiny.pix2pix().file), "-W", "64", "-H", "64", "a cat")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("Error: ") == 1 and "give one with --image" in outcome.err
    assert not list(Path().iterdir())


def test_the_command_draws_with_sdxl(command: Command) -> None:
    small = ("-W", "64", "-H", "96", "--steps", "1", "--seed", "3")
    outcome = command("-m", str(tiny_xl.base().file), *small, "a cat")
    assert outcome.code == 0
    [name] = outcome.out.split()
    with Image.open(name) as image:
        assert image.size == (64, 96)


def test_info_says_what_a_model_is_made_for(command: Command) -> None:
    out = command("info", str(tiny_xl.inpaint().file), str(tiny_xl.base().folder)).out
    assert "weights of latent diffusion inpainting" in out
    assert out.count("needs       a picture and a mask") == 1
