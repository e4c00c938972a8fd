"""Preprocess pictures into maps for a ControlNet by OpenCV: edges, lines, blurs, grey tones.

The formulas are those of A1111's ControlNet extension, whose models were trained on such maps; here
a map has its picture's size.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from txt2img.errors import Txt2imgError
from txt2img.images.metadata.a1111 import Infotext
from txt2img.images.upscaled import NO_PROMPT
from txt2img.request.preprocess import Preprocess, Preprocessor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Levels = NDArray[np.uint8]  # (H, W, 3), or (H, W) where all channels are equal
    Make = Callable[[ModuleType, Levels, tuple[float, ...]], NDArray[np.generic]]

EXTRA = "preprocessors need OpenCV: pip install --no-deps opencv-python-headless"
SHUFFLE_CELL = 256  # pixels, as in A1111
LINE_TONE = 127  # of a line of median strength


def preprocess(image: "Image.Image", how: Preprocess) -> "Image.Image":
    """The map of an RGB picture, RGB and of its size. Txt2imgError without OpenCV.

    A preprocessor with a model is none of these: see pipeline/preprocess.py.
    """
    import numpy as np
    from PIL import Image

    cv2 = import_opencv()
    result = _MAPS[how.name](cv2, np.array(image.convert("RGB")), how.numbers)
    levels = np.clip(result, 0, 255).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB")


def map_texts(how: Preprocess) -> dict[str, str]:
    """The text of a map: how it was made. What drew its picture would not draw it."""
    return {NO_PROMPT: str(Infotext("", entries={"Preprocessor": str(how)}))}


def import_opencv() -> ModuleType:
    """Import OpenCV. Txt2imgError if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise Txt2imgError(EXTRA) from error
    module: ModuleType = cv2
    return module


def _canny(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    low, high = sorted(numbers)
    edges: Levels = cv2.Canny(x, low, high)
    return edges


def _blur(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    blurred: Levels = cv2.GaussianBlur(x, (0, 0), numbers[0])
    return blurred


def _tile(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    """Fewer pixels, at the old size: what a tile model refines."""
    height, width = x.shape[:2]
    small = max(int(width / numbers[0]), 1), max(int(height / numbers[0]), 1)
    reduced = cv2.resize(x, small, interpolation=cv2.INTER_AREA)
    result: Levels = cv2.resize(reduced, (width, height), interpolation=cv2.INTER_CUBIC)
    return result


def _gray(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    gray: Levels = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)
    return gray


def _luminance(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    lightness: Levels = cv2.split(cv2.cvtColor(x, cv2.COLOR_RGB2LAB))[0]
    return lightness


def _intensity(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    value: Levels = cv2.split(cv2.cvtColor(x, cv2.COLOR_RGB2HSV))[2]
    return value


def _threshold(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    white: Levels = (x.min(axis=2) > numbers[0]) * 255
    return white


def _lineart(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    """White lines on black where a picture is darker than what is around."""
    import numpy as np

    sigma, floor = numbers
    light = x.astype(np.float32)
    darker = (cv2.GaussianBlur(light, (0, 0), sigma) - light).min(axis=2).clip(0, 255)
    lines = darker[darker > floor]
    strength = max(16.0, float(np.median(lines)) if lines.size else 0.0)
    result: NDArray[np.float32] = darker / strength * LINE_TONE
    return result


def _scribble(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    """Thick lines by a difference of Gaussians (XDoG)."""
    import numpy as np

    light = x.astype(np.float32)
    near, far = (cv2.GaussianBlur(light, (0, 0), sigma) for sigma in (0.5, 5.0))
    dark = 255 - (255 - (far - near).min(axis=2)).clip(0, 255).astype(np.uint8)
    white: Levels = (2 * dark.astype(np.int32) > numbers[0]) * 255
    return white


def _shuffle(cv2: ModuleType, x: "Levels", numbers: tuple[float, ...]) -> "NDArray[np.generic]":
    """A picture's colours and textures in other places, by a smooth random flow."""
    import numpy as np

    height, width = x.shape[:2]
    random, cell = np.random.default_rng(int(numbers[0])), SHUFFLE_CELL
    flow = []
    for side in (width, height):
        coarse = random.uniform(size=(height // cell + 2, width // cell + 2))
        size = width + 2 * cell, height + 2 * cell
        smooth = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        smooth = smooth[cell : cell + height, cell : cell + width]
        smooth = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-9)
        flow.append((smooth * (side - 1)).astype(np.float32))
    result: Levels = cv2.remap(x, flow[0], flow[1], cv2.INTER_LINEAR)
    return result


_MAPS: "Mapping[Preprocessor, Make]" = {
    Preprocessor.NONE: lambda cv2, x, numbers: x,
    Preprocessor.CANNY: _canny,
    Preprocessor.BLUR: _blur,
    Preprocessor.TILE: _tile,
    Preprocessor.INVERT: lambda cv2, x, numbers: 255 - x,
    Preprocessor.GRAY: _gray,
    Preprocessor.LUMINANCE: _luminance,
    Preprocessor.INTENSITY: _intensity,
    Preprocessor.THRESHOLD: _threshold,
    Preprocessor.LINEART: _lineart,
    Preprocessor.SCRIBBLE: _scribble,
    Preprocessor.SHUFFLE: _shuffle,
}
