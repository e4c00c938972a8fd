"""Pictures to begin from: any that a user has is read alike, what is none is told in one line."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from txt2img.errors import BadFile, BadRequest
from txt2img.images import input_image
from txt2img.images.input_image import (
    find_image,
    load_image,
    open_image,
    resize_image,
    resolve_images,
    with_edges,
)
from txt2img.request import Request
from txt2img.request.input_image import ImagePaths, ImageRef, Margins, Resize

RED, GREEN = (200, 30, 60), (20, 160, 40)


def two_colours(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Red, with the upper left quarter green."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (0, 0, size[0] // 2, size[1] // 2))
    return image


def read(image: Image.Image, format: str = "PNG", **options: object) -> Image.Image:
    """The pixels of a picture after a way through a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return open_image(file, "x").pixels


def near(image: Image.Image, x: int, y: int, colour: tuple[int, ...], miss: int = 3) -> bool:
    pixel = image.getpixel((x, y))
    assert isinstance(pixel, tuple) and len(pixel) == len(colour)
    return all(abs(a - b) <= miss for a, b in zip(pixel, colour, strict=True))


@pytest.mark.parametrize(
    "convert",
    [
        lambda image: image,
        lambda image: image.convert("P", palette=Image.Palette.ADAPTIVE),
        lambda image: image.convert("RGBA"),  # opaque: no alpha is left
    ],
)
def test_modes_of_colour_are_read_as_rgb(convert: Callable[[Image.Image], Image.Image]) -> None:
    got = read(convert(two_colours()))
    assert got.mode == "RGB" and near(got, 1, 1, GREEN) and near(got, 40, 30, RED)


def test_cmyk_is_read_as_the_colours_it_prints() -> None:
    got = read(two_colours().convert("CMYK"), "TIFF")
    assert near(got, 1, 1, GREEN) and near(got, 40, 30, RED)


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_read_as_rgb(mode: str) -> None:
    image = Image.new("L", (8, 8), 255).convert(mode)
    assert near(read(image), 3, 3, (255, 255, 255))


def test_16_bits_become_8_by_their_upper_half() -> None:
    image = Image.new("I;16", (4, 4), 0)
    image.putpixel((1, 1), 65535)
    image.putpixel((2, 2), 0x8080)
    got = read(image)
    assert [got.getpixel((i, i)) for i in range(3)] == [(0,) * 3, (255,) * 3, (128,) * 3]
    assert read(Image.new("F", (4, 4), 0.5), "TIFF").getpixel((0, 0)) == (128, 128, 128)


def test_transparency_of_a_palette_becomes_alpha() -> None:
    image = two_colours().convert("P", palette=Image.Palette.ADAPTIVE)
    index = image.getpixel((1, 1))
    got = read(image, transparency=index)
    assert got.mode == "RGBA"
    assert near(got, 40, 30, (*RED, 255))
    assert got.getchannel("A").getpixel((1, 1)) == 0


def test_transparent_parts_are_white_without_alpha() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file, "PNG")
    assert open_image(file, "x").rgb().getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_obeyed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    got = read(two_colours(), "JPEG", exif=exif, quality=95)
    assert got.size == (32, 48)
    assert near(got, 28, 4, GREEN, 12) and near(got, 4, 4, RED, 12)


def test_an_animation_is_its_first_frame_and_told() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    image = open_image(file, "moving.gif")
    assert near(image.pixels, 4, 4, RED)
    assert image.notes == ('"moving.gif" is animated: its first frame is used',)


def test_a_linear_gamma_is_made_srgb() -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4, "big"))
    got = read(Image.new("RGB", (4, 4), (55, 55, 55)), pnginfo=info)
    assert near(got, 0, 0, (127, 127, 127), 2)  # (55 / 255) ** (1 / 2.2)


def test_a_colour_profile_is_obeyed() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", 5000))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    lab = ImageCms.profileToProfile(two_colours(), srgb, profile, outputMode="LAB")
    assert lab is not None
    got = read(lab, "TIFF", icc_profile=profile.tobytes())
    assert near(got, 1, 1, GREEN, 4) and near(got, 40, 30, RED, 4)


def test_files_that_are_no_pictures_are_one_line(tmp_path: Path) -> None:
    whole = io.BytesIO()
    two_colours((300, 300)).save(whole, "PNG")
    for content, line in {
        b"": "is empty",
        b"a red apple": "is no picture",
        whole.getvalue()[:200]: "is not a whole picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "is no picture",
    }.items():
        with pytest.raises(BadFile, match=line) as caught:
            open_image(io.BytesIO(content), "x.png")
        assert "\n" not in str(caught.value)


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    large = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(large, "PNG")
    with pytest.raises(BadFile, match="pixels"):
        open_image(large, "x.png")
    monkeypatch.setattr(input_image, "PIXELS_MAX", 100)
    file = io.BytesIO()
    two_colours().save(file, "PNG")
    with pytest.raises(BadFile, match="48x32 pixels: at most 100"):
        open_image(file, "x.png")


