"""The options for seeing pictures come into being: previews, steps, animations."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.adapters import find_or_fail
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.types import positive
from txt2img.errors import BadOutput, BadRequest
from txt2img.images import animation
from txt2img.images.output import already_exists
from txt2img.system.text import shown

KINDS = ("auto", "kitty", "iterm", "sixel", "blocks", "off")
OWN = "own"  # the VAE of previews that is the model's
Preview = Annotated[
    Path | None,
    typer.Option(
        "--preview",
        metavar="FILE.png",
        help="Keep the current step's preview in a file, at the end the picture.",
    ),
]
PreviewEvery = Annotated[
    int | None,
    typer.Option(
        "--preview-every",
        metavar="N",
        parser=positive("--preview-every"),
        help="Preview each N-th step only; in files, terminal and animations alike.",
    ),
]
PreviewVAE = Annotated[
    str | None,
    typer.Option(
        "--preview-vae",
        metavar="PATH|own",
        help="Preview by a TAESD file, sharp and fast, or by the model's own VAE, slow; "
        "if not given, in coarse colours at once.",
    ),
]
Show = Annotated[
    str,
    typer.Option(
        "--show",
        metavar="|".join(KINDS),
        autocompletion=completion.offering(lambda: list(KINDS)),
        help="Show each step and the picture in the terminal; auto finds out how.",
    ),
]
SaveSteps = Annotated[
    bool, typer.Option("--save-steps", help="Save each step beside its picture: x-step-003.png.")
]
Animate = Annotated[
    str | None,
    typer.Option(
        "--animate",
        metavar="FILE|webp|gif|png",
        help="Save the steps as an animation; of several pictures, or for a kind alone, each "
        "picture's is named after it.",
    ),
]


@dataclass(frozen=True)
class PreviewOptions:
    """What the options for previews ask for."""

    preview: Preview = None
    preview_every: PreviewEvery = None
    preview_vae: PreviewVAE = None
    show: Show = "off"
    save_steps: SaveSteps = False
    animate: Animate = None

    def check(self, output: OutputOptions) -> None:
        """Raise BadRequest for options that cannot be, BadOutput for files in their way."""
        if self.show not in KINDS:
            raise BadRequest(f"--show {shown(self.show)}; choose from {', '.join(KINDS)}")
        if self.animate is not None and self.kind not in animation.KINDS:
            kinds = ", ".join(animation.KINDS)
            raise BadRequest(f"--animate {shown(self.animate)}; name a file or a kind: {kinds}")
        if self.preview is not None and self.preview.suffix.lower() != ".png":
            raise BadRequest(f"--preview must be a .png file, got {shown(str(self.preview))}")
        if output.out == "-" and (self.save_steps or (self.animate and self.file is None)):
            raise BadRequest(
                "--save-steps and --animate need a picture's file to be beside; name it with -o"
            )
        for option, path in (("--preview", self.preview), ("--animate", self.file)):
            if path is None:
                continue
            if not path.parent.is_dir():
                raise BadRequest(f"{option}: no folder {shown(str(path.parent))}")
            if output.out is not None and os.path.abspath(output.out) == os.path.abspath(path):
                raise BadRequest(f"{option} and -o are the same file; name another")
            if os.path.lexists(path) and not output.overwrite and not animation.is_step_file(path):
                raise _in_the_way(option, path)

    def found(self) -> "PreviewOptions":
        """The same with the previews' VAE where it is. ModelNotFound, BadRequest."""
        if self.preview_vae in (None, OWN):
            return self
        return replace(self, preview_vae=find_or_fail("--preview-vae", str(self.preview_vae)))

    @property
    def kind(self) -> str:
        """The kind of the animations; empty if none are wanted."""
        return (self.animate or "").rpartition(".")[2].lower()

    @property
    def file(self) -> Path | None:
        """The animation's own file, if one is named."""
        alone = self.animate is None or self.animate.lower() in animation.KINDS
        return None if alone else Path(self.animate or "")

    @property
    def files(self) -> bool:
        """Whether steps are to be kept until their picture is there."""
        return self.save_steps or self.animate is not None


def _in_the_way(option: str, path: Path) -> BadOutput:
    return BadOutput(f"{option}: {already_exists(path)}")
