"""Preprocessors of control images, as a request names them: canny:100,200 or depth:MODEL."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from txt2img.errors import BadRequest
from txt2img.request.adapters import object_from_json
from txt2img.request.sampler_names import Name, NameRow
from txt2img.system.text import shown

MODEL_MAX = 4096  # characters of a path


@dataclass(frozen=True)
class Number:
    """A number that a preprocessor takes."""

    name: str
    default: float
    allowed: tuple[float, float]
    whole: bool = False


@dataclass(frozen=True)
class PreprocessorRow(NameRow):
    """A preprocessor: its label is A1111's module, its aliases those of other programs."""

    numbers: tuple[Number, ...] = ()
    model: str = ""  # what of transformers' models it runs, if any

    def __post_init__(self) -> None:
        """Take the label as one more name."""
        object.__setattr__(self, "aliases", (*self.aliases, *filter(None, [self.label])))


class Preprocessor(Name):
    """Maps that are made of a picture, for a ControlNet to follow."""

    numbers: tuple[Number, ...]
    model: str

    def __init__(self, row: PreprocessorRow) -> None:
        self.numbers, self.model = row.numbers, row.model

    @classmethod
    def _advice(cls, name: str) -> str:
        """Say what is missing where another program's preprocessor has weights of its own."""
        rows = ((row, key) for key, row in _OTHERS.items() if key in name)
        row, _ = next(rows, ("", ""))
        return row and f"{shown(name)} needs weights of its own, which are not read here; {row}"

    NONE = PreprocessorRow("none", "none", is_default=True)
    CANNY = PreprocessorRow(
        *("canny", "canny", ("CannyEdgePreprocessor", "CannyDetector", "canny_image_processor")),
        numbers=(Number("low", 100, (0, 1000)), Number("high", 200, (0, 1000))),
    )
    BLUR = PreprocessorRow(
        *("blur", "blur_gaussian", ("tile_gaussian",)), numbers=(Number("sigma", 9, (0.01, 256)),)
    )
    TILE = PreprocessorRow(
        *("tile", "tile_resample", ("TilePreprocessor", "tile_image_processor")),
        numbers=(Number("rate", 1, (1, 64)),),
    )
    INVERT = PreprocessorRow("invert", "invert (from white bg & black line)", ("ImageInvert",))
    GRAY = PreprocessorRow("gray", "gray", ("grey", "grayscale", "greyscale"))
    LUMINANCE = PreprocessorRow(
        "luminance", "recolor_luminance", ("ImageLuminanceDetector",)
    )  # for ControlNets that colour photographs
    INTENSITY = PreprocessorRow("intensity", "recolor_intensity", ("ImageIntensityDetector",))
    THRESHOLD = PreprocessorRow(
        *("threshold", "threshold", ("binary", "BinaryPreprocessor")),
        numbers=(Number("level", 127, (0, 255)),),
    )
    LINEART = PreprocessorRow(
        "lineart",
        "lineart_standard (from white bg & black line)",
        ("lineart_standard", "LineartStandardPreprocessor", "LineartStandardDetector"),
        numbers=(Number("sigma", 6, (0.1, 64)), Number("floor", 8, (0, 255))),
    )
    SCRIBBLE = PreprocessorRow(
        *("scribble", "scribble_xdog", ("xdog", "Scribble_XDoG_Preprocessor")),
        numbers=(Number("level", 32, (1, 64)),),
    )
    SHUFFLE = PreprocessorRow(
        *("shuffle", "shuffle", ("ShufflePreprocessor", "ContentShuffleDetector")),
        numbers=(Number("seed", 0, (0, 2**32 - 1), whole=True),),
    )
    DEPTH = PreprocessorRow(
        "depth", "depth", ("depth_anything", "depth_midas", "depth_zoe"), model="depth estimation"
    )
    SEGMENT = PreprocessorRow(
        "segment", "segment", ("segmentation", "seg"), model="semantic segmentation"
    )
    POSE = PreprocessorRow(
        *("pose", "openpose", ("OpenposePreprocessor", "OpenposeDetector", "dw_openpose")),
        model="pose estimation",
    )


# Preprocessors of other programs that are none of these, by a part of their names, and what to do.
_OTHERS: Mapping[str, str] = {
    "densepose": "give a map that another program drew, without --preprocess",
    "pose": "pose:PATH[,DETECTOR] draws bodies by models of transformers",
    "mlsd": "canny finds edges too",
    "hed": "scribble or lineart find lines without weights",
    "pidi": "scribble or lineart find lines without weights",
    "softedge": "scribble or lineart find lines without weights",
    "lineart": "lineart finds lines without weights",
    "normal": "give a map that another program made, without --preprocess",
    "depth": "depth:PATH takes a model of transformers",
    "seg": "segment:PATH takes a model of transformers",
}


