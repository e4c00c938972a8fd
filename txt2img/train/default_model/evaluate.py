"""How well a model draws what it was taught: its pictures against the training pictures.

`python -m txt2img.train.default_model.evaluate --data artwork.zip` draws taught captions and asks,
for each, which training picture on white is nearest, in blurred pixels and in the features of
a judge that learns from the training pictures first: is it the right concept and
style? Then it draws scenes that the archive keeps from training, and looks for the right things
in the right places, and for the nearest picture that was taught. Last it measures what a picture
costs.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.pipeline.generate import images_of
from txt2img.request.adapters import Lora
from txt2img.request.prompt_file import read_prompts
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import choose
from txt2img.train.data import HELD_OUT_FILE, WHITE, Pictures, Row, singles_of, to_pixels
from txt2img.train.default_model.build_dataset import tell
from txt2img.train.default_model.classifier import (
    SIDE,
    Caption,
    Judge,
    fresh,
    lessons,
    plain_rows,
)
from txt2img.train.default_model.metrics import (
    Copies,
    Measured,
    Novelty,
    copied,
    cost,
    novelty,
    spread,
)
from txt2img.train.default_model.retrieval import Verdict, second_opinion, share, verdicts_of
from txt2img.train.default_model.scene_score import Scored, score, shares
from txt2img.train.default_model.sheet import sheet
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model
from txt2img.weights.registry.find import find_file

COPIES = 48  # pictures that the VAE copies
PART = 256  # pictures painted at once
LEAST = {"captions": 1, "batch_size": 1, "columns": 1, "scenes": 0, "judge_steps": 0}


@dataclass(frozen=True)
class Report:
    """A model's scores: shares of the pictures, 0 to 1."""

    model: str
    pictures: int
    steps: int
    cfg: float
    concept_at_1: float
    concept_and_style_at_1: float
    concept_at_5: float
    rmse: float
    judged_concept_at_1: float | None  # by the judge's features; None without a judge
    judge_on_taught: float | None  # how often the judge is right about the training pictures
    scenes: dict[str, float]  # of each kind of scene that was not taught, how many are right
    true_scenes: dict[str, float]  # and how many of those as they should be: more cannot be asked
    measured: Measured
    verdicts: tuple[Verdict, ...]
    scored: tuple[Scored, ...]


