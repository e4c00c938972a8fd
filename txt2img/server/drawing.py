"""Draws a client's job with the pipeline, in the server's one drawing thread."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.errors import BadFile
from txt2img.images import image_file
from txt2img.images.formats import Format
from txt2img.images.input_image import open_image, resolve_images
from txt2img.images.output import Output
from txt2img.images.record import ImageInfo, Origin, pixels_sha256
from txt2img.images.resume import items
from txt2img.images.upscaled import upscaled_texts
from txt2img.request import Request
from txt2img.request.input_image import ImagePaths
from txt2img.request.resolve import AdapterPaths
from txt2img.server.catalog import Catalog
from txt2img.server.jobs import Job, Picture

if TYPE_CHECKING:
    from PIL import Image

    from txt2img.pipeline.batch import Event, Step
    from txt2img.pipeline.preview import Previewer
    from txt2img.weights.model import Model

Load = Callable[[str, AdapterPaths], "Model"]  # a model's name or path, and the files it may use


class MemoryOutput(Output):
    """Pictures that become no files."""

    def __init__(self, format: Format) -> None:
        super().__init__(Path(), "-", exact=True, format=format)
        self.last = b""

    def write_as(self, data: bytes, name: str, number: int = 1) -> Path:
        """Keep a picture. The path returned is "-"."""
        self.last = data
        return Path("-")


def draw(load: Load, job: Job, catalog: Catalog) -> None:
    """Draw a job's pictures, until it is told to stop. Txt2imgError."""
    from txt2img.pipeline.batch import BatchSettings, filled_requests, on_gpu, run
    from txt2img.pipeline.batch_size import auto_batch_size
    from txt2img.pipeline.preview import Previewer
    from txt2img.weights.model import origin

    if job.stop.is_set():
        return
    images = ImagePaths(embedded=dict(job.contents))
    library = replace(catalog.library, images=images)
    model = load(catalog.models[catalog.model(job.model)], library)
    if job.enlarges:
        enlarge(job, model, library)
        return
    wanted = [*requests(job, model, library)]
    target, made_by = MemoryOutput(job.format), origin(model)
    size = auto_batch_size(model, wanted) if on_gpu(model) else 1
    todo = items(filled_requests(wanted, model, form=job.format), target, made_by)
    previewer, last = Previewer(model), None
    with closing(run(todo, model, BatchSettings(target, size))) as events:
        for event in events:
            last = take(event, job, target, previewer) or last
            if job.stop.is_set():
                break
    if job.stop.is_set() and last is not None and len(job.pictures) < last.first:
        job.unfinished = picture_now(model, last)


def requests(job: Job, model: "Model", library: AdapterPaths) -> Iterator[Request]:
    """A job's requests, one a picture, with its LoRAs and pictures found. Txt2imgError.

    Pictures that were sent to be edited are what the model looks at, if it was trained to.
    """
    one = job.request
    if one.references and not model.family.takes_references and one.image is None:
        one = one.changed(image=one.references[0], references=one.references[1:])
    for i in range(one.count):
        resolved = library.resolve(one.nth(i))
        if resolved.controls or resolved.ip_adapters:
            from txt2img.weights.control_file import find_controls

            resolved = find_controls(resolved, library)
        yield resolve_images(resolved, library.images) if resolved.has_input else resolved


def enlarge(job: Job, model: "Model", library: AdapterPaths) -> None:
    """Upscale the picture of a job, which keeps its texts. Txt2imgError."""
    from txt2img.pipeline.upscale import upscale_image
    from txt2img.weights.apply_adapters import resolve_adapters

    request = resolve_adapters(model, library.resolve(job.request))
    [content] = job.contents.values()
    small, ref, scale = open_image(BytesIO(content), "the picture"), request.upscale, 2.0
    assert ref is not None
    scale = request.upscale_by or scale
    how = ref.interpolation or model.adapters.upscalers[ref.name]
    size = round(small.size[0] * scale), round(small.size[1] * scale)
    for step in upscale_image(small.pixels, how, size):
        job.step, job.steps = step.done, step.total
        if job.stop.is_set():
            return
    assert step.image is not None
    try:
        recorded = image_file.read_stream(BytesIO(content), "the picture")
    except BadFile:  # a format that programs write no texts in
        recorded = ImageInfo(*small.size, {})
    hashes = pixels_sha256(small.pixels), pixels_sha256(step.image)
    texts = upscaled_texts(recorded, ref, scale, *hashes)
    data = image_file.encode_texts(step.image, texts, job.format)
    job.pictures.append(Picture(data, request, Origin()))


def take(event: "Event", job: Job, target: MemoryOutput, previewer: "Previewer") -> "Step | None":
    """Note on the job what happened; a step is returned."""
    from txt2img.pipeline.batch import Finished, Step

    if isinstance(event, Finished):
        job.pictures.append(Picture(target.last, event.request, event.origin))
        job.step = 0
    elif isinstance(event, Step):
        job.step, job.steps = event.step, event.steps
        if job.preview_wanted or job.wants_partial():
            job.preview, job.preview_wanted = preview_of(event, previewer), False
            if job.wants_partial():
                job.previews.append((event.first - 1, png_of(job.preview)))
    else:
        return None
    job.on_change()
    return event if isinstance(event, Step) else None


def preview_of(event: "Step", previewer: "Previewer") -> "Image.Image":
    """A preview of a step's first picture, at the picture's size."""
    from PIL import Image

    assert event.x0 is not None
    request = event.items[0].request
    [image] = previewer.images(event.x0[:1], request.tile)
    size = request.width or image.width, request.height or image.height
    return image.resize(size, Image.Resampling.BILINEAR)


def picture_now(model: "Model", last: "Step") -> "Image.Image":
    """What the first picture of a step would be if no other step came."""
    from txt2img.pipeline.generate import decode

    assert last.x0 is not None
    [image] = decode(model, last.x0[:1], last.items[0].request)
    return image


def png_of(image: "Image.Image") -> bytes:
    """A picture as a PNG without a record."""
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
