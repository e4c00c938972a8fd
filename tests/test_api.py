"""The library: a model loaded once, images with their records, steps as they come, errors."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import txt2img
from tests.conftest import Command
from txt2img import Request, decode, errors, generate, load, stream
from txt2img.images import image_file
from txt2img.weights.model import Model

SMALL = Request("a cat", width=64, height=64, steps=3, seed=1)
README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_example_writes_the_file_that_the_command_writes(
    command: Command, folder: Path
) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    program = example.replace("seed=1", "seed=1, steps=2")  # and else as it stands there
    exec(compile(program, "example", "exec"), {})
    outcome = command("a red apple", "--seed", "1", "--steps", "2", "-o", "command.png")
    assert outcome.code == 0, outcome.err
    assert Path("apple.png").read_bytes() == Path("command.png").read_bytes()


def test_a_loaded_model_draws_as_often_as_one_likes(sd1_model: Model) -> None:
    first, again = (generate(SMALL, sd1_model)[0].tobytes() for _ in range(2))
    [other] = generate(replace(SMALL, seed=2), sd1_model)
    assert first == again != other.tobytes()


def test_a_random_seed_is_known_afterwards(sd1_model: Model) -> None:
    first, second = generate(replace(SMALL, seed=None, count=2), sd1_model)
    assert first.request.seed is not None and second.request.seed == first.request.seed + 1
    [again] = generate(first.request, sd1_model)
    assert again.tobytes() == first.tobytes()


def test_steps_come_with_previews_and_end_in_the_images(sd1_model: Model) -> None:
    states = list(stream(SMALL, sd1_model))
    assert [(state.step, state.steps) for state in states] == [(1, 3), (2, 3), (3, 3)]
    assert all(isinstance(state.preview(), Image.Image) for state in states)
    [streamed], [whole] = states[-1].images(), generate(SMALL, sd1_model)
    assert streamed.tobytes() == whole.tobytes()


def test_latents_are_there_and_can_be_decoded(sd1_model: Model) -> None:
    [image] = generate(SMALL, sd1_model)
    assert image.latent.shape == (4, 16, 16) and image.latent.dtype == torch.float32
    [again] = decode(sd1_model, image.latent[None])
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_a_saved_image_has_its_record(sd1_model: Model, folder: Path, name: str) -> None:
    [image] = generate(replace(SMALL, seed=None), sd1_model)
    image.save(name)
    info = image_file.read(Path(name))
    assert info.request == replace(image.request, model=sd1_model.name)
    assert info.origin == image.origin and info.origin.hash == sd1_model.hash


def test_options_of_pillow_write_as_pillow_does(sd1_model: Model, folder: Path) -> None:
    [image] = generate(SMALL, sd1_model)
    image.save("x.jpg", quality=50)
    assert image_file.read(Path("x.jpg")).request is None
    assert isinstance(image, Image.Image) and not isinstance(image.copy(), txt2img.GeneratedImage)
    assert image.copy().tobytes() == image.tobytes()


def test_a_model_is_loaded_by_the_names_of_the_command_line(sd1_folder: Path) -> None:
    model = load(str(sd1_folder), device="cpu", dtype="unet=bf16")
    assert next(model.network.parameters()).dtype == torch.bfloat16
    assert next(model.vae.parameters()).dtype == torch.float32
    with pytest.raises(txt2img.BadRequest, match="no device"):
        load(str(sd1_folder), device="tpu")


def test_every_error_is_the_librarys() -> None:
    own = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert own <= set(txt2img.__all__)
    assert all(issubclass(getattr(txt2img, name), txt2img.Txt2imgError) for name in own)
    with pytest.raises(txt2img.ModelNotFound):
        load("no-such-model")


def test_every_name_of_the_library_is_there() -> None:
    assert all(hasattr(txt2img, name) for name in txt2img.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'draw'"):
        txt2img.draw  # noqa: B018


def test_importing_the_library_imports_no_torch_and_changes_no_environment() -> None:
    program = (
        "import os, sys; before = dict(os.environ); import txt2img; txt2img.Request('x'); "
        "sys.exit('torch' in sys.modules or dict(os.environ) != before)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
