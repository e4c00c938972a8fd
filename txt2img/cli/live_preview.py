"""Previews during a run: on the terminal, in a file, as step files and animations."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from txt2img.cli.options.preview import OWN, PreviewOptions
from txt2img.cli.terminal.console import Bar, log
from txt2img.cli.terminal.screen import Screen
from txt2img.errors import BadOutput
from txt2img.images import animation
from txt2img.images.output import Output
from txt2img.images.record import Origin
from txt2img.images.resume import Item
from txt2img.request.hires import all_steps

if TYPE_CHECKING:
    from txt2img.pipeline.batch import Decoded, Event, Step
    from txt2img.pipeline.preview import Previewer
    from txt2img.weights.model import Model

SIDE_MAX = 512  # pixels, of a preview file


def viewer_of(
    model: "Model", options: PreviewOptions, output: Output, bar: Bar, quiet: bool, several: bool
) -> "Viewer":
    """The viewer of a run, with the VAE of --preview-vae. Txt2imgError."""
    from txt2img.pipeline.preview import Previewer
    from txt2img.weights.load import load_vae
    from txt2img.weights.model import origin

    vae = None if options.preview_vae is None else model.vae
    if options.preview_vae not in (None, OWN):
        vae = load_vae(str(options.preview_vae), model)
    screen = Screen(bar, options.preview if options.preview and not quiet else "off")
    return Viewer(
        options, Previewer(model, vae), origin(model), output, screen, bar, several, quiet
    )


@dataclass
class Viewer:
    """Shows and saves previews of a run. Its failures never cost a picture."""

    options: PreviewOptions
    previewer: "Previewer"
    origin: Origin
    output: Output
    screen: Screen
    bar: Bar
    several: bool
    quiet: bool = False
    frames: dict[int, list[tuple[int, Image.Image]]] = field(default_factory=dict)  # by item
    failure: BadOutput | None = None  # of a step file or animation, raised after its picture
    preview_failed: bool = False  # the preview file cannot be written

    def on_event(self, event: "Event") -> None:
        """Show a step or a decoded picture."""
        from txt2img.pipeline.batch import Decoded, Step

        if isinstance(event, Decoded):
            self.on_decoded(event)
        elif isinstance(event, Step):
            self.on_step(event)

    def raise_failure(self) -> None:
        """Raise BadOutput if a step file or an animation could not be written."""
        if self.failure:
            raise self.failure

    def on_step(self, step: "Step") -> None:
        """Preview a step, if previews are asked for and this one is due."""
        if step.step == 1:  # a retry starts anew
            self.frames |= {item.index: [] for item in step.items}
        every = self.options.preview_every or 1
        is_shown = self.screen.ready
        is_used = is_shown or self.options.preview_file or self.options.keeps_steps
        if step.x0 is None or step.step % every or not is_used:
            return
        previews = self.previewer.images(step.x0, step.items[0].request.tile)
        if self.options.keeps_steps:
            for item, preview in zip(step.items, previews, strict=True):
                self.frames.setdefault(item.index, []).append((step.step, preview))
        request = step.items[0].request
        size = request.width or 0, request.height or 0
        grid = animation.grid([resized(preview, size) for preview in previews])
        if is_shown:
            self.screen.show(grid)
        self.write_preview(grid, animation.record(request, self.origin, step.step, step.steps))

    def on_decoded(self, event: "Decoded") -> None:
        """Show a finished picture, write its step files and its animation."""
        if self.screen.on:
            self.screen.show(event.image)
            self.screen.leave()
        request = event.item.request
        steps = all_steps(request)
        record = animation.record(request, self.origin, steps, steps)
        self.write_preview(event.image, record)
        frames = self.frames.pop(event.item.index, [])
        try:
            for path, data in self.files(event.item, event.image, frames):
                written = animation.write(data, path, self.output.overwrite)
                if not self.quiet:
                    with self.bar.paused():
                        log(f"Saved {written}")
        except BadOutput as error:
            self.failure = error

    def files(
        self, item: Item, picture: Image.Image, frames: list[tuple[int, Image.Image]]
    ) -> Iterator[tuple[Path, bytes]]:
        """The paths and contents of a picture's step files and its animation."""
        steps = all_steps(item.request)
        path = self.output.free_path(item.name, item.number)
        full = [(step, resized(frame, picture.size)) for step, frame in frames]
        for step, frame in full if self.options.save_steps else ():
            name = animation.step_name(path.name, step, steps)
            record = animation.record(item.request, self.origin, step, steps)
            yield path.with_name(name), animation.still(frame, record)
        if self.options.kind:
            record = animation.record(item.request, self.origin, None, steps)
            images = [*(frame for _, frame in full), picture]
            yield self.animation_path(path), animation.animation(images, self.options.kind, record)

    def animation_path(self, picture: Path) -> Path:
        """The path of a picture's animation; one of several is named after its picture."""
        file = self.options.animation_file
        if file is not None and not self.several:
            return file
        name = animation.animated_name(picture.name, self.options.kind)
        return (picture if file is None else file).with_name(name)

    def write_preview(self, image: Image.Image, record: str) -> None:
        """Write the preview file, if one is named and no earlier write has failed."""
        path = self.options.preview_file
        if path is None or self.preview_failed:
            return
        small = image.copy()
        small.thumbnail((SIDE_MAX, SIDE_MAX))
        try:
            animation.write(animation.still(small, record), path, overwrite=True)
        except BadOutput as error:
            self.preview_failed = True
            with self.bar.paused():
                log(f"No more previews: {error}")


def resized(preview: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A preview in its picture's size."""
    if preview.size == size:
        return preview
    return preview.resize(size, Image.Resampling.BICUBIC)
