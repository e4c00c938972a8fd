"""Evaluation of a model: does it draw what it was taught?

`python -m txt2img.train.default_model.evaluate --data artwork.zip` draws the fixed prompts of
prompts/ and compares them with the art itself (quality.py), taught captions and asks which training
picture each is nearest to (retrieval.py), and scenes that the archive keeps from training, in which
a classifier looks for the things (scene_score.py). Last it measures what a picture costs.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.pipeline.generate import images_of
from txt2img.request.adapters import Lora
from txt2img.request.prompt_file import read_prompts
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import choose
from txt2img.train.config import TrainConfig
from txt2img.train.data import HELD_OUT_FILE, WHITE, WORDS_FILE, Pictures, Row, to_pixels
from txt2img.train.default_model.build_dataset import log
from txt2img.train.default_model.classifier import (
    SIDE,
    Caption,
    Classifier,
    new_classifier,
    plain_rows,
    train_classifier,
)
from txt2img.train.default_model.metrics import (
    Copies,
    Cost,
    Novelty,
    Spread,
    copy_quality,
    cost,
    novelty,
    spread,
)
from txt2img.train.default_model.names import nouns_covered
from txt2img.train.default_model.phrases import (
    arranged,
    read_nouns,
    read_prompts_file,
    things_in,
)
from txt2img.train.default_model.quality import (
    Similarity,
    aligned_psnr,
    ground_error,
    mean,
    similarity,
)
from txt2img.train.default_model.retrieval import Match, classifier_agreement, matches_of, share
from txt2img.train.default_model.scene_score import SceneScore, score, shares
from txt2img.train.default_model.sheet import sheet
from txt2img.train.losses import LevelBatch, add_noise
from txt2img.train.samples import process_of
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model
from txt2img.weights.registry.find import find_file

COPIES = 48  # pictures that the VAE copies
PART = 256  # pictures painted at once
TIMES = (50, 150, 300, 450, 600, 850, 950)  # at which the loss is measured
LOSS_ROWS = 64  # pictures that it is measured on
ANSWERED = 22.0  # dB, aligned: what is nearer to what a phrase asks for is an answer
COUNTS = "captions", "aligned", "phrases", "scenes", "classifier_steps", "batch_size", "columns"
FROM_ONE = "batch_size", "columns"


@dataclass(frozen=True)
class Answers:
    """Scores of everyday phrases."""

    phrases: int
    answered: float  # the share whose drawing is what is asked for, in whatever style
    ground_error: float  # levels of 255, where a ground is asked for


@dataclass(frozen=True)
class Retrieval:
    """Which training pictures the drawings of taught captions are nearest to: shares, 0 to 1."""

    pictures: int
    concept_at_1: float
    concept_and_style_at_1: float
    concept_at_5: float
    rmse: float
    classified_concept_at_1: float | None  # by the classifier's features; None without one
    spread: Spread | None
    matches: tuple[Match, ...]


@dataclass(frozen=True)
class Report:
    """A model's scores; None for those not requested."""

    model: str
    steps: int
    cfg: float
    similarity: Similarity | None  # of the fixed prompts to the art
    losses: dict[int, float] | None  # of v by time; 0 is possible, as captions tell all
    answers: Answers | None
    nouns_covered: float | None  # share of the common icon nouns that were taught
    retrieval: Retrieval | None
    classifier_accuracy: float | None  # on the training pictures
    scenes: dict[str, float]  # of each kind of scene that was not taught, how many are right
    true_scenes: dict[str, float]  # and how many of those as they should be: more cannot be asked
    novelty: Novelty | None
    vae: Copies
    cost: Cost | None
    scored: tuple[SceneScore, ...]


# --- Pictures ------------------------------------------------------------------------------------


def known_pictures(data: Pictures) -> tuple[list[Caption], Tensor]:
    """All plain pictures: each one's first caption, and pixels (N, 3, SIDE, SIDE)."""
    rows = plain_rows(data)
    if not rows:
        raise BadFile(f"no picture in {data.source.name} has a white background")
    return [Caption(row.captions[0]) for row in rows], painted(data, rows)


