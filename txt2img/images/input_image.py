"""Pictures to begin from: found by name or hash, read in any format and mode, brought to a size."""

import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from txt2img.errors import BadFile, BadRequest
from txt2img.images.image_file import FILE_MAX
from txt2img.request import Request
from txt2img.request.fields import SIDES
from txt2img.request.input_image import (
    STDIN,
    UNNAMED,
    ImageFacts,
    ImagePaths,
    ImageRef,
    Margins,
    Resize,
)
from txt2img.system.files import open_regular, stat_key
from txt2img.system.text import escape, shown

if TYPE_CHECKING:
    from PIL import Image

# Pillow's formats but those that start programs, and those that are no pictures of one size.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "ICO"),
    *("JPEG2000", "QOI", "PCX", "SGI", "DDS", "PSD", "ICNS", "XBM", "HEIF"),
)
PIXELS_MAX = 2**27  # 11,585 × 11,585
STDIN_NAME = "standard input"
SEAMLESS_MULTIPLE = 64  # pixels
LARGE = 2  # megapixels: a picture drawn that large takes long
SRGB_GAMMA = 1 / 2.2


@dataclass(frozen=True)
class InputImage:
    """A picture as it was read: upright, 8 bits a channel, sRGB, with alpha if any is not 255."""

    pixels: "Image.Image"  # "RGB" or "RGBA"
    hash: str  # 64 hex digits, of mode, size and pixels
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.size

    def rgb(self, background: tuple[int, int, int] = (255, 255, 255)) -> "Image.Image":
        """The picture over a background, white as in A1111."""
        from PIL import Image

        if self.pixels.mode == "RGB":
            return self.pixels
        canvas = Image.new("RGBA", self.size, (*background, 255))
        return Image.alpha_composite(canvas, self.pixels).convert("RGB")


def resolve_images(request: Request, paths: ImagePaths) -> Request:
    """The request with its pictures found and hashed, and a size where it has none.

    BadFile for what is missing or no picture, BadRequest for fields that need a picture.
    """
    if request.image is None and not (request.mask is None and request.outpaint is None):
        raise BadRequest("--mask and --outpaint need --image: the picture to change")
    _check_named(request)
    request = request.with_images(lambda ref: find_image(ref, paths)[0])
    if request.image is None:
        return request
    _note_mask(request, paths)
    if request.width is None or request.height is None:
        width, height = size_of(request, paths.facts[request.image.hash].size, paths)
        request = replace(request, width=width, height=height)
    return request


def _check_named(request: Request) -> None:
    """Raise BadFile for a control whose picture another program's record does not name."""
    uses = [("--control", one.model, (one.image,)) for one in request.controls]
    others = [("--ip-adapter", one.model, one.images) for one in request.ip_adapters]
    for option, model, images in (*uses, *others):
        if ImageRef(UNNAMED) in images:
            raise BadFile(
                f"the record does not name the picture of {model.what}, {shown(model.name)}; give "
                f"it with {option} {escape(model.name)}:IMAGE, or {option} none"
            )


def size_of(request: Request, size: tuple[int, int], paths: ImagePaths) -> tuple[int, int]:
    """Width and height of the canvas: as asked, the rest from the picture's own size."""
    out = request.outpaint
    across, down = (out.left + out.right, out.up + out.down) if out else (0, 0)
    width, height = request.width, request.height
    if width is not None:
        shape = float(width), down + max(width - across, 1) * size[1] / size[0]
    elif height is not None:
        shape = across + max(height - down, 1) * size[0] / size[1], float(height)
    else:
        shape = float(size[0] + across), float(size[1] + down)
    multiple = SEAMLESS_MULTIPLE if request.tile else paths.multiple
    new = (nearest(shape[0], multiple), nearest(shape[1], multiple))
    new = (width or new[0], height or new[1])
    assert request.image is not None
    name = shown(request.image.name)
    if width is None and height is None and new != (round(shape[0]), round(shape[1])):
        old = f"{size[0]}x{size[1]}" + (f", with --outpaint {out}" if out else "")
        paths.note(f"{name} has {old} pixels; it is drawn at {new[0]}x{new[1]}")
    if width is None and height is None and new[0] * new[1] > LARGE * 10**6:
        paths.note(f"{name} is drawn at {new[0]}x{new[1]} pixels; -W or -H makes it smaller")
    return new