@torch.no_grad()
def copies(model: Model, data: Pictures) -> Copies:
    """How good the VAE's copies of some taught pictures are, at the model's own size."""
    side, rows = model.family.defaults.width, plain_rows(data)
    device = next(model.vae.parameters()).device
    pixels = torch.stack([data.paint(row, side) for row in rows[:: max(len(rows) // COPIES, 1)]])
    made = [model.vae.decode(model.vae.encode(p[None].to(device))).cpu() for p in pixels]
    return copied(torch.cat(made), pixels)


# --- Pictures ------------------------------------------------------------------------------------


def taught(data: Pictures) -> tuple[list[Caption], Tensor]:
    """All single things on white, views too: each one's first caption, and pixels (N, 3, …)."""
    rows = [data.rows[n] for n in singles_of(data.rows) if data.rows[n].background == (WHITE,)]
    if not plain_rows(data):
        raise BadFile(f"no picture in {data.source.name} has a white background")
    captions = [Caption(row.captions[0]) for row in rows]
    return captions, torch.stack([data.paint(row, SIDE) for row in rows])


def small(image: Image.Image) -> Tensor:
    """A picture as (3, SIDE, SIDE) in −1…1."""
    return to_pixels(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def draw(model: Model, requests: Sequence[Request], batch_size: int) -> Iterator[Image.Image]:
    """The pictures of requests of one shape, in their order."""
    for start in range(0, len(requests), batch_size):
        batch = [filled(model, request) for request in requests[start : start + batch_size]]
        yield from images_of(model, batch)


def filled(model: Model, request: Request) -> Request:
    """The request as it is drawn."""
    return resolve_adapters(model, request).filled(model.family.defaults)


# --- The command ---------------------------------------------------------------------------------


def evaluate(
    model: Model, data: Pictures, options: argparse.Namespace
) -> tuple[Report, list[Image.Image]]:
    """Draw taught captions with each seed, and scenes, and judge; the captions' pictures too."""
    # 1. What was taught, and a choice of it that is the same for every model.
    known, gallery = taught(data)
    asked = list(dict.fromkeys(known))
    picked = random.Random(0).sample(asked, min(options.captions, len(asked)))
    wanted = [(caption.text, seed) for seed in options.seeds for caption in picked]

    # 2. A judge, taught for the occasion.
    judge = taught_judge(data, options) if options.judge_steps else None

    # 3. Draw, and compare.
    images = drawn(model, wanted, options)
    pixels = torch.stack([small(image) for image in images])
    verdicts = verdicts_of(
        [Caption(t) for t, _ in wanted], [s for _, s in wanted], pixels, known, gallery
    )
    sure = None
    if judge is not None:
        verdicts = second_opinion(judge, verdicts, pixels, known, gallery)
        names = judge.names(gallery)
        sure = share([a == b.concept for a, b in zip(names, known, strict=True)])

    # 4. Scenes that were not taught.
    scored, true, new = scenes(model, data, judge, options) if judge else ([], [], None)

    # 5. What does not depend on what is drawn.
    price = cost(options.model, words(options)) if options.cost else None
    measured = Measured(copies(model, data), spread(pixels, len(options.seeds)), new, price)
    return report_of(model, options, verdicts, scored, true, sure, measured), images


def taught_judge(data: Pictures, options: argparse.Namespace) -> Judge:
    """A judge of the data set, on the CPU; its loss is told."""
    judge = fresh(data).to(choose(options.device).torch_device)
    for step, loss in enumerate(lessons(judge, data, options.judge_steps, seed=0), 1):
        if step % 100 == 0 or step == options.judge_steps:
            tell(f"judge {step}/{options.judge_steps} loss {loss:.3f}")
    return judge.cpu()


def report_of(
    model: Model,
    options: argparse.Namespace,
    verdicts: Sequence[Verdict],
    scored: Sequence[Scored],
    true: Sequence[Scored],
    sure: float | None,
    measured: Measured,
) -> Report:
    """All figures of a model."""
    asked = filled(model, template_of(options))
    judged = [v.judged for v in verdicts if v.judged is not None]
    return Report(
        model=model.name,
        pictures=len(verdicts),
        steps=asked.steps or 0,
        cfg=asked.cfg or 0.0,
        concept_at_1=share([v.concept for v in verdicts]),
        concept_and_style_at_1=share([v.style for v in verdicts]),
        concept_at_5=share([v.concept_in_5 for v in verdicts]),
        rmse=round(sum(v.rmse for v in verdicts) / len(verdicts), 4),
        judged_concept_at_1=share(judged) if judged else None,
        judge_on_taught=sure,
        scenes=shares(scored),
        true_scenes=shares(true),
        measured=measured,
        verdicts=tuple(verdicts),
        scored=tuple(scored),
    )


def template_of(options: argparse.Namespace) -> Request:
    """What all pictures share."""
    loras = (Lora(options.lora.stem),) if options.lora else ()
    return Request("", steps=options.steps, cfg=options.cfg, seed=options.seeds[0], loras=loras)


def drawn(
    model: Model, wanted: Sequence[tuple[str, int]], options: argparse.Namespace
) -> list[Image.Image]:
    """The pictures of prompts with seeds, told as they are done."""
    fields = filled(model, template_of(options)).to_json()
    requests = [
        Request.from_json(fields | {"prompt": prompt, "seed": seed}) for prompt, seed in wanted
    ]
    images = []
    for image in draw(model, requests, options.batch_size):
        images.append(image)
        if len(images) % options.batch_size == 0 or len(images) == len(wanted):
            tell(f"{len(images)}/{len(wanted)} pictures")
    return images


def scenes(
    model: Model, data: Pictures, judge: Judge, options: argparse.Namespace
) -> tuple[list[Scored], list[Scored], Novelty | None]:
    """The scores of scenes that the data set keeps from training, drawn with the first seed.

    And the scores of these scenes as they should be. Nothing where it keeps none.
    """
    if not options.scenes or not data.has(HELD_OUT_FILE):
        return [], [], None
    rows = Pictures(data.source, HELD_OUT_FILE).rows
    rows = random.Random(0).sample(rows, min(options.scenes, len(rows)))
    concepts = {row.layers[0].file: Caption(row.captions[0]).concept for row in plain_rows(data)}
    seed = options.seeds[0]
    images = drawn(model, [(row.captions[0], seed) for row in rows], options)
    scored, true = (
        [score(judge, row, seed, one, concepts) for row, one in zip(rows, some, strict=True)]
        for some in (images, [data.scene(row, images[0].height) for row in rows])
    )
    pixels = torch.stack([small(image) for image in images])
    return scored, true, novelty(pixels, painted(data, rows), painted(data, data.rows))


def painted(data: Pictures, rows: Sequence[Row]) -> Tensor:
    """Rows' pictures (N, 3, SIDE, SIDE) in −1…1."""
    parts = [data.paint_all(rows[n : n + PART], SIDE) for n in range(0, len(rows), PART)]
    return torch.cat(parts)


def words(options: argparse.Namespace) -> list[str]:
    """The options that the program itself has too, as it takes them."""
    given = {
        name: getattr(options, name[2:]) for name in ("--steps", "--cfg", "--device", "--lora")
    }
    pairs = [(name, str(value)) for name, value in given.items() if value is not None]
    return [word for pair in pairs for word in pair]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; BadRequest for values that cannot be used."""
    parser = argparse.ArgumentParser(
        "python -m txt2img.train.default_model.evaluate", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", default="default", help="name or path of the model (default)")
    add("--data", type=Path, help="what it was trained on: folder or archive")
    add("--prompts", type=Path, help="only draw these prompts, one a line, on the --sheet")
    add("--captions", type=int, default=100, help="how many captions to draw (100)")
    add("--seeds", default="0", help="seeds to draw each with, by commas (0)")
    add(
        "--scenes", type=int, default=200, help="how many scenes to draw that were not taught (200)"
    )
    add("--judge-steps", type=int, default=1500, help="how long the judge learns; 0: none (1500)")
    add("--steps", type=int, help="sampling steps (the model's own)")
    add("--cfg", type=float, help="guidance scale (the model's own)")
    add("--lora", help="name or file of a LoRA to draw with")
    add("--batch-size", type=int, default=8, help="pictures drawn at once (8)")
    add("--device", help="cpu, cuda, … (the best there is)")
    add("--cost", action="store_true", help="measure a cold start and further pictures too")
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
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise BadRequest(f"--{name.replace('_', '-')} must be {least} or more")
    return options


def label(verdict: Verdict) -> str:
    """What was asked for, and, where another was drawn, what it looks like."""
    return verdict.caption if verdict.concept else f"{verdict.caption} (like {verdict.nearest})"


def show(options: argparse.Namespace, model: Model) -> None:
    """Draw the prompts of a file on a labelled sheet."""
    requests = read_prompts(str(options.prompts), sys.stdin.buffer, template_of(options)).requests
    images = list(draw(model, requests, options.batch_size))
    sheet(images, [request.prompt for request in requests], options.columns).save(options.sheet)
    print(options.sheet)


def run(options: argparse.Namespace) -> None:
    """Evaluate, or draw prompts, as the command line says."""
    model = load(options.model, choose(options.device))
    if options.lora:
        options.lora = find_file("--lora", options.lora)
        model.adapters.library = AdapterPaths({options.lora.stem: options.lora})
    if options.prompts:
        show(options, model)
        return
    report, images = evaluate(model, Pictures(options.data), options)
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
