"""Options for larger pictures: a second pass (hires. fix), and an upscaler after the last step."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.types import field_option, given_fields, integer, number
from txt2img.errors import BadRequest
from txt2img.request.fields import FIELDS
from txt2img.request.hires import STRENGTH, UPSCALER
from txt2img.request.upscalers import (
    OF_PIXELS,
    UpscalerRef,
    parse_upscaler,
    split_scale,
)
from txt2img.system.text import shown

NONE = "none"  # undoes what a picture or config.toml says
_HIRES = re.compile(r"([^:x×]+x?|\d+[x×*]\d+)(?::(.+))?", re.DOTALL)
_SIZE = re.compile(r"(\d{1,5})[x×*](\d{1,5})", re.ASCII)


def _hidden(name: str) -> Any:
    """The option of a field that another option gives too, for command lines of records."""
    return typer.Option(*FIELDS[name].flags, hidden=True, parser=integer)


@dataclass(frozen=True)
class LargerOptions:
    """Options for pictures larger than a model draws; None leaves one to the record."""

    section: ClassVar = "Hires fix and upscaling"

    hires: Annotated[
        str | None,
        typer.Option(
            *FIELDS["hires"].flags,
            metavar="X|WxH[:UPSCALER]",
            autocompletion=completion.hires,
            help="Hires fix: make the picture X times larger, or W times H pixels, and draw it "
            f"once more. UPSCALER: {', '.join(OF_PIXELS)} (default: {UPSCALER}), latent or "
            "another latent one of A1111, or a model's .safetensors file.",
        ),
    ] = None
    hires_upscaler: Annotated[
        str | None,
        typer.Option(*FIELDS["hires_upscaler"].flags, hidden=True),
    ] = None
    hires_size: Annotated[
        str | None,
        typer.Option("--hires-size", metavar="WxH", hidden=True),
    ] = None
    hires_width: Annotated[int | None, _hidden("hires_width")] = None
    hires_height: Annotated[int | None, _hidden("hires_height")] = None
    hires_strength: Annotated[
        float | None,
        field_option(
            "hires_strength",
            metavar="X",
            help=f"How much of it is drawn anew, 0 to 1 (default: {STRENGTH:g}; 0.2 for models of "
            "256 pixels, whose pictures fall apart above).",
        ),
    ] = None
    hires_steps: Annotated[
        int | None,
        field_option(
            "hires_steps",
            metavar="N",
            help="Steps of the second pass (default: --steps times --hires-strength).",
        ),
    ] = None
    upscale: Annotated[
        str | None,
        field_option(
            "upscale",
            metavar="MODEL[:X]",
            autocompletion=completion.upscalers,
            help=f"Enlarge the finished picture X times, by {', '.join(OF_PIXELS)} or a model's "
            ".safetensors file. txt2img upscale does it to files.",
        ),
    ] = None
    upscale_by: Annotated[
        float | None,
        typer.Option(*FIELDS["upscale_by"].flags, hidden=True, parser=number),
    ] = None

    @property
    def hires_parts(self) -> tuple[str | None, str | None]:
        """The factor and the upscaler of --hires; that also by its own option. BadRequest."""
        if self.hires is None or self.hires == NONE:
            return None, self.hires_upscaler
        match = _HIRES.fullmatch(self.hires)
        if match is None:
            raise BadRequest(f"--hires is like 2 or 1.5:lanczos, got {shown(self.hires)}")
        return match[1], match[2] or self.hires_upscaler

    def files(self) -> dict[str, Path]:
        """The upscalers' files by the names that requests have. ModelNotFound, UnknownLayout."""
        found = {}
        upscale = None if self.upscale is None else split_scale(self.upscale)[0]
        for option, text in (("--upscale", upscale), ("--hires", self.hires_parts[1])):
            if text not in (None, NONE):
                ref, path = find(option, text)
                if path is not None:
                    found[ref.name] = path
        return found

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request. ModelNotFound, UnknownLayout, BadRequest."""
        values = given_fields(self)
        for name in ("hires", "hires_upscaler", "upscale"):
            values.pop(name, None)
        if self.upscale == NONE:
            values |= {"upscale": None, "upscale_by": None}
        elif self.upscale is not None:
            name, scale = split_scale(self.upscale)
            values["upscale"] = asdict(find("--upscale", name)[0])
            values |= {} if scale is None else {"upscale_by": scale}
        return values | self._hires_fields()

    def _hires_fields(self) -> dict[str, object]:
        """The fields of the second pass that no option has under their own names."""
        if self.hires == NONE:
            return dict.fromkeys(name for name in FIELDS if name.startswith("hires"))
        values: dict[str, object] = {}
        by, upscaler = self.hires_parts
        size = self.hires_size
        if by is not None and _SIZE.fullmatch(by) and size is None:
            by, size = None, by
        if by is not None:
            values = {
                "hires": as_factor(by.removesuffix("x")),
                "hires_width": None,
                "hires_height": None,
            }
        if upscaler is not None:
            values["hires_upscaler"] = asdict(find("--hires", upscaler)[0])
        if size is not None:
            if by is not None or not (match := _SIZE.fullmatch(size)):
                raise BadRequest(
                    f"--hires-size is like 1024x768, in place of --hires; got {shown(size)}"
                )
            values |= {"hires": None, "hires_width": int(match[1]), "hires_height": int(match[2])}
        return values


def as_factor(text: str) -> float:
    """How many times larger. BadRequest."""
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"--hires is like 2 or 1.5:lanczos, got {shown(text)}") from None


def find(option: str, name: str) -> tuple[UpscalerRef, Path | None]:
    """The upscaler of a name or path, and its file if it is a model. ModelNotFound."""
    ref = parse_upscaler(name)
    if ref.interpolation is not None:
        return ref, None
    from txt2img.weights.registry.find import find_upscaler

    if re.fullmatch(r"[0-9.]+x?", name) and not Path(name).exists():
        raise BadRequest(f"{option} needs an upscaler: {option} {UPSCALER}:{name.rstrip('x')}")
    path = find_upscaler(option, name)
    return parse_upscaler(path.name), path