@dataclass(frozen=True)
class Preprocess:
    """A preprocessor with its numbers, or with its model: a folder's path, in records its name."""

    name: Preprocessor
    numbers: tuple[float, ...] = ()  # all that it has
    model: str = ""
    hash: str = ""  # ten hex digits, of the models once they are found
    detector: str = ""  # a model that finds people for one of poses; empty: a picture is one person

    def __post_init__(self) -> None:
        """Check every field, and fill in the numbers left out. BadRequest."""
        if not isinstance(self.name, str):
            raise BadRequest(f"a preprocessor has a name, got {shown(self.name)}")
        object.__setattr__(self, "name", kind := Preprocessor.parse(self.name))
        given = self.numbers
        if not isinstance(given, list | tuple) or len(given) > len(kind.numbers):
            takes = ", ".join(row.name.upper() for row in kind.numbers) or "no numbers"
            raise BadRequest(f"{kind} takes {takes}; got {shown(given)}")
        rest = (row.default for row in kind.numbers[len(given) :])
        object.__setattr__(self, "numbers", (*given, *rest))
        for row, value in zip(kind.numbers, self.numbers, strict=True):
            _check_number(kind, row, value)
        if bool(self.model) != bool(kind.model):
            needed = (
                f"needs a model for {kind.model}: {kind}:FOLDER" if kind.model else "has no model"
            )
            raise BadRequest(f"the preprocessor {kind} {needed}")
        for path in (self.model, self.detector):
            if not isinstance(path, str) or len(path) > MODEL_MAX or "\0" in path:
                raise BadRequest(f"{kind} needs a model's folder, got {shown(path)}")
        if self.detector and kind is not Preprocessor.POSE:
            raise BadRequest(f"{kind} takes no detector; got {shown(self.detector)}")

    @property
    def models(self) -> tuple[str, ...]:
        """The folders, or the names, of its models."""
        return tuple(filter(None, (self.model, self.detector)))

    def __str__(self) -> str:
        if self.model:
            return f"{self.name}:{','.join(self.models)}"
        defaults = tuple(row.default for row in self.name.numbers)
        numbers = "" if self.numbers == defaults else ",".join(f"{n:g}" for n in self.numbers)
        return f"{self.name}:{numbers}" if numbers else str(self.name)


def _check_number(kind: Preprocessor, row: Number, value: object) -> None:
    low, high = row.allowed
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high or (row.whole and number != int(number)):
        what = "a whole number" if row.whole else "a number"
        raise BadRequest(f"{kind}: {row.name} is {what}, {low:g} … {high:g}; got {shown(value)}")


def parse_preprocess(text: str) -> Preprocess:
    """Parse NAME[:NUMBER[,NUMBER]], NAME:MODEL or pose:MODEL[,DETECTOR]. BadRequest."""
    name, colon, rest = text.partition(":")
    kind = Preprocessor.parse(name.strip())
    if kind.model:
        model, _, detector = rest.partition("," if kind is Preprocessor.POSE else "\0")
        return Preprocess(kind, model=model.strip(), detector=detector.strip())
    try:
        return Preprocess(kind, tuple(map(float, rest.split(","))) if colon else ())
    except ValueError:
        example = ",".join(f"{row.default:g}" for row in kind.numbers)
        like = f"is like {kind}:{example}" if example else "takes no numbers"
        raise BadRequest(f"the preprocessor {kind} {like}; got {shown(text)}") from None


def preprocesses_from_json(value: object) -> tuple[Preprocess, ...]:
    """Preprocessors from a list of JSON objects or of the option's texts, or from one. BadRequest.

    Those of "none" are left out where there is no other.
    """
    listed = value if isinstance(value, list | tuple) else [value]
    found = tuple(map(preprocess_from_json, listed))
    return found if any(one.name is not Preprocessor.NONE for one in found) else ()


def preprocess_from_json(value: object) -> Preprocess:
    """A preprocessor from its text or a JSON object. BadRequest."""
    if isinstance(value, Preprocess):
        return value
    if isinstance(value, str):
        return parse_preprocess(value)
    return object_from_json(Preprocess, "preprocess", value)
