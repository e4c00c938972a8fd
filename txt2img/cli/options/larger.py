"""Options for larger pictures: an upscaler after the last step."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from txt2img.cli.options import completion
from txt2img.cli.options.types import field_option, given_fields
from txt2img.request.upscalers import OF_PIXELS, UpscalerRef, parse_upscaler, split_scale

NONE = "none"  # undoes what a picture or config.toml says


@dataclass(frozen=True)
class LargerOptions:
    """Options for pictures larger than a model draws; None leaves one to the record."""

    section: ClassVar = "Larger pictures"

    upscale: Annotated[
        str | None,
        field_option(
            "upscale",
            metavar="MODEL[:X]",
            autocompletion=completion.upscalers,
            help=f"Upscale the finished picture X times, by {', '.join(OF_PIXELS)} or a model's "
            ".safetensors file; none does not. txt2img upscale does it to files.",
        ),
    ] = None

    upscale_by: Annotated[
        float | None,
        field_option(
            "upscale_by",
            metavar="X",
            help="How many times larger (default: as the model makes it).",
        ),
    ] = None

    def files(self) -> dict[str, Path]:
        """The upscalers' files by the names that requests have. ModelNotFound, UnknownLayout."""
        found = {}
        for option, text in (("--upscale", self.upscale),):
            if text not in (None, NONE):
                ref, path = find(option, text)
                if path is not None:
                    found[ref.name] = path
        return found

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request. ModelNotFound, UnknownLayout."""
        values = given_fields(self)
        if self.upscale == NONE:
            values = {"upscale": None, "upscale_by": None}
        elif self.upscale is not None:
            values["upscale"] = asdict(find("--upscale", self.upscale)[0])
            if (scale := split_scale(self.upscale)[1]) is not None:
                values["upscale_by"] = scale
        return values


def find(option: str, text: str) -> tuple[UpscalerRef, Path | None]:
    """The upscaler of NAME|PATH[:X], and its file if it is a model. ModelNotFound, BadRequest."""
    name = split_scale(text)[0]
    ref = parse_upscaler(name)
    if ref.interpolation is not None:
        return ref, None
    from txt2img.weights.registry.find import find_upscaler

    path = find_upscaler(option, name)
    return parse_upscaler(path.name), path
