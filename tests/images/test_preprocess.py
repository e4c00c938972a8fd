"""OpenCV's maps are those of the formulas that ControlNets were trained with."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter

from txt2img.errors import Txt2imgError
from txt2img.images.preprocess import _MAPS, preprocess
from txt2img.request.preprocess import Preprocess, Preprocessor, parse_preprocess

cv2 = pytest.importorskip("cv2")
RNG = np.random.default_rng(3)
SMOOTH = gaussian_filter(RNG.uniform(0, 255, (60, 90, 3)), (3, 3, 0))
SMOOTH = (SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH) * 255
PICTURE = Image.fromarray(SMOOTH.astype(np.uint8))


def made(text: str, picture: Image.Image = PICTURE) -> np.ndarray:
    return np.array(preprocess(picture, parse_preprocess(text)))


@pytest.mark.parametrize("kind", [*_MAPS])
def test_a_map_is_rgb_and_as_large_as_its_picture(kind: Preprocessor) -> None:
    for picture in (
        PICTURE,
        PICTURE.convert("L"),
        Image.new("RGBA", (7, 300)),
        PICTURE.resize((1, 1)),
    ):
        result = preprocess(picture, Preprocess(kind))
        assert (result.size, result.mode) == (picture.size, "RGB")


def test_every_preprocessor_without_a_model_has_a_map() -> None:
    assert {*_MAPS} == {kind for kind in Preprocessor if not kind.model}


def test_simple_maps_are_pillows() -> None:
    assert np.array_equal(made("invert"), np.array(ImageOps.invert(PICTURE)))
    assert np.abs(made("gray").astype(int) - np.array(PICTURE.convert("L"))[..., None]).max() <= 1
    assert np.array_equal(made("intensity")[..., 0], np.array(PICTURE).max(axis=2))
    assert np.array_equal(made("threshold:90")[..., 1] > 0, np.array(PICTURE).min(axis=2) > 90)
    grey = Image.new("RGB", (2, 1), (119, 119, 119))
    assert made("luminance", grey)[0, 0, 0] in (127, 128)  # L* 50 of 100
    theirs = gaussian_filter(np.array(PICTURE, float), (9, 9, 0), mode="mirror", truncate=3)
    assert np.abs(made("blur") - theirs).max() < 2
    assert np.array_equal(made("tile"), np.array(PICTURE))
    assert (
        np.abs(np.diff(made("tile:30").astype(int), axis=1)).mean()
        < np.abs(np.diff(np.array(PICTURE, int), axis=1)).mean()
    )


def test_canny_finds_the_outline_of_a_square_and_nothing_else() -> None:
    square = Image.new("RGB", (64, 64), "white")
    square.paste("navy", (16, 16, 48, 48))
    edges = made("canny", square)
    assert {*np.unique(edges)} == {0, 255}
    near = np.array(square.convert("L").filter(ImageFilter.MaxFilter(5)), int) - np.array(
        square.convert("L").filter(ImageFilter.MinFilter(5))
    )
    assert np.all(near[edges[..., 0] > 0] > 0)
    assert 100 < (edges[..., 0] > 0).sum() < 140  # four sides of 32 pixels
    assert not made("canny:900,1000").any()
    assert np.array_equal(made("canny:200,100", square), made("canny:100,200", square))


def test_line_art_is_white_where_a_line_is_dark() -> None:
    drawing = np.full((80, 80, 3), 250, np.uint8)
    drawing[38:42] = 20
    x = drawing.astype(float)
    darker = (gaussian_filter(x, (6, 6, 0), mode="mirror") - x).min(axis=2).clip(0, 255)
    theirs = (darker / max(16, np.median(darker[darker > 8])) * 127).clip(0, 255)
    ours = made("lineart", Image.fromarray(drawing))[..., 0]
    assert np.abs(ours - theirs).max() < 4 and ours[40, 40] > 120 and ours[5, 5] == 0
    scribble = made("scribble", Image.fromarray(drawing))[..., 0]
    assert scribble[40, 40] == 255 and scribble[10, 10] == 0 and {*scribble.flat} == {0, 255}


def test_shuffled_pictures_depend_on_their_seed_alone() -> None:
    assert np.array_equal(made("shuffle:4"), made("shuffle:4"))
    assert not np.array_equal(made("shuffle:4"), made("shuffle:5"))
    assert made("shuffle").min() >= np.array(PICTURE).min()  # colours of the picture alone


def test_without_opencv_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(Txt2imgError, match="pip install --no-deps opencv-python-headless"):
        made("canny")
