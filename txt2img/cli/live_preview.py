"""Shows and keeps how pictures come into being, while a run draws them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from txt2img.cli.options.preview import OWN, PreviewOptions
from txt2img.cli.terminal.console import Bar, log
from txt2img.cli.terminal.screen import Screen
from txt2img.errors import BadOutput
from txt2img.images import animation as frames
from txt2img.images.output import Output
from txt2img.images.record import Origin
from txt2img.images.resume import Item

if TYPE_CHECKING:
    from txt2img.pipeline.batch import Event, Step
    from txt2img.pipeline.preview import Previewer
    from txt2img.pipeline.writer import Decoded
    from txt2img.weights.model import Model

LARGEST = 512  # pixels: a preview file's longer side


def viewer_of(
    model: "Model", viewing: PreviewOptions, output: Output, bar: Bar, quiet: bool, several: bool
) -> "Viewer":
    """The viewer of a run, its preview VAE loaded if one is named. Txt2imgError."""
    from txt2img.pipeline.preview import Previewer
    from txt2img.pipeline.result import origin
    from txt2img.weights.load import load_vae

    vae = None if viewing.preview_vae is None else model.vae
    if viewing.preview_vae not in (None, OWN):
        vae = load_vae(str(viewing.preview_vae), model)
    screen = Screen(bar, "off" if quiet else viewing.protocol)
    return Viewer(viewing, Previewer(model, vae), origin(model), output, screen, bar, several)


@dataclass
class Viewer:
    """What is seen of a run beside its pictures. Nothing of it may cost a picture."""

    viewing: PreviewOptions
    previewer: "Previewer"
    origin: Origin
    output: Output
    screen: Screen
    bar: Bar
    several: bool
    seen: dict[int, list[tuple[int, Image.Image]]] = field(default_factory=dict)  # by item
    failure: BadOutput | None = None  # of a file beside a picture, raised once that is written
    blind: bool = False  # whether the preview's file could not be written

    def on_event(self, event: "Event") -> None:
        """Show a step or a decoded picture."""
        from txt2img.pipeline.batch import Step
        from txt2img.pipeline.writer import Decoded

        if isinstance(event, Decoded):
            self.decoded(event)
        elif isinstance(event, Step):
            self.step(event)

    def raise_failure(self) -> None:
        """Raise BadOutput if a file beside a picture could not be written."""
        if self.failure:
            raise self.failure

    def step(self, step: "Step") -> None:
        """Preview a step, if anybody wants to see it."""
        if step.step == 1:  # once more from the start, where a picture is drawn again
            self.seen |= {item.index: [] for item in step.items}
        every = self.viewing.preview_every or 1
        shown = self.screen.ready
        wanted = shown or self.viewing.file or self.viewing.keeps_steps
        if step.x0 is None or step.step % every or not wanted:
            return
        pictures = self.previewer.images(step.x0)
        if self.viewing.keeps_steps:
            for item, picture in zip(step.items, pictures, strict=True):
                self.seen.setdefault(item.index, []).append((step.step, picture))
        request = step.items[0].request
        size = request.width or 0, request.height or 0
        sheet = frames.grid([scaled(picture, size) for picture in pictures])
        if shown:
            self.screen.show(sheet)
        said = frames.record(request, self.origin, step.step, step.steps)
        self.preview(sheet, said)

    def decoded(self, event: "Decoded") -> None:
        """Show a picture; keep what led to it, under names beside its own."""
        if self.screen.on:
            self.screen.show(event.picture)
            self.screen.leave()
        steps = event.item.request.steps or 0
        said = frames.record(event.item.request, self.origin, steps, steps)
        self.preview(event.picture, said)
        seen = self.seen.pop(event.item.index, [])
        try:
            for path, data in self.files(event.item, event.picture, seen):
                frames.write(data, path, self.output.overwrite)
        except BadOutput as error:
            self.failure = error

    def files(
        self, item: Item, picture: Image.Image, seen: list[tuple[int, Image.Image]]
    ) -> Iterator[tuple[Path, bytes]]:
        """The files that go beside a picture: where, and what is in them."""
        steps = item.request.steps or 0
        beside = self.output.free(item.name, item.number)
        full = [(step, scaled(preview, picture.size)) for step, preview in seen]
        for step, preview in full if self.viewing.save_steps else ():
            name = frames.name_of(beside.name, step, steps)
            said = frames.record(item.request, self.origin, step, steps)
            yield beside.with_name(name), frames.still(preview, said)
        if self.viewing.kind:
            said = frames.record(item.request, self.origin, None, steps)
            shown = [*(preview for _, preview in full), picture]
            yield self.animation(beside), frames.animation(shown, self.viewing.kind, said)

    def animation(self, beside: Path) -> Path:
        """Where the animation of a picture goes: one of several is named after it."""
        file = self.viewing.animation_file
        if file is not None and not self.several:
            return file
        name = frames.animated_name(beside.name, self.viewing.kind)
        return (beside if file is None else file).with_name(name)

    def preview(self, picture: Image.Image, said: str) -> None:
        """Write the preview's file, if there is to be one; one that fails is the last."""
        path = self.viewing.file
        if path is None or self.blind:
            return
        small = picture.copy()
        small.thumbnail((LARGEST, LARGEST))
        try:
            frames.write(frames.still(small, said), path, overwrite=True)
        except BadOutput as error:
            self.blind = True
            with self.bar.paused():
                log(f"No more previews: {error}")


def scaled(preview: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A preview in its picture's size."""
    if preview.size == size:
        return preview
    return preview.resize(size, Image.Resampling.BICUBIC)