def painted(data: Pictures, rows: Sequence[Row]) -> Tensor:
    """Rows' pictures (N, 3, SIDE, SIDE) in −1…1."""
    parts = [data.paint_all(rows[n : n + PART], SIDE) for n in range(0, len(rows), PART)]
    return torch.cat(parts)


def small(image: Image.Image) -> Tensor:
    """A picture as (3, SIDE, SIDE) in −1…1."""
    return to_pixels(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def draw(model: Model, requests: Sequence[Request], batch_size: int) -> Iterator[Image.Image]:
    """The pictures of requests of one shape, in their order."""
    for start in range(0, len(requests), batch_size):
        batch = [filled(model, request) for request in requests[start : start + batch_size]]
        yield from images_of(model, batch)


def filled(model: Model, request: Request) -> Request:
    """The request with the model's defaults."""
    return resolve_adapters(model, request).filled(model.family.defaults)


def template_of(options: argparse.Namespace) -> Request:
    """The settings that all pictures share."""
    loras = (Lora(options.lora.stem),) if options.lora else ()
    return Request("", steps=options.steps, cfg=options.cfg, seed=options.seeds[0], loras=loras)


def draw_prompts(
    model: Model, prompts: Sequence[tuple[str, int]], options: argparse.Namespace
) -> list[Image.Image]:
    """The pictures of prompts with seeds, with progress to stderr."""
    fields = filled(model, template_of(options)).to_json()
    requests = [
        Request.from_json(fields | {"prompt": prompt, "seed": seed}) for prompt, seed in prompts
    ]
    images = []
    for image in draw(model, requests, options.batch_size):
        images.append(image)
        if len(images) % options.batch_size == 0 or len(images) == len(prompts):
            log(f"{len(images)}/{len(prompts)} pictures")
    return images


# --- Against the art -----------------------------------------------------------------------------


def similarity_of(
    model: Model, data: Pictures, options: argparse.Namespace
) -> tuple[Similarity, list[str], list[Image.Image]] | None:
    """The fixed prompts' drawings against the art, and these drawings; None where none is known."""
    files = {row.layers[0].file: row for row in plain_rows(data)}
    prompts = [p for p in read_prompts_file("aligned") if p.target in files][: options.aligned]
    if not prompts:
        return None
    texts = [prompt.text for prompt in prompts]
    images = draw_prompts(model, [(text, options.seeds[0]) for text in texts], options)
    art = [data.paint(files[prompt.target], images[0].width) for prompt in prompts]
    return similarity([to_pixels(image) for image in images], art), texts, images


def phrases_of(
    model: Model, data: Pictures, options: argparse.Namespace
) -> tuple[Answers, list[str], list[Image.Image]] | None:
    """Everyday phrases whose things are in the data, and their drawings; None without any."""
    styles = list(things_in(data).values())
    known = [
        (prompt.text, targets)
        for prompt in read_prompts_file("phrases")[: options.phrases]
        if (targets := [row for some in styles if (row := arranged(prompt.target, some))])
    ]
    if not known:
        return None
    images = draw_prompts(model, [(text, options.seeds[0]) for text, _ in known], options)
    answered, grounds = [], []
    for (_, targets), image in zip(known, images, strict=True):
        pixels, art = to_pixels(image), [data.paint(row, image.width) for row in targets]
        answered.append(max(aligned_psnr(pixels, one) for one in art) >= ANSWERED)
        if targets[0].background != (WHITE,):
            grounds.append(min(ground_error(pixels, one) for one in art))
    answers = Answers(len(known), share(answered), round(mean(grounds), 2))
    return answers, [text for text, _ in known], images


@torch.no_grad()
def losses_of(model: Model, data: Pictures) -> dict[int, float]:
    """The mean squared error of v by time, on training pictures with their usual captions.

    As a caption tells the whole picture, a model that had learnt all would miss by nothing.
    """
    rows = plain_rows(data)
    rows = rows[:: max(len(rows) // LOSS_ROWS, 1)][:LOSS_ROWS]
    device, process = next(model.network.parameters()).device, process_of(TrainConfig())
    side = model.family.defaults.width
    x0 = torch.cat([model.vae.encode(data.paint(row, side)[None].to(device)) for row in rows])
    cond = Cond(model.text.encode([row.captions[0] for row in rows]).tokens)
    losses = {}
    for time in TIMES:
        level = LevelBatch.of([process.level(float(time))] * len(rows))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(time)).to(device)
        v = level.alpha * noise - level.sigma * x0
        times = torch.full((len(rows),), float(time), device=device)
        output = model.network(add_noise(x0, noise, level), times, cond)
        losses[time] = round(float((output - v).square().mean()), 4)
    return losses


# --- Against the training pictures ---------------------------------------------------------------


def trained_classifier(data: Pictures, options: argparse.Namespace) -> Classifier:
    """A classifier of the data set, on the CPU, with progress to stderr."""
    classifier = new_classifier(data).to(choose(options.device).torch_device)
    steps = options.classifier_steps
    for step, loss in enumerate(train_classifier(classifier, data, steps, seed=0), 1):
        if step % 100 == 0 or step == steps:
            log(f"classifier {step}/{steps} loss {loss:.3f}")
    return classifier.cpu()


def retrieval_of(
    model: Model, data: Pictures, classifier: Classifier | None, options: argparse.Namespace
) -> tuple[Retrieval, list[str], list[Image.Image]]:
    """Taught captions, drawn with each seed, against the training pictures; the drawings too."""
    known, gallery = known_pictures(data)
    distinct = list(dict.fromkeys(known))
    # a choice that is the same for every model
    picked = random.Random(0).sample(distinct, min(options.captions, len(distinct)))
    prompts = [(caption.text, seed) for seed in options.seeds for caption in picked]
    images = draw_prompts(model, prompts, options)
    pixels = torch.stack([small(image) for image in images])
    matches = matches_of(prompts, pixels, known, gallery)
    if classifier is not None:
        matches = classifier_agreement(classifier, matches, pixels, known, gallery)
    agreed = [match.classified for match in matches if match.classified is not None]
    result = Retrieval(
        pictures=len(matches),
        concept_at_1=share([match.concept for match in matches]),
        concept_and_style_at_1=share([match.style for match in matches]),
        concept_at_5=share([match.concept_in_5 for match in matches]),
        rmse=round(mean([match.rmse for match in matches]), 4),
        classified_concept_at_1=share(agreed) if agreed else None,
        spread=spread(pixels, len(options.seeds)),
        matches=tuple(matches),
    )
    return result, list(map(label, matches)), images


def accuracy_of(classifier: Classifier, data: Pictures) -> float:
    """The accuracy of the classifier on the training pictures."""
    known, gallery = known_pictures(data)
    names = classifier.names(gallery)
    return share([name == caption.concept for name, caption in zip(names, known, strict=True)])


def scenes_of(
    model: Model, data: Pictures, classifier: Classifier, options: argparse.Namespace
) -> tuple[list[SceneScore], list[SceneScore], Novelty | None]:
    """The scores of scenes that the data set keeps from training, drawn with the first seed.

    And the scores of these scenes as they should be. Nothing where it keeps none.
    """
    if not options.scenes or not data.has(HELD_OUT_FILE):
        return [], [], None
    rows = Pictures(data.source, HELD_OUT_FILE).rows
    rows = random.Random(0).sample(rows, min(options.scenes, len(rows)))
    concepts = {row.layers[0].file: Caption(row.captions[0]).concept for row in plain_rows(data)}
    seed = options.seeds[0]
    images = draw_prompts(model, [(row.captions[0], seed) for row in rows], options)
    scored, true = (
        [score(classifier, row, seed, one, concepts) for row, one in zip(rows, some, strict=True)]
        for some in (images, [data.scene(row, images[0].height) for row in rows])
    )
    pixels = torch.stack([small(image) for image in images])
    return scored, true, novelty(pixels, painted(data, rows), painted(data, data.rows))


@torch.no_grad()
def copies(model: Model, data: Pictures) -> Copies:
    """Quality of the VAE's reconstructions of some training pictures, at the model's own size."""
    side, rows = model.family.defaults.width, plain_rows(data)
    device = next(model.vae.parameters()).device
    pixels = torch.stack([data.paint(row, side) for row in rows[:: max(len(rows) // COPIES, 1)]])
    decoded = [model.vae.decode(model.vae.encode(p[None].to(device))).cpu() for p in pixels]
    return copy_quality(torch.cat(decoded), pixels)


# --- The command ---------------------------------------------------------------------------------


def evaluate(
    model: Model, data: Pictures, options: argparse.Namespace
) -> tuple[Report, list[tuple[str, Image.Image]]]:
    """All scores that the options ask for, and the pictures drawn for them, labelled."""
    # 1. Against the art.
    near = similarity_of(model, data, options) if options.aligned else None
    answers = phrases_of(model, data, options) if options.phrases else None
    losses = losses_of(model, data) if options.losses else None
    words = json.loads(data.text(WORDS_FILE))["words"] if data.has(WORDS_FILE) else None

    # 2. Against the training pictures.
    classifier = trained_classifier(data, options) if options.classifier_steps else None
    retrieved = retrieval_of(model, data, classifier, options) if options.captions else None
    scored, true, new = (
        scenes_of(model, data, classifier, options) if classifier else ([], [], None)
    )

    # 3. What does not depend on what is drawn.
    asked = filled(model, template_of(options))
    report = Report(
        model=model.name,
        steps=asked.steps or 0,
        cfg=asked.cfg or 0.0,
        similarity=near[0] if near else None,
        losses=losses,
        answers=answers[0] if answers else None,
        nouns_covered=nouns_covered(read_nouns(), words) if words else None,
        retrieval=retrieved[0] if retrieved else None,
        classifier_accuracy=accuracy_of(classifier, data) if classifier else None,
        scenes=shares(scored),
        true_scenes=shares(true),
        novelty=new,
        vae=copies(model, data),
        cost=cost(options.model, command_options(options)) if options.cost else None,
        scored=tuple(scored),
    )
    pairs = [zip(*drawn[1:], strict=True) for drawn in (near, answers, retrieved) if drawn]
    return report, list(chain(*pairs))


def label(match: Match) -> str:
    """A picture's label: its prompt and, if another thing was drawn, that one's name."""
    return match.caption if match.concept else f"{match.caption} (like {match.nearest})"


def command_options(options: argparse.Namespace) -> list[str]:
    """The options that the program itself has too, as it takes them."""
    names = "--steps", "--cfg", "--device", "--lora"
    values = [(name, getattr(options, name[2:])) for name in names]
    return [word for name, value in values if value is not None for word in (name, str(value))]


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
    add("--aligned", type=int, default=240, help="fixed prompts to compare with the art (240)")
    add("--phrases", type=int, default=100, help="everyday phrases to draw (100)")
    add("--no-losses", dest="losses", action="store_false", help="leave out the loss by level")
    add("--captions", type=int, default=100, help="taught captions to draw (100)")
    add("--seeds", default="0", help="seeds to draw each of them with, by commas (0)")
    add("--scenes", type=int, default=200, help="scenes to draw that were not taught (200)")
    add("--classifier-steps", type=int, default=1500, help="of its training; 0: none (1500)")
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
    check(options)
    return options


def check(options: argparse.Namespace) -> None:
    """Turn seeds into numbers; BadRequest for options that cannot be used together."""
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError as error:
        raise BadRequest(f"--seeds is '{options.seeds}': give whole numbers, 0,1,2") from error
    if (options.prompts is None) == (options.data is None):
        raise BadRequest("give --data to measure by, or --prompts to draw on a --sheet")
    if options.prompts and not options.sheet:
        raise BadRequest("--prompts are drawn on a --sheet: name its file")
    for name in COUNTS:
        smallest = 1 if name in FROM_ONE else 0
        if getattr(options, name) < smallest:
            raise BadRequest(f"--{name.replace('_', '-')} must be {smallest} or more")


def draw_sheet(options: argparse.Namespace, model: Model) -> None:
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
        model.adapters.paths = AdapterPaths({options.lora.stem: options.lora})
    if options.prompts:
        draw_sheet(options, model)
        return
    report, pairs = evaluate(model, Pictures(options.data), options)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    if options.sheet and pairs:
        labels, images = zip(*pairs, strict=True)
        sheet(images, labels, options.columns).save(options.sheet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
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