def nearest(pixels: float, multiple: int) -> int:
    """The nearest multiple that a side may have."""
    least = -(-SIDES.start // multiple) * multiple
    return min(max(round(pixels / multiple) * multiple, least), SIDES[-1] // multiple * multiple)


def find_image(ref: ImageRef, paths: ImagePaths) -> tuple[ImageRef, tuple[int, int]]:
    """Find a picture by its hash, or by its path if it has none: its reference and size. BadFile.

    From then on `load_image` finds it by its hash.
    """
    if not ref.hash and (ref.name == STDIN or ref.name in paths.embedded):
        return _from_memory(ref.name, paths)
    if not ref.hash and re.match("https?://", ref.name):
        raise BadFile(f"{shown(ref.name)} is an address; download the picture, and give its file")
    if ref == ImageRef(UNNAMED):
        raise BadFile("a record does not name the picture that it begins from; give it as image")
    if ref.hash in paths.contents:
        return ref, paths.facts[ref.hash].size
    candidates = [paths.files[ref.hash]] if ref.hash in paths.files else [*_places(ref, paths)]
    for path in candidates:
        if found := _known(path, paths, ref.hash):
            found = ref if ref.hash else found  # a record keeps the name
            return found, paths.facts[found.hash].size
    raise BadFile(_missing(ref, paths))


def load_image(ref: ImageRef, paths: ImagePaths) -> InputImage:
    """Read a picture that was found before. BadFile if it is gone or was changed."""
    if ref.hash in paths.contents:
        return open_image(BytesIO(paths.contents[ref.hash]), ref.name)
    path = paths.files.get(ref.hash)
    if path is None:
        found, _ = find_image(ref, paths)
        return load_image(found, paths)
    with open_regular(path) as file:
        image = open_image(file, str(path))
    if image.hash != ref.hash:
        raise BadFile(f"{shown(path)} was changed while it was in use; start again")
    return image


def _from_memory(given: str, paths: ImagePaths) -> tuple[ImageRef, tuple[int, int]]:
    content = paths.stdin if given == STDIN else paths.embedded[given]
    if content is None:
        raise BadRequest(f"{STDIN_NAME} holds no picture here; give --image - on the command line")
    name = STDIN_NAME if given == STDIN else given
    image = open_image(BytesIO(content), name)
    paths.contents[image.hash] = content
    _remember(image, paths)
    return ImageRef(name, image.hash), image.size


def _known(path: Path, paths: ImagePaths, digits: str) -> ImageRef | None:
    """The picture at a path, read once; None if its hash is another one. BadFile, OSError."""
    given, path = str(path), Path(os.path.abspath(path))
    known, key = paths.seen.get(path), None
    with suppress(OSError):
        key = stat_key(path.stat())
    if known is None or known[0] != key:
        try:
            with open_regular(Path(given)) as file:
                image = open_image(file, given)
        except BadFile:
            if digits:
                return None
            raise
        assert key is not None
        known = paths.seen[path] = (key, image.hash)
        _remember(image, paths, digits in ("", image.hash))
    if digits not in ("", known[1]):
        return None
    paths.files[known[1]] = path
    return ImageRef(escape(path.name)[:255], known[1])


def _remember(image: InputImage, paths: ImagePaths, tell: bool = True) -> None:
    """Keep the facts of a picture, and tell what is odd about its file."""
    low, high = as_mask(image).getextrema()
    shades = int(str(low)), int(str(high))
    paths.facts[image.hash] = ImageFacts(image.size, image.pixels.mode == "RGBA", shades)
    for line in image.notes if tell else ():
        paths.note(line)


def as_mask(image: InputImage) -> "Image.Image":
    """A picture as a mask, of one channel; what is transparent is black."""
    return image.rgb((0, 0, 0)).convert("L")


def _note_mask(request: Request, paths: ImagePaths) -> None:
    """Tell what a user may not expect of a mask."""
    image, mask = request.image, request.mask
    assert image is not None
    if mask is None:
        if paths.facts[image.hash].transparent:
            paths.note(f"the transparent part of {shown(image.name)} is the mask")
        return
    facts, size = paths.facts[mask.hash], paths.facts[image.hash].size
    if facts.size != size:
        paths.note(
            f"the mask {shown(mask.name)} has {facts.size[0]}x{facts.size[1]} pixels, the picture "
            f"{size[0]}x{size[1]}: it is scaled"
        )
    if facts.shades == ((255, 255) if request.mask_invert else (0, 0)) and not request.outpaint:
        paths.note(f"the mask {shown(mask.name)} leaves nothing to repaint: white is repainted")


def _places(ref: ImageRef, paths: ImagePaths) -> list[Path]:
    """Where a picture may be: the path that it was given by; else files of its name, then all."""
    given, name = Path(ref.name).expanduser(), Path(ref.name).name
    if not ref.hash:
        folders = [path / end for path in paths.folders for end in (ref.name, name)]
        return [next((path for path in [given, *folders] if path.exists()), given)]
    named = [folder / name for folder in (*paths.beside, *paths.folders)]
    others = [entry for folder in paths.folders for entry in sorted(folder.iterdir())]
    return [path for path in dict.fromkeys([*named, *others]) if path.is_file()]


def _missing(ref: ImageRef, paths: ImagePaths) -> str:
    places = ", ".join(shown(path) for path in dict.fromkeys((*paths.beside, *paths.folders)))
    where = f" in {places}" if places else ""
    return (
        f"no picture {shown(ref.name)} whose pixels have the hash {ref.hash[:12]}{where}; give its "
        "folder with --image-dir"
    )


def open_image(file: BinaryIO, name: str) -> InputImage:
    """Read a picture. BadFile if it is none, broken, or too large."""
    from PIL import Image, UnidentifiedImageError

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > FILE_MAX:
        raise BadFile(f"{shown(name)} is larger than {FILE_MAX >> 20} MiB")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd and large pictures; real faults raise
        try:
            Image.init()
            with Image.open(file, formats=[name for name in FORMATS if name in Image.ID]) as it:
                _check_size(it.size, name)
                return _decoded(it, name)
        except UnidentifiedImageError:
            fault = "is empty" if not size else "is no picture, or one of an unknown format"
            raise BadFile(f"{shown(name)} {fault}") from None
        except Image.DecompressionBombError:
            raise BadFile(f"{shown(name)} has too many pixels: at most {PIXELS_MAX:,}") from None
        except MemoryError:
            raise BadFile(f"{shown(name)} does not fit into memory; make it smaller") from None
        except BadFile:
            raise
        except Exception as error:  # Pillow's parsers and their libraries raise all kinds
            raise BadFile(f"{shown(name)} is not a whole picture: {error}") from error


def _check_size(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > PIXELS_MAX:
        raise BadFile(
            f"{shown(name)} has {size[0]:,}x{size[1]:,} pixels: at most {PIXELS_MAX:,} in all; "
            "make it smaller"
        )


def _decoded(image: "Image.Image", name: str) -> InputImage:
    """Decode the first frame, upright, as 8-bit sRGB."""
    from PIL import ImageOps

    notes = []
    if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "PSD", "TIFF"):
        notes.append(f"{shown(Path(name).name)} is animated: its first frame is used")
    image.load()
    upright = ImageOps.exif_transpose(image)
    has_alpha = upright.has_transparency_data
    alpha = upright.convert("RGBA").getchannel("A") if has_alpha else None
    rgb = _to_srgb(upright)
    if alpha is not None and alpha.getextrema() != (255, 255):
        rgb.putalpha(alpha)
    about = f"{rgb.mode} {rgb.width}x{rgb.height}\n"
    return InputImage(rgb, sha256(about.encode() + rgb.tobytes()).hexdigest(), tuple(notes))


def _to_srgb(image: "Image.Image") -> "Image.Image":
    """A picture of any mode as 8-bit RGB, by its colour profile or gamma where it has one."""
    from PIL import ImageCms

    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                supported = (
                    image if image.mode in ("RGB", "CMYK", "L", "LAB") else image.convert("RGB")
                )
                target = ImageCms.createProfile("sRGB")
                to_srgb = ImageCms.profileToProfile(supported, source, target, outputMode="RGB")
                if to_srgb is not None:
                    return to_srgb
    if image.mode in ("P", "PA") or "transparency" in image.info:
        rgb = image.convert("RGBA").convert("RGB")
    else:
        rgb = image.convert("RGB")
    gamma = image.info.get("gamma")
    if isinstance(gamma, float) and "srgb" not in image.info and "icc_profile" not in image.info:
        power = SRGB_GAMMA / gamma if 0.05 < gamma < 5 else 1.0
        if abs(power - 1) > 0.05:
            # A sample is light to the power of gamma; sRGB's is light to about 1 / 2.2.
            rgb = rgb.point([round(255 * (i / 255) ** power) for i in range(256)] * 3)
    return rgb


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """A picture of 16 or 32 bits, or of floats from 0 to 1, as one of 8 bits."""
    if image.mode == "F":
        _, highest = image.getextrema()
        scale = 255.0 if isinstance(highest, float) and highest <= 1 else 1.0
    else:
        image, scale = image.convert("I").convert("F"), 255 / 65535
    return image.point(lambda value: value * scale + 0.5).convert("L")


def resize_image(
    image: "Image.Image", width: int, height: int, how: Resize | None = None
) -> "Image.Image":
    """The picture at a size: cropped, with its edges drawn out (fill), or stretched."""
    from PIL import Image, ImageOps

    if image.size == (width, height):
        return image
    lanczos = Image.Resampling.LANCZOS
    if how is Resize.STRETCH:
        return image.resize((width, height), lanczos)
    if how is Resize.FILL:
        inner = ImageOps.contain(image, (width, height), lanczos)
        left, up = (width - inner.width) // 2, (height - inner.height) // 2
        return _on_canvas(inner, width, height, left, up)
    return ImageOps.fit(image, (width, height), lanczos)


def with_edges(image: "Image.Image", margins: Margins) -> "Image.Image":
    """The picture on a larger canvas, its outermost pixels repeated."""
    width = margins.left + image.width + margins.right
    height = margins.up + image.height + margins.down
    return _on_canvas(image, width, height, margins.left, margins.up)


def _on_canvas(image: "Image.Image", width: int, height: int, left: int, up: int) -> "Image.Image":
    """The picture at a place on a canvas of that size, its outermost pixels repeated."""
    from PIL import Image

    inner_width, inner_height = image.size
    wide = Image.new(image.mode, (width, inner_height))
    wide.paste(image, (left, 0))
    right, down = left + inner_width, up + inner_height
    for x, pixels, column in ((0, left, 0), (right, width - right, inner_width - 1)):
        if pixels:
            edge = image.crop((column, 0, column + 1, inner_height))
            wide.paste(edge.resize((pixels, inner_height)), (x, 0))
    whole = Image.new(image.mode, (width, height))
    whole.paste(wide, (0, up))
    for y, pixels, row in ((0, up, 0), (down, height - down, inner_height - 1)):
        if pixels:
            whole.paste(wide.crop((0, row, width, row + 1)).resize((width, pixels)), (0, y))
    return whole
