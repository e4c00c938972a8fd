"""How well a model draws what it was taught: its pictures against the training pictures.

`python -m txt2img.train.evaluate --data artwork.zip` draws taught captions and asks, for each,
which training picture on white is nearest in blurred pixels: is it the right concept and style?
"""

import argparse
import json
import math
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from txt2img import prompts
from txt2img.device import choose
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.pipeline import decode, prepare
from txt2img.request import Request
from txt2img.train.data import Pictures
from txt2img.weights.load import Model, load

SIDE = 64  # pixels: the size at which pictures are compared
BLUR = 1.0  # pixels at that size: forgives what is a little off its place
WHITE = "#ffffff"


@dataclass(frozen=True)
class Caption:
    """A taught caption: "red apple, 3d emoji" is a concept and a style."""

    text: str

    @property
    def concept(self) -> str:
        return self.text.rpartition(", ")[0] or self.text

    @property
    def style(self) -> str:
        return self.text.rpartition(", ")[2] if ", " in self.text else ""


@dataclass(frozen=True)
class Verdict:
    """One drawn picture: what was asked for, and what the nearest training picture shows."""

    caption: str
    seed: int
    nearest: str
    rmse: float  # to the nearest, of pixels in −1…1
    concept: bool  # the nearest shows the right concept, in whatever style
    style: bool  # and in the right style
    concept_in_5: bool  # one of the five nearest shows the right concept


@dataclass(frozen=True)
class Report:
    """A model's scores: shares of the pictures, 0 to 1."""

    model: str
    pictures: int
    gallery: int
    steps: int
    cfg: float
    concept_at_1: float
    concept_and_style_at_1: float
    concept_at_5: float
    rmse: float
    verdicts: tuple[Verdict, ...]


# --- Judging -------------------------------------------------------------------------------------


def blurred(pixels: Tensor, sigma: float = BLUR) -> Tensor:
    """Pixels (B, C, H, W) after a Gaussian blur of `sigma` pixels, edges repeated."""
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).to(pixels)
    batch, channels, height, width = pixels.shape
    x = torch.nn.functional.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    x = x.reshape(batch * channels, 1, height + 2 * reach, width + 2 * reach)
    x = torch.nn.functional.conv2d(x, taps.view(1, 1, -1, 1))
    x = torch.nn.functional.conv2d(x, taps.view(1, 1, 1, -1))
    return x.view(batch, channels, height, width)


def nearest(drawn: Tensor, gallery: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
    """For pictures (B, D): the nearest of (N, D), nearest first, (B, count), and their RMSE."""
    distances = torch.cdist(drawn, gallery, compute_mode="donot_use_mm_for_euclid_dist")
    rmse, places = (distances / math.sqrt(gallery.shape[1])).topk(
        min(count, len(gallery)), largest=False
    )
    return places, rmse


def judge(
    wanted: Sequence[Caption],
    seeds: Sequence[int],
    drawn: Tensor,
    known: Sequence[Caption],
    gallery: Tensor,
) -> list[Verdict]:
    """A verdict a drawn picture (B, 3, H, W), against the known pictures (N, 3, H, W)."""
    smooth = torch.cat([blurred(part) for part in gallery.split(256)])  # in parts: less memory
    places, rmse = nearest(blurred(drawn).flatten(1), smooth.flatten(1))
    verdicts = []
    for i, (caption, seed) in enumerate(zip(wanted, seeds, strict=True)):
        found = [known[place] for place in places[i].tolist()]
        same = [other.concept == caption.concept for other in found]
        verdicts.append(
            Verdict(
                caption=caption.text,
                seed=seed,
                nearest=found[0].text,
                rmse=round(float(rmse[i, 0]), 4),
                concept=same[0],
                style=same[0] and found[0].style == caption.style,
                concept_in_5=any(same),
            )
        )
    return verdicts


def share(hits: Sequence[bool]) -> float:
    """How many are true, 0 to 1."""
    return round(sum(hits) / len(hits), 4)


# --- Pictures ------------------------------------------------------------------------------------


def taught(data: Pictures) -> tuple[list[Caption], Tensor]:
    """All pictures on white: each one's first caption, and pixels (N, 3, SIDE, SIDE)."""
    rows = [n for n, row in enumerate(data.rows) if row.background.lower() == WHITE]
    if not rows:
        raise BadFile(f"no picture in {data.source.name} has a white background")
    captions = [Caption(data.rows[n].captions[0]) for n in rows]
    return captions, torch.stack([data.pixels(n, SIDE) for n in rows])


def to_pixels(image: Image.Image) -> Tensor:
    """A picture as (3, SIDE, SIDE) in −1…1."""
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return values.view(SIDE, SIDE, 3).permute(2, 0, 1).float() / 127.5 - 1.0


def draw(model: Model, requests: Sequence[Request], batch_size: int) -> Iterator[Image.Image]:
    """The pictures of requests of one shape, in their order."""
    for start in range(0, len(requests), batch_size):
        batch = [r.filled(model.family.defaults) for r in requests[start : start + batch_size]]
        last = deque(prepare(model, batch).states(), maxlen=1).pop()
        yield from decode(model, last.x)


def sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int) -> Image.Image:
    """The pictures in rows of `columns` on white, each with its label below."""
    width, height = (max(getattr(i, side) for i in images) for side in ("width", "height"))
    gap, size = max(4, width // 16), max(10, width // 12)
    font = ImageFont.load_default(size)
    texts = ["\n".join(wrapped(label, width, font)) for label in labels]
    lines = max(text.count("\n") + 1 for text in texts)
    cell = (width + gap, height + gap // 2 + round(lines * size * 1.35) + gap)
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), WHITE)
    pen = ImageDraw.Draw(page)
    for n, (image, text) in enumerate(zip(images, texts, strict=True)):
        left, top = gap + n % columns * cell[0], gap + n // columns * cell[1]
        page.paste(image.convert("RGB"), (left, top))
        middle = (left + width // 2, top + height + gap // 2)
        pen.multiline_text(middle, text, "#333333", font, anchor="ma", align="center")
    return page


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines no wider than `width` pixels, as far as its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]


