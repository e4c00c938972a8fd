"""Options for progress and previews: in the terminal, as files, as animations."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.adapters import find_or_fail
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.types import positive
from txt2img.cli.terminal.screen import PROTOCOLS
from txt2img.errors import BadOutput, BadRequest
from txt2img.images import animation
from txt2img.images.output import already_exists
from txt2img.system.text import shown

OWN = "own"  # --preview-vae own: the model's VAE


@dataclass(frozen=True)
class PreviewOptions:
    """Options for progress and previews while a picture is drawn."""

    section: ClassVar = "Progress and previews"

    preview: Annotated[
        str | None,
        typer.Option(
            "--preview",
            metavar="PROTOCOL",
            autocompletion=completion.completion(lambda: list(PROTOCOLS)),
            help="Show each step and the picture in the terminal: auto (detected), kitty, iterm, "
            "sixel, blocks, or off.",
        ),
    ] = None
    preview_file: Annotated[
        Path | None,
        typer.Option(
            "--preview-file",
            metavar="FILE.png",
            help="Write the current step's preview to a file, and at the end the picture.",
        ),
    ] = None
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            metavar="N",
            hidden=True,
            parser=positive,
            help="Preview every N-th step only, in the terminal, in files and animations.",
        ),
    ] = None
    preview_vae: Annotated[
        str | None,
        typer.Option(
            "--preview-vae",
            metavar="PATH|own",
            help="Decode previews with a TAESD file (sharp and fast), or with the model's own VAE "
            "(slow); by default they are coarse and cost nothing.",
        ),
    ] = None
    save_steps: Annotated[
        bool,
        typer.Option("--save-steps", help="Save each step beside the picture: x-step-003.png."),
    ] = False
    animate: Annotated[
        str | None,
        typer.Option(
            "--animate",
            metavar="FILE|webp|gif|png",
            help="Save the steps as an animation. A format alone, or several pictures, name each "
            "animation after its picture.",
        ),
    ] = None
    no_progress: Annotated[bool, typer.Option("--no-progress", help="Show no progress bar.")] = (
        False
    )
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Print the device, its threads and the precision in use."),
    ] = False

    def check(self, output: OutputOptions) -> None:
        """Raise BadRequest for values that cannot be, BadOutput for existing files in the way."""
        if self.preview not in (None, *PROTOCOLS):
            choices = f"choose from {', '.join(PROTOCOLS)}, or give a file with --preview-file"
            raise BadRequest(f"--preview {shown(self.preview)}; {choices}")
        if self.animate is not None and self.kind not in animation.KINDS:
            kinds = ", ".join(animation.KINDS)
            raise BadRequest(f"--animate {shown(self.animate)}; name a file or a kind: {kinds}")
        file = self.preview_file
        if file is not None and file.suffix.lower() != ".png":
            raise BadRequest(f"--preview-file must be a .png file, got {shown(file)}")
        if output.out == "-" and (
            self.save_steps or (self.animate and self.animation_file is None)
        ):
            raise BadRequest(
                "--save-steps and --animate need a picture's file to be beside; name it with -o"
            )
        for option, path in (("--preview-file", file), ("--animate", self.animation_file)):
            if path is None:
                continue
            if not path.parent.is_dir():
                raise BadRequest(f"{option}: no folder {shown(path.parent)}")
            if output.out is not None and os.path.abspath(output.out) == os.path.abspath(path):
                raise BadRequest(f"{option} and -o are the same file; name another")
            if os.path.lexists(path) and not output.overwrite and not animation.is_step_file(path):
                raise BadOutput(f"{option}: {already_exists(path)}")

    def with_vae_path(self) -> "PreviewOptions":
        """A copy with the path of the previews' VAE resolved. ModelNotFound, BadRequest."""
        if self.preview_vae in (None, OWN):
            return self
        return replace(self, preview_vae=find_or_fail("--preview-vae", str(self.preview_vae)))

    def is_on(self, quiet: bool) -> bool:
        """Whether any preview is shown or saved."""
        is_shown = self.preview not in (None, "off") and not quiet
        return is_shown or self.preview_file is not None or self.keeps_steps

    @property
    def kind(self) -> str:
        """The format of animations; empty if none are wanted."""
        return (self.animate or "").rpartition(".")[2].lower()

    @property
    def animation_file(self) -> Path | None:
        """The animation's own file, if one is named."""
        alone = self.animate is None or self.animate.lower() in animation.KINDS
        return None if alone else Path(self.animate or "")

    @property
    def keeps_steps(self) -> bool:
        """Whether steps are kept until their picture is done."""
        return self.save_steps or self.animate is not None
