"""Options for control by pictures: ControlNets and IP-Adapters."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.adapters import find_or_fail
from txt2img.cli.options.types import field_option, given_fields
from txt2img.request.resolve import AdapterPaths


@dataclass(frozen=True)
class ControlOptions:
    """Options for pictures that guide what is drawn."""

    section: ClassVar = "Control by pictures"

    control: Annotated[
        list[str] | None,
        field_option(
            "controls",
            metavar="MODEL:IMAGE[:W[:A..B]]",
            autocompletion=completion.known_models,
            help="Follow a picture of edges, depths, poses, … by a ControlNet or T2I-Adapter, with "
            "weight W (1), from fraction A to B of the steps (0..1). A Union model takes "
            "MODEL@TYPE, as @depth. Repeatable.",
        ),
    ] = None
    preprocess: Annotated[
        list[str] | None,
        field_option(
            "preprocess",
            metavar="NAME[:N,…]|NAME:MODEL",
            autocompletion=completion.preprocessors,
            help="Make the map from the control's picture: canny, lineart, scribble, depth:FOLDER "
            "…, as txt2img preprocess shows it. One for all of --control, or one for each.",
        ),
    ] = None
    control_mode: Annotated[
        str | None,
        field_option(
            "control_mode",
            metavar="NAME",
            help="What counts for more: balanced, prompt or control.",
        ),
    ] = None
    ip_adapter: Annotated[
        list[str] | None,
        field_option(
            "ip_adapters",
            metavar="MODEL:IMAGE[:W[:A..B]]",
            autocompletion=completion.known_models,
            help="Draw like a picture, its style, things or face, by an IP-Adapter, likewise; "
            "several pictures with commas between them. Repeatable.",
        ),
    ] = None
    ip_mask: Annotated[
        list[str] | None,
        field_option(
            "ip_masks",
            metavar="FILE",
            help="Where an IP-Adapter counts: white. One for each, in their order. Repeatable.",
        ),
    ] = None
    ip_encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--ip-encoder",
            metavar="NAME|PATH",
            autocompletion=completion.known_models,
            help="What IP-Adapters see pictures by, a CLIP image encoder (default: the one beside "
            "the adapter, or in the folders of models). Repeatable.",
        ),
    ] = None

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request."""
        listed = {
            "controls": self.control,
            "preprocess": self.preprocess,
            "ip_adapters": self.ip_adapter,
            "ip_masks": self.ip_mask,
        }
        return given_fields(self) | {name: texts for name, texts in listed.items() if texts}

    def with_encoders(self, library: AdapterPaths) -> AdapterPaths:
        """The library with the image encoders of --ip-encoder. ModelNotFound, BadRequest."""
        paths = (find_or_fail("--ip-encoder", text) for text in self.ip_encoder or ())
        return replace(library, ip_encoders=tuple(paths))
