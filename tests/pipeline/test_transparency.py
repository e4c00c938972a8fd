"""Transparency: even grounds, RGBA pictures, other backgrounds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.train.test_loop import run, tiny
from txt2img.errors import BadRequest
from txt2img.images.formats import FORMATS
from txt2img.images.image_file import check_record_fits, encode
from txt2img.images.record import Origin
from txt2img.pipeline.generate import generate
from txt2img.pipeline.transparency import from_border, image_of
from txt2img.request import Request
from txt2img.request.fields import Transparent
from txt2img.system.device.device import choose
from txt2img.train.config import Run
from txt2img.weights.families import check_transparent
from txt2img.weights.load import load
from txt2img.weights.model import has_alpha

PLAIN = Request(prompt="x")
CUT = Request(prompt="x", transparent=Transparent.MODEL)


def disc(ground: Tensor, noise: float = 0.0) -> Tensor:
    """A red disc with soft edges on a ground (3, H or 1, 1) in 0…1, as (4, 64, 64) with opacity."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    opacity = (20.5 - ((x - 32) ** 2 + (y - 32) ** 2).sqrt()).clamp(0, 1)[None]
    red = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    colour = opacity * red + (1 - opacity) * ground
    generator = torch.Generator().manual_seed(0)
    colour = colour + noise * torch.randn(colour.shape, generator=generator)
    return torch.cat([2 * colour - 1, opacity])


def levels(image: Image.Image) -> Tensor:
    """The bytes of an image as (H, W, C)."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, -1).int()


def test_a_nearly_white_ground_becomes_white_and_a_coloured_one_even() -> None:
    for ground, expected in (((0.97, 0.99, 0.98), 255), ((0.53, 0.81, 0.92), None)):
        drawn = disc(torch.tensor(ground)[:, None, None], noise=0.004)
        pixels = levels(image_of(drawn, PLAIN))
        clear = pixels[drawn[3] == 0]
        assert (clear == clear[0]).all()
        colour = [expected] * 3 if expected else [round(255 * value) for value in ground]
        assert (clear[0] - torch.tensor(colour)).abs().max() <= 1
        plain = ((drawn[:3] + 1) * 127.5).round().permute(1, 2, 0)
        whole = drawn[3] == 1
        assert (pixels[whole] - plain[whole]).abs().max() <= 1  # the thing itself stays


def test_a_gradient_stays_one_and_a_whole_scene_stays_as_it_is() -> None:
    down = torch.linspace(0.2, 0.8, 64)[None, :, None].expand(3, 64, 1)
    drawn = disc(down, noise=0.004)
    pixels = levels(image_of(drawn, PLAIN))
    clear = drawn[3] == 0
    assert (pixels[:, 0] == pixels[:, 63]).all()  # each row of one colour
    expected = (255 * down.expand(3, 64, 64)).permute(1, 2, 0)
    assert (pixels - expected)[clear].abs().max() < 3
    scene = disc(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)))
    plain = ((scene[:3].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0)
    assert (levels(image_of(scene, PLAIN)) - plain).abs().max() <= 1


def test_a_transparent_picture_on_its_ground_is_the_picture() -> None:
    drawn = disc(torch.ones(3, 1, 1))
    cut = image_of(drawn, CUT)
    assert cut.mode == "RGBA"
    assert cut.getpixel((0, 0)) == (255, 255, 255, 0)
    assert cut.getpixel((32, 32))[3] == 255  # type: ignore[index]
    on_white = Image.new("RGBA", cut.size, "white")
    on_white.alpha_composite(cut)
    assert (levels(on_white.convert("RGB")) - levels(image_of(drawn, PLAIN))).abs().max() <= 3
    blue = image_of(drawn, Request(prompt="x", background="#0000ff"))
    assert blue.getpixel((0, 0)) == (0, 0, 255)
    edge = levels(blue)[(drawn[3] > 0.3) & (drawn[3] < 0.7)]
    assert (edge[:, 1] < 26).all()  # no white rim


def test_the_border_is_cut_and_what_the_thing_encloses_stays() -> None:
    image = Image.new("RGB", (40, 30), (250, 252, 249))
    image.paste((20, 30, 40), (10, 5, 30, 25))
    image.paste((250, 252, 249), (15, 10, 25, 20))  # a hole
    cut = from_border(image)
    assert cut.getpixel((0, 0))[3] == cut.getpixel((39, 29))[3] == 0  # type: ignore[index]
    assert cut.getpixel((12, 7))[3] == cut.getpixel((20, 15))[3] == 255  # type: ignore[index]
    assert from_border(image, "red").getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("colour", [(1, 254, 3), (128, 128, 128)])
def test_a_thing_of_any_colour_stays_and_a_ground_of_any_goes(colour: tuple[int, int, int]) -> None:
    for thing, ground in ((colour, (250, 252, 249)), ((20, 30, 40), colour)):
        image = Image.new("RGB", (40, 30), ground)
        image.paste(thing, (10, 5, 30, 25))
        alpha = from_border(image).getchannel("A")
        assert (alpha.getpixel((0, 0)), alpha.getpixel((20, 15))) == (0, 255)


def test_json_says_transparent_as_yes_or_by_name() -> None:
    for value, way in ((True, Transparent.MODEL), ("border", Transparent.BORDER), (False, None)):
        request = Request.from_json({"prompt": "x", "transparent": value})
        assert request.transparent is way
        assert Request.from_json(request.to_json()) == request


def test_models_without_an_alpha_head_say_so() -> None:
    with pytest.raises(BadRequest, match="--transparent border"):
        check_transparent(False, "model", CUT)
    with pytest.raises(BadRequest, match="--transparent border"):
        check_transparent(False, "model", Request(prompt="x", background="red"))
    check_transparent(False, "model", Request(prompt="x", transparent=Transparent.BORDER))
    check_transparent(True, "model", CUT)


def test_a_format_without_transparency_is_refused() -> None:
    with pytest.raises(BadRequest, match="choose png, webp, avif or svg"):
        check_record_fits(CUT, Origin(), FORMATS["jpeg"])
    check_record_fits(replace(CUT, background="red"), Origin(), FORMATS["jpeg"])
    check_record_fits(CUT, Origin(), FORMATS["png"])


def test_an_alpha_head_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    plan = Run(steps=40, batch_size=4, lr=5e-3, warmup=2)
    config = tiny(tmp_path, noised_samples=8, alpha_width=8, alpha_run=plan)
    plain = replace(config, alpha_run=Run(steps=0))
    run(plain)
    without = load(str(config.out), choose("cpu"))
    assert not has_alpha(without)
    reports = run(config)
    assert {report.stage for report in reports} == {"alpha"}
    losses = [report.loss for report in reports]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    model = load(str(config.out), choose("cpu"))
    assert has_alpha(model)
    assert model.hash != without.hash
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = model.vae.decode_with_alpha(x)  # type: ignore[union-attr, operator]
    assert torch.equal(both[:, :3], without.vae.decode(x))
    assert both[:, 3].min() >= 0 and both[:, 3].max() <= 1
    [image] = generate(replace(CUT, prompt="red disc", steps=2, seed=1), model)
    assert image.mode == "RGBA"
    assert len(encode(image, image.request, Origin())) > 100
