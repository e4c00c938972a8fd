"""Options for control by pictures: ControlNets and IP-Adapters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.adapters import find_or_fail
from txt2img.cli.options.types import field_option, given_fields
from txt2img.errors import BadRequest
from txt2img.request.resolve import AdapterPaths


@dataclass(frozen=True)
class ControlOptions:
    """Options for pictures that guide what is drawn."""

    section: ClassVar = "ControlNet and IP-Adapter"

    control: Annotated[
        list[str] | None,
        field_option(
            "controls",
            metavar="MODEL:IMAGE[:W[:A..B]]",
            autocompletion=completion.known_models,
            help="Follow a picture of edges, depths or a pose by a ControlNet or T2I-Adapter, "
            "with weight W (1), from fraction A to B of the steps (0..1). MODEL@depth: a type of "
            "a Union model. Repeatable.",
        ),
    ] = None
    preprocess: Annotated[
        list[str] | None,
        field_option(
            "preprocess",
            metavar="NAME[:N,…]|NAME:MODEL",
            autocompletion=completion.preprocessors,
            help="Make that map from an ordinary picture: canny, lineart, scribble, depth:FOLDER "
            "…; txt2img preprocess -h lists them. One for all of --control, or one for each.",
        ),
    ] = None
    control_mode: Annotated[
        str | None,
        field_option(
            "control_mode",
            metavar="NAME",
            help="What counts for more: balanced (default), prompt or control.",
        ),
    ] = None
    # The parts of --control as options of their own, as other programs have them.
    control_image: Annotated[
        list[str] | None, typer.Option("--control-image", "--controlnet-image", hidden=True)
    ] = None
    control_weight: Annotated[
        list[str] | None,
        typer.Option(
            *("--control-weight", "--control-strength", "--control-scale", "--controlnet-weight"),
            "--controlnet-conditioning-scale",
            hidden=True,
        ),
    ] = None
    ip_adapter: Annotated[
        list[str] | None,
        field_option(
            "ip_adapters",
            metavar="MODEL:IMAGE[:W[:A..B]]",
            autocompletion=completion.known_models,
            help="Draw like a picture, its style, things or face, by an IP-Adapter; W, A and B "
            "as for --control. IMAGE may be several, with commas between. Repeatable.",
        ),
    ] = None
    ip_adapter_image: Annotated[
        list[str] | None, typer.Option("--ip-adapter-image", hidden=True)
    ] = None
    ip_adapter_weight: Annotated[
        list[str] | None,
        typer.Option("--ip-adapter-weight", "--ip-adapter-scale", hidden=True),
    ] = None
    ip_mask: Annotated[
        list[str] | None,
        field_option(
            "ip_masks",
            metavar="FILE",
            help="Where an IP-Adapter counts: what is white. One for each, in their order. "
            "Repeatable.",
        ),
    ] = None
    ip_encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--ip-encoder",
            metavar="NAME|PATH",
            autocompletion=completion.known_models,
            help="The CLIP image encoder of IP-Adapters (default: the one beside the adapter, or "
            "in the folders of models). Repeatable.",
        ),
    ] = None

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request. BadRequest."""
        listed = {
            "controls": _joined(
                "--control", self.control, image=self.control_image, weight=self.control_weight
            ),
            "preprocess": self.preprocess,
            "ip_adapters": _joined(
                "--ip-adapter",
                self.ip_adapter,
                image=self.ip_adapter_image,
                weight=self.ip_adapter_weight,
            ),
            "ip_masks": self.ip_mask,
        }
        return given_fields(self) | {name: texts for name, texts in listed.items() if texts}

    def with_encoders(self, library: AdapterPaths) -> AdapterPaths:
        """The library with the image encoders of --ip-encoder. ModelNotFound, BadRequest."""
        paths = (find_or_fail("--ip-encoder", text) for text in self.ip_encoder or ())
        return replace(library, ip_encoders=tuple(paths))


def _joined(
    option: str, uses: Sequence[str] | None, **parts: Sequence[str] | None
) -> list[str] | None:
    """Uses with the parts that came apart: one for all, or one for each. BadRequest."""
    whole = None if uses is None else [*uses]
    for name, given in parts.items():
        if given and not whole:
            raise BadRequest(f"{option}-{name} goes with {option} MODEL, which is missing")
        if given and whole and len(given) not in (1, len(whole)):
            raise BadRequest(
                f"{len(given)} of {option}-{name} for {len(whole)} of {option}; give one for each"
            )
        if given and whole:
            each = [*given] * (len(whole) if len(given) == 1 else 1)
            whole = [f"{use}:{one}" for use, one in zip(whole, each, strict=True)]
    return whole
