"""Masks, outpainting and pasting back: what is outside stays, to the byte; no seam."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from txt2img.errors import BadRequest
from txt2img.images.canvas import blurred, canvas_of, filled_from_around, outpaint_mask, part_around
from txt2img.images.input_image import resolve_images
from txt2img.request import Compat, Request
from txt2img.request.compat import rules
from txt2img.request.input_image import ImagePaths, ImageRef, Margins

WHITE = Image.new("RGB", (128, 128), (255, 255, 255))


def noise(size: tuple[int, int] = (128, 128)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box_mask(box: tuple[int, int, int, int], size: tuple[int, int] = (128, 128)) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


class Files:
    """Pictures in a folder, and requests that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.paths = folder, ImagePaths()

    def request(self, image: Image.Image, mask: Image.Image | None, **more: object) -> Request:
        values: dict[str, object] = {}
        for name, picture in {"image": image, "mask": mask}.items():
            if picture is not None:
                picture.save(self.folder / f"{name}.png")
                values[name] = str(self.folder / f"{name}.png")
        return resolve_images(Request("x").with_json(values | more), self.paths)

    def canvas(self, image: Image.Image, mask: Image.Image | None = None, **more: object):  # type: ignore[no-untyped-def]
        request = self.request(image, mask, **more)
        return canvas_of(request, rules(request), self.paths)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def changed(a: Image.Image, b: Image.Image) -> np.ndarray:
    return (np.asarray(a) != np.asarray(b)).any(axis=2)


@pytest.mark.parametrize("blur", [0, 4])
def test_outside_the_mask_every_pixel_is_the_inputs(files: Files, blur: float) -> None:
    image, box = noise(), (40, 30, 80, 90)
    result = files.canvas(image, box_mask(box), mask_blur=blur).finish(WHITE)
    where = changed(image, result)
    reach = 4 * blur  # a Gaussian ends there
    outside = np.ones_like(where)
    outside[30 - reach : 90 + reach, 40 - reach : 80 + reach] = False
    assert not where[outside].any()
    inside = np.asarray(result)[30 + blur : 90 - blur, 40 + blur : 80 - blur]
    assert (inside == 255).all()


def test_the_border_of_a_mask_is_a_gentle_slope(files: Files) -> None:
    black = Image.new("RGB", (128, 128))
    result = files.canvas(black, box_mask((40, 0, 128, 128))).finish(WHITE)
    row = np.asarray(result)[64, :, 0].astype(int)
    assert row[20] == 0 and row[45] == 255
    assert np.diff(row).max() < 60 and (np.diff(row) >= 0).all()


def test_an_inverted_mask_repaints_the_rest(files: Files) -> None:
    box = (40, 30, 80, 90)
    result = files.canvas(noise(), box_mask(box), mask_invert=True, mask_blur=0).finish(WHITE)
    assert result.crop(box).tobytes() == noise().crop(box).tobytes()
    assert result.getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_picture_brings_its_mask(files: Files) -> None:
    image = noise()
    image.putalpha(box_mask((0, 0, 64, 128)))
    canvas = files.canvas(image)
    assert canvas.mask.tobytes() == box_mask((64, 0, 128, 128)).tobytes()
    assert files.paths.notes == ['the transparent part of "image.png" is the mask']


def test_a_mask_of_another_size_is_scaled_and_told(files: Files) -> None:
    canvas = files.canvas(noise(), box_mask((0, 0, 32, 64), (64, 64)))
    assert canvas.mask.size == (128, 128)
    assert canvas.mask.getpixel((60, 5)) == 255 and canvas.mask.getpixel((70, 5)) == 0
    assert "64x64" in files.paths.notes[0] and "scaled" in files.paths.notes[0]


def test_all_black_and_all_white_masks(files: Files) -> None:
    image = noise()
    assert files.canvas(image, Image.new("L", (128, 128))).finish(WHITE).tobytes() == (
        image.tobytes()
    )
    assert any("nothing to repaint" in note for note in files.paths.notes)
    whole = files.canvas(image, Image.new("L", (128, 128), 255)).finish(WHITE)
    assert whole.tobytes() == WHITE.tobytes()


def test_programs_that_do_not_paste_give_the_drawing(files: Files) -> None:
    for name in (Compat.DIFFUSERS, Compat.COMFYUI):
        canvas = files.canvas(noise(), box_mask((0, 0, 8, 8)), compat=name)
        assert canvas.finish(WHITE).tobytes() == WHITE.tobytes()


