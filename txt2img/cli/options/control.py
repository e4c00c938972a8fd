"""Options for control by pictures: ControlNets."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from txt2img.cli.options import completion
from txt2img.cli.options.types import field_option, given_fields


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
            help="Follow a picture of edges, depths, poses, … by a ControlNet, with weight W (1), "
            "from fraction A to B of the steps (0..1). A Union model takes MODEL@TYPE, as @depth. "
            "Repeatable.",
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

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request."""
        listed = {"controls": self.control, "preprocess": self.preprocess}
        return given_fields(self) | {name: texts for name, texts in listed.items() if texts}