# --- The command ---------------------------------------------------------------------------------


def evaluate(
    model: Model, data: Pictures, captions: int, seeds: Sequence[int], template: Request, batch: int
) -> tuple[Report, list[Image.Image]]:
    """Draw `captions` of the taught captions with each seed, and judge; the drawn pictures too."""
    # 1. What was taught, and a choice of it that is the same for every model.
    known, gallery = taught(data)
    picked = random.Random(0).sample(known, min(captions, len(known)))
    wanted = [(caption, seed) for seed in seeds for caption in picked]

    # 2. Draw.
    fields = template.filled(model.family.defaults).to_json()
    requests = [
        Request.from_json(fields | {"prompt": caption.text, "seed": seed})
        for caption, seed in wanted
    ]
    images = []
    for image in draw(model, requests, batch):
        images.append(image)
        if len(images) % batch == 0 or len(images) == len(wanted):
            print(f"{len(images)}/{len(wanted)} pictures", file=sys.stderr, flush=True)

    # 3. Judge.
    drawn = torch.stack([to_pixels(image) for image in images])
    verdicts = judge([c for c, _ in wanted], [s for _, s in wanted], drawn, known, gallery)
    report = Report(
        model=model.name,
        pictures=len(verdicts),
        gallery=len(known),
        steps=int(fields["steps"] or 0),
        cfg=float(fields["cfg"] or 0),
        concept_at_1=share([v.concept for v in verdicts]),
        concept_and_style_at_1=share([v.style for v in verdicts]),
        concept_at_5=share([v.concept_in_5 for v in verdicts]),
        rmse=round(sum(v.rmse for v in verdicts) / len(verdicts), 4),
        verdicts=tuple(verdicts),
    )
    return report, images


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; BadRequest for values that cannot be used."""
    parser = argparse.ArgumentParser("python -m txt2img.train.evaluate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", default="default", help="name or path of the model (default)")
    add("--data", type=Path, help="what it was trained on: folder or archive")
    add("--prompts", type=Path, help="only draw these prompts, one a line, on the --sheet")
    add("--captions", type=int, default=100, help="how many captions to draw (100)")
    add("--seeds", default="0", help="seeds to draw each with, by commas (0)")
    add("--steps", type=int, help="sampling steps (the model's own)")
    add("--cfg", type=float, help="guidance scale (the model's own)")
    add("--batch-size", type=int, default=8, help="pictures drawn at once (8)")
    add("--device", help="cpu, cuda, … (the best there is)")
    add("--out", type=Path, help="write the report here too, as JSON")
    add("--sheet", type=Path, help="write a labelled sheet of the pictures here, as PNG")
    add("--columns", type=int, default=10, help="pictures in a row of the sheet (10)")
    options = parser.parse_args(arguments)
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise BadRequest(f"--seeds is '{options.seeds}': give whole numbers, 0,1,2") from error
    if (options.prompts is None) == (options.data is None):
        raise BadRequest("give --data to judge by, or --prompts to draw on a --sheet")
    if options.prompts and not options.sheet:
        raise BadRequest("--prompts are drawn on a --sheet: name its file")
    for name in ("captions", "batch_size", "columns"):
        if getattr(options, name) < 1:
            raise BadRequest(f"--{name.replace('_', '-')} must be 1 or more")
    return options


def label(verdict: Verdict) -> str:
    """What was asked for, and, where another was drawn, what it looks like."""
    return verdict.caption if verdict.concept else f"{verdict.caption} (like {verdict.nearest})"


def show(options: argparse.Namespace, model: Model, template: Request) -> None:
    """Draw the prompts of a file on a labelled sheet."""
    requests = prompts.read(str(options.prompts), sys.stdin.buffer, template)
    images = list(draw(model, requests, options.batch_size))
    sheet(images, [request.prompt for request in requests], options.columns).save(options.sheet)
    print(options.sheet)


def run(options: argparse.Namespace) -> None:
    """Evaluate, or draw prompts, as the command line says."""
    model = load(options.model, choose(options.device))
    template = Request("", steps=options.steps, cfg=options.cfg, seed=options.seeds[0])
    if options.prompts:
        show(options, model, template)
        return
    data = Pictures(options.data)
    report, images = evaluate(
        model, data, options.captions, options.seeds, template, options.batch_size
    )
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if options.sheet:
        labels = [label(verdict) for verdict in report.verdicts]
        sheet(images, labels, options.columns).save(options.sheet)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the process's exit code."""
    try:
        run(parse(arguments))
    except Txt2imgError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"Error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
