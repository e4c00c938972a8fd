"""From a picture to a picture: where it starts, what stays, and what the VAE makes of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support import tiny
from txt2img.errors import BadRequest
from txt2img.models.taesd import TinyVAE
from txt2img.pipeline import init_image
from txt2img.pipeline.generate import decode, generate, prepare, sample
from txt2img.pipeline.init_image import encode, to_pixels
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.fields import Tile
from txt2img.request.input_image import ImageRef
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.model import AdapterState, Model

TEXT_ALONE = Request(
    "a cat", "dog", "m", 64, 64, 4, 4.0, sampler=Sampler.EULER, schedule=Schedule.LEADING, seed=42
)
PLAIN = replace(TEXT_ALONE, eta=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture and its mask, the right half."""
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
    image.save(folder / "image.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (32, 0, 64, 64))
    mask.save(folder / "mask.png")
    return folder


@pytest.fixture
def model(sd1_model: Model) -> Iterator[Model]:
    """The tiny model, with the paths of its pictures of this test alone."""
    state, sd1_model.adapters = sd1_model.adapters, AdapterState()
    yield sd1_model
    sd1_model.adapters = state


def asked(model: Model, folder: Path, masked: bool = False, **more: object) -> Request:
    """A filled request that begins from the picture."""
    request = replace(TEXT_ALONE, image=ImageRef(str(folder / "image.png")))
    if masked:
        request = replace(request, mask=ImageRef(str(folder / "mask.png")))
    return resolve_adapters(model, request.with_json(more)).filled(model.family.defaults)


def last(model: Model, request: Request) -> Tensor:
    *_, end = sample(model, [request])
    return end.x


def test_a_strength_too_small_for_a_step_gives_the_picture_back(model: Model, folder: Path) -> None:
    for strength in (0.0, 0.2):
        request = asked(model, folder, strength=strength)
        [state] = sample(model, [request])
        assert (state.step, state.steps) == (0, 0)
        [image] = decode(model, state.x, request)
        assert image.tobytes() == Image.open(folder / "image.png").tobytes()


def test_strength_1_is_what_text_alone_gives(model: Model, folder: Path) -> None:
    request = asked(model, folder, strength=1.0)
    assert torch.equal(last(model, request), last(model, TEXT_ALONE))


@pytest.mark.parametrize("compat", [Compat.A1111, Compat.COMFYUI, Compat.DIFFUSERS])
def test_other_programs_begin_from_the_picture_at_strength_1_too(
    model: Model, folder: Path, compat: Compat
) -> None:
    request = asked(model, folder, strength=1.0, compat=compat)
    job = prepare(model, [request])
    assert job.init is not None and job.init_scale == job.levels[0].alpha


def test_text_alone_decides_more_the_stronger_it_is(model: Model, folder: Path) -> None:
    start = encode(model, pixels(folder), [None], TEXT_ALONE)
    misses = [
        float((last(model, asked(model, folder, strength=strength)) - start).square().mean())
        for strength in (0.25, 0.5, 0.75)
    ]
    assert misses == sorted(misses)


def pixels(folder: Path) -> Tensor:
    return to_pixels(Image.open(folder / "image.png"))[None]


def test_pixels_are_minus_1_to_1(folder: Path) -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    assert to_pixels(image).tolist() == [[[1.0, 1.0]], [[-1.0, -1.0]], [[-1.0, -1.0]]]


def test_tiles_are_encoded_like_the_whole(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = to_pixels(Image.open(folder / "image.png").resize((320, 288)))[None]
    whole = encode(model, wide, [None], TEXT_ALONE)
    monkeypatch.setattr(model.memory, "tiling", "on")
    tiled = encode(model, wide, [None], TEXT_ALONE)
    assert tiled.shape == whole.shape
    both = torch.stack([tiled.flatten(), whole.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.95  # a tile's norms and attention are its own


def test_little_memory_encodes_in_tiles_and_tells(
    model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = to_pixels(Image.open(folder / "image.png").resize((320, 64)))[None]
    encoder, sizes = model.vae.spread, []  # type: ignore[union-attr]

    def small(part: Tensor) -> Tensor:
        sizes.append(part.shape[-1])
        if part.shape[-1] > 300:
            raise torch.OutOfMemoryError
        return encoder(part)

    monkeypatch.setattr(model.vae, "spread", small)
    model.memory.given.discard(init_image.TILED)
    assert encode(model, wide, [None], TEXT_ALONE).shape[-1] == 320 // model.vae.config.factor
    assert sizes[0] == 320 and max(sizes[1:]) <= 300
    assert init_image.TILED in model.memory.pop_warnings()


def test_a_seamless_picture_is_encoded_as_one(model: Model, folder: Path) -> None:
    factor, shift = model.vae.config.factor, 4
    moved = pixels(folder).roll(shift * factor, -1)
    misses = []
    for tile in (None, Tile.X):
        request = replace(TEXT_ALONE, tile=tile)
        still, other = (encode(model, one, [None], request) for one in (pixels(folder), moved))
        misses.append(float((still.roll(shift, -1) - other).abs().max()))
    assert misses[1] < misses[0] / 4  # the attention still sees all that is encoded


def test_a_decoder_alone_reads_no_picture(model: Model, folder: Path) -> None:
    from txt2img.models.configs import TinyConfig

    bare = TinyVAE(TinyConfig(width=8, encoder=(), decoder=(1, 1, 1)))
    with pytest.raises(BadRequest, match="decoder alone"):
        encode(replace(model, vae=bare), pixels(folder), [None], TEXT_ALONE)


@pytest.mark.parametrize("compat", [None, Compat.A1111, Compat.COMFYUI])
@pytest.mark.parametrize("sampler", ["euler_a", "ddim", "heun", "dpm++2m_sde"])
def test_masked_latents_stay_where_the_mask_is_black(
    model: Model, folder: Path, compat: Compat | None, sampler: str
) -> None:
    request = asked(model, folder, True, strength=0.75, compat=compat, sampler=sampler, mask_blur=0)
    start = encode(model, pixels(folder), [None], TEXT_ALONE)
    x = last(model, request)
    assert torch.allclose(x[..., :7], start[..., :7], atol=1e-5)
    assert not torch.allclose(x[..., 9:], start[..., 9:], atol=1e-2)


def test_outside_the_mask_pixels_are_the_inputs_and_no_seam_shows(
    model: Model, folder: Path
) -> None:
    request = asked(model, folder, True, strength=0.75, mask_blur=2)
    [image] = generate(request, model)
    given, drawn = (np.asarray(i, int) for i in (Image.open(folder / "image.png"), image))
    assert (drawn[:, :22] == given[:, :22]).all()
    assert (drawn[:, 40:] != given[:, 40:]).any()


@pytest.mark.parametrize("fill", ["original", "fill", "noise", "zero"])
def test_fills_change_what_is_masked_alone(model: Model, folder: Path, fill: str) -> None:
    request = asked(model, folder, True, strength=0.5, inpaint_fill=fill, mask_blur=0)
    job = prepare(model, [request])
    assert job.init is not None and job.init.latent is not None
    noise = torch.full_like(job.init.latent, 7.0)
    start = job.init.start(noise)
    assert torch.equal(start[..., :7], job.init.latent[..., :7])
    inner = start[..., 9:]
    assert bool((inner == 7).all()) == (fill == "noise")
    assert bool((inner == 0).all()) == (fill == "zero")


def test_an_inpainting_model_sees_the_mask_and_grey_where_it_hides(folder: Path) -> None:
    from txt2img.system.device.device import choose
    from txt2img.weights.load import load

    model = load(str(tiny.inpaint().folder), choose("cpu"))
    request = asked(model, folder, True)
    assert request.strength == 1
    job = prepare(model, [request])
    assert job.init is not None and job.init.extra is not None
    hidden = pixels(folder).clone()
    hidden[..., 32:] = 0
    seen = encode(model, hidden, [None], request)
    assert torch.allclose(job.init.extra[:, 1:], seen, atol=1e-5)
    assert job.init.extra[0, 0, :, 7:9].tolist() == [[0.0, 1.0]] * 16
    [image] = generate(request, model)
    assert image.size == (64, 64)


def test_several_seeds_of_one_picture_are_as_alone(model: Model, folder: Path) -> None:
    request = asked(model, folder, True, sampler="euler_a", strength=0.5)
    requests = [request, replace(request, seed=7)]
    *_, together = sample(model, requests)
    for x, one in zip(together.x, requests, strict=True):
        assert torch.equal(x, last(model, one)[0])


@pytest.mark.parametrize(
    "more",
    [
        {"reuse": 2},
        {"tile": "xy"},
        {"subseed": 3, "subseed_strength": 0.3},
        {"cfg": 1.0},
        {"cfg_interval": "0.2..0.8"},
        {"eta": 0.5, "sampler": "ddim"},
    ],
    ids=str,
)
def test_other_options_go_with_a_picture(
    model: Model, folder: Path, more: dict[str, object]
) -> None:
    changed = last(model, asked(model, folder, True, strength=0.75, **more))
    assert bool(torch.isfinite(changed).all())
    assert not torch.equal(changed, last(model, asked(model, folder, True, strength=0.75)))


def test_a_python_caller_names_a_picture_by_its_path(model: Model, folder: Path) -> None:
    values = {"image": folder / "image.png", "steps": 1, "seed": 1}
    [image] = generate(Request("a cat", **values), model)  # type: ignore[arg-type]
    assert image.size == (64, 64)
    assert image.request.image is not None and image.request.image.name == "image.png"