def test_the_masked_part_alone_is_drawn_large_and_put_back(files: Files) -> None:
    image, box = noise((512, 384)), (200, 100, 240, 140)
    mask = box_mask(box, (512, 384))
    canvas = files.canvas(image, mask, only_masked=16, width=128, height=128, mask_blur=0)
    assert canvas.image.size == canvas.mask.size == (128, 128)
    left, top, right, bottom = canvas.box
    assert (left, top, right, bottom) == (184, 84, 256, 156)
    result = canvas.finish(WHITE)
    assert result.size == (512, 384)
    where = changed(image, result)
    assert not where[np.asarray(mask) == 0].any()
    assert (np.asarray(result.crop(box)) == 255).all()


def test_the_part_around_a_mask_has_the_shape_of_what_is_drawn() -> None:
    assert part_around((10, 10, 20, 20), (100, 100), (64, 64), 5) == (5, 5, 25, 25)
    assert part_around((0, 40, 10, 60), (100, 100), (64, 64), 0) == (0, 40, 20, 60)
    assert part_around((40, 0, 60, 100), (100, 100), (64, 64), 9) == (0, 0, 100, 100)
    assert part_around((40, 40, 60, 60), (100, 100), (128, 64), 0) == (30, 40, 70, 60)


def test_outpainting_keeps_the_picture_where_the_mask_is_black(files: Files) -> None:
    canvas = files.canvas(noise(), outpaint="left=64,up=32", mask_blur=0)
    assert canvas.image.size == canvas.mask.size == (192, 160)
    result = canvas.finish(Image.new("RGB", (192, 160), (255, 255, 255)))
    kept = np.asarray(canvas.mask) == 0
    whole = np.zeros((160, 192, 3), np.uint8)
    whole[32:, 64:] = np.asarray(noise())
    assert kept[32 + 40 :, 64 + 40 :].all()
    assert (np.asarray(result)[kept] == whole[kept]).all()


def test_an_outpaint_mask_fades_into_the_picture() -> None:
    mask = np.asarray(outpaint_mask((256, 256), Margins(left=64)))
    row = mask[100].astype(int)
    assert (row[:64] == 255).all() and (row[64 + 40 :] == 0).all()
    assert (np.diff(row[64:104]) <= 0).all() and np.diff(row).min() > -20
    assert (mask == mask[0]).all()


def test_an_outpainted_canvas_is_the_same_for_all_seeds(files: Files) -> None:
    first, second = (files.canvas(noise(), outpaint="all=64", seed=seed) for seed in (1, 2))
    assert first.image.tobytes() == second.image.tobytes()


def test_a_fill_takes_the_colours_around_the_mask() -> None:
    image = Image.new("RGB", (128, 128), (200, 40, 40))
    image.paste((0, 255, 0), (50, 50, 70, 70))
    filled = filled_from_around(image, box_mask((48, 48, 72, 72)))
    assert np.abs(np.asarray(filled).astype(int) - (200, 40, 40)).max() < 8


def test_what_cannot_be_is_one_line(files: Files) -> None:
    with pytest.raises(BadRequest, match="needs a mask"):
        files.canvas(noise(), only_masked=32)
    with pytest.raises(BadRequest, match="give one"):
        files.canvas(noise(), box_mask((0, 0, 9, 9)), only_masked=32, outpaint="all=64")
    with pytest.raises(BadRequest, match="leaves"):
        files.canvas(noise(), outpaint="all=64", width=128, height=128)
    with pytest.raises(BadRequest, match="multiple of 8"):
        Request("x").with_json({"image": "a", "outpaint": "left=3"})
    with pytest.raises(BadRequest, match="all=128, or left=64,up=32"):
        Request("x").with_json({"image": "a", "outpaint": "middle=8"})


def test_margins_read_as_they_are_written() -> None:
    for text in ("all=128", "left=64,up=32"):
        request = Request("x").with_json({"image": ImageRef("a"), "outpaint": text})
        assert str(request.outpaint) == text
        assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("blur", "size"), [(4, (90, 60)), (1, (64, 64)), (20, (33, 70)), (8, (9, 5))]
)
def test_by_a1111s_rules_masks_are_blurred_as_opencv_does(blur: int, size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 3, size[1] // 4, size[0], size[1] // 2))
    theirs, side = np.array(mask), 2 * int(2.5 * blur + 0.5) + 1
    theirs = cv2.GaussianBlur(theirs, (side, 1), blur)  # processing.py, StableDiffusion…Img2Img
    theirs = cv2.GaussianBlur(theirs, (1, side), blur)
    ours = np.array(blurred(mask, blur, "gaussian"))
    assert np.array_equal(ours, theirs)
    assert rules(Request("", compat=Compat.A1111)).image.blurs == "gaussian"
    assert rules(Request("", compat=Compat.DIFFUSERS)).image.blurs == "boxes"  # Pillow, as theirs