def test_the_hash_is_of_the_pixels_alone(tmp_path: Path) -> None:
    image = two_colours()
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "c.png")
    paths = ImagePaths()
    a, b, c = (find_image(ImageRef(str(path)), paths)[0] for path in sorted(tmp_path.iterdir()))
    assert a.hash == b.hash != c.hash
    assert [ref.name for ref in (a, b, c)] == ["a.png", "b.bmp", "c.png"]


def test_a_recorded_picture_is_found_by_its_hash(tmp_path: Path) -> None:
    for folder in ("named", "renamed"):
        (tmp_path / folder).mkdir()
    two_colours().save(tmp_path / "named" / "a.png")
    two_colours((9, 9)).save(tmp_path / "renamed" / "a.png")  # another of that name
    (tmp_path / "renamed" / "notes.txt").write_text("no picture")
    ref, _ = find_image(ImageRef(str(tmp_path / "named" / "a.png")), ImagePaths())
    beside = ImagePaths(beside=[tmp_path / "named"])
    assert load_image(ref, beside).hash == ref.hash
    with pytest.raises(BadFile, match=f'no picture "a.png" .* {ref.hash[:12]}.*--image-dir'):
        find_image(ref, ImagePaths(folders=(tmp_path / "renamed",)))
    two_colours().save(tmp_path / "renamed" / "z.webp", lossless=True)
    found, size = find_image(ref, ImagePaths(folders=(tmp_path / "renamed",)))
    assert (found, size) == (ref, (48, 32))


def test_a_picture_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path, paths = tmp_path / "a.png", ImagePaths()
    two_colours().save(path)
    ref, _ = find_image(ImageRef(str(path)), paths)
    two_colours((9, 9)).save(path)
    with pytest.raises(BadFile, match="was changed"):
        load_image(ref, paths)


def resolved(tmp_path: Path, size: tuple[int, int], **more: object) -> tuple[Request, ImagePaths]:
    two_colours(size).save(tmp_path / "a.png")
    paths = ImagePaths()
    request = Request("x", image=ImageRef(str(tmp_path / "a.png"))).with_json(more)
    return resolve_images(request, paths), paths


@pytest.mark.parametrize(
    ("size", "more", "expected"),
    [
        ((256, 320), {}, (256, 320)),
        ((259, 317), {}, (256, 320)),
        ((1, 1), {}, (64, 64)),
        ((200, 100), {"width": 512}, (512, 256)),
        ((200, 100), {"height": 64}, (128, 64)),
        ((200, 100), {"width": 512, "height": 512}, (512, 512)),
        ((256, 256), {"outpaint": "left=64,up=32"}, (320, 288)),
        ((100, 100), {"tile": "xy"}, (128, 128)),
    ],
)
def test_the_size_is_as_asked_or_the_pictures(
    tmp_path: Path, size: tuple[int, int], more: dict[str, object], expected: tuple[int, int]
) -> None:
    request, _ = resolved(tmp_path, size, **more)
    assert (request.width, request.height) == expected


def test_a_size_that_no_model_draws_is_told(tmp_path: Path) -> None:
    _, paths = resolved(tmp_path, (259, 317))
    assert paths.notes == ['"a.png" has 259x317 pixels; it is drawn at 256x320']
    assert not resolved(tmp_path, (256, 320))[1].notes


def test_a_model_of_patches_has_sizes_of_its_own(tmp_path: Path) -> None:
    request, paths = resolved(tmp_path, (264, 320))
    assert (request.width, request.height) == (264, 320)
    paths.fit_to(16)
    again = resolve_images(Request("x", image=request.image), paths)
    assert (again.width, again.height) == (256, 320)
    assert paths.notes == ['"a.png" has 264x320 pixels; it is drawn at 256x320']


def test_a_mask_needs_a_picture() -> None:
    with pytest.raises(BadRequest, match="need --image"):
        resolve_images(Request("x", mask=ImageRef("m.png")), ImagePaths())


def test_ways_to_resize() -> None:
    image = two_colours((64, 32))
    cropped, filled, stretched = (
        resize_image(image, 32, 32, how) for how in (None, Resize.FILL, Resize.STRETCH)
    )
    assert cropped.tobytes() == image.crop((16, 0, 48, 32)).tobytes()
    assert near(stretched, 4, 4, GREEN) and near(stretched, 20, 4, RED)
    assert near(filled, 4, 1, GREEN) and near(filled, 4, 10, GREEN) and near(filled, 4, 30, RED)


def test_edges_are_repeated_on_a_larger_canvas() -> None:
    image = two_colours((4, 4))
    wide = with_edges(image, Margins(left=8, down=16))
    assert wide.size == (12, 20)
    assert wide.crop((8, 0, 12, 4)).tobytes() == image.tobytes()
    assert near(wide, 0, 0, GREEN, 0) and near(wide, 0, 3, RED, 0) and near(wide, 11, 19, RED, 0)


def test_of_many_pictures_the_first_lines_are_told() -> None:
    paths = ImagePaths()
    for number in range(1000):
        paths.note(f"a{number}.png")
    assert len(paths.notes) == 21 and "more" in paths.notes[-1]
