"""txt2img "prompt": draw pictures. The command that is meant when none is named."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from txt2img import infotext, output, png, prompts
from txt2img.cli import extras, options
from txt2img.cli.show import Bar, progress, rate, say_path, say_record, tell
from txt2img.errors import BadRequest
from txt2img.escape import shown
from txt2img.library import Library
from txt2img.request import Request

if TYPE_CHECKING:
    from txt2img.batch import Finished, Step

EPILOG = """
\b
Examples:
  txt2img "red apple, 3d emoji"
  txt2img "red apple, 3d emoji" --steps 30 --cfg 7.5 --seed 42 -o apple.png
  txt2img "a green tree" --count 4 -o trees/
  txt2img "a cat" -m models/sd15.safetensors -W 512 -H 512 -n "blurry"
  txt2img --prompts prompts.txt -o "art/{index}-{prompt}.png"
  txt2img --from apple.png --seed 43

\b
Commands (each has its own --help):
  txt2img generate "train"   Draw, even if the prompt is a command's name.
  txt2img info FILE...       Say what is in a picture or a weight file.
  txt2img train DATA         Train a model on pictures with captions.
"""
FIELDS = (
    *("negative", "model", "width", "height", "steps", "cfg", "cfg_rescale", "eta"),
    *("sampler", "schedule", "seed", "count"),
)
Note = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What is to be drawn, and what a picture to be repeated says that it was drawn with."""

    requests: list[Request]
    remarks: list[str]
    library: Library
    hash: str = ""


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    negative: options.Negative = None,
    width: options.Width = None,
    height: options.Height = None,
    steps: options.Steps = None,
    cfg: options.Cfg = None,
    seed: options.Seed = None,
    count: options.Count = None,
    sampler: options.SamplerName = None,
    schedule: options.ScheduleName = None,
    eta: options.Eta = None,
    cfg_rescale: options.CfgRescale = None,
    model: options.Model = None,
    lora: options.Loras = None,
    lora_dir: options.LoraFolders = None,
    embedding: options.Embeddings = None,
    embedding_dir: options.EmbeddingFolders = None,
    vae: options.VAE = None,
    device: options.DeviceName = None,
    dtype: options.Dtype = None,
    batch_size: options.BatchSize = None,
    out: options.OutputName = None,
    overwrite: options.Overwrite = False,
    prompts_file: options.Prompts = None,
    picture: options.From = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
    version: options.Version = False,
) -> None:
    """Draw a picture from a text prompt. Prints the path of each picture it writes."""
    note: Note = (lambda line: None) if quiet else tell
    given = extras.given(context.params, FIELDS)
    words = [*([] if prompt is None else [prompt]), *context.args]
    wish = wanted(words, prompts_file, picture, given, extras.library(context.params))
    several = len(wish.requests) > 1 or wish.requests[0].count > 1
    target = output.parse(out, several, overwrite)
    with target, progress(not quiet, "loading") as bar:
        draw(wish, target, batch_size or 1, (device, dtype), note, bar, json)


def wanted(
    words: Sequence[str],
    prompts_file: str | None,
    picture: Path | None,
    given: Mapping[str, object],
    library: Library,
) -> Wish:
    """The requests of a command line, all with seeds. BadRequest, BadFile."""
    if len(words) > 1:
        raise BadRequest(
            f"{len(words)} prompts; put the prompt in quotes: {shown(' '.join(words))}"
        )
    if words and prompts_file is not None:
        raise BadRequest("a prompt and --prompts; give one of them")
    if not words and prompts_file is None and picture is None:
        raise BadRequest('no prompt; try txt2img "red apple, 3d emoji", or txt2img --help')
    base, remarks, recorded = repeated(picture, given) if picture else (Request(""), [], "")
    prompt = {"prompt": words[0]} if words else {}
    base = Request.from_json({**base.to_json(), **given, **prompt})
    seeded = base.seeded()
    requests = [seeded]
    if prompts_file is not None:
        requests = prompts.read(prompts_file, sys.stdin.buffer, seeded)
    requests = [library.resolved(request) for request in requests]
    if base.seed is None and any(request.seed == seeded.seed for request in requests):
        remarks.append(f"seed {seeded.seed}")
    warnings = filter(None, map(infotext.ambiguous, requests))
    remarks += [f"Note: {warning}" for warning in warnings]
    return Wish(requests, remarks, library, recorded)


def repeated(picture: Path, given: Mapping[str, object]) -> tuple[Request, list[str], str]:
    """The request that a picture carries, remarks, the hash of its model. BadFile, BadRequest."""
    found = png.read(picture)
    if found.request is None:
        raise BadRequest(f"{shown(str(picture))} does not say how it was drawn")
    if "model" not in given and found.request.model != "default":
        name = shown(found.request.model)
        raise BadRequest(f"{shown(str(picture))} was drawn by the model {name}; give its --model")
    remarks = [f"Note: {line}" for line in found.notes]
    return replace(found.request, count=1), remarks, found.origin.hash


def draw(
    wish: Wish,
    target: output.Output,
    batch_size: int,
    where: tuple[str | None, str | None],
    note: Note,
    bar: Bar,
    json: bool,
) -> None:
    """Load the model, draw all pictures, say each when it is written."""
    from txt2img import batch
    from txt2img.device import choose
    from txt2img.pipeline import room_for
    from txt2img.weights.load import load

    device = choose(*where)
    with room_for("the model"):
        model = load(wish.requests[0].model, device, vae_path=wish.library.vae)
    model.wardrobe.library = wish.library
    if wish.hash and wish.hash != model.hash:
        other = f"Note: the picture's model has the hash {wish.hash}, this one {model.hash}"
        wish.remarks.append(other)
    pictures = batch.each(wish.requests, model)
    with bar.aside():
        for line in [*wish.remarks, *model.wardrobe.notes]:
            note(line)
    steps = sum(group[0].steps or 0 for group in batch.batches(pictures, batch_size))
    meter = Meter(bar, len(pictures), steps)
    for event in batch.run(model, pictures, target, batch_size):
        if isinstance(event, batch.Step):
            meter.show(event)
        else:
            with bar.aside():
                say(event, json)


class Meter:
    """How far a run is, on a bar."""

    def __init__(self, bar: Bar, pictures: int, steps: int) -> None:
        self.bar, self.pictures, self.steps = bar, pictures, steps
        self.done, self.start = 0, time.monotonic()

    def show(self, step: "Step") -> None:
        """Show one more step."""
        self.done += 1
        which = f"{step.first}" if step.first == step.last else f"{step.first}-{step.last}"
        label = "drawing" if self.pictures == 1 else f"drawing {which} of {self.pictures}"
        speed = rate(self.done, time.monotonic() - self.start)
        self.bar.advance(label, self.done, self.steps, f"{step.step}/{step.steps} {speed}")


def say(finished: "Finished", json: bool) -> None:
    """A finished picture on stdout: its path, or all about it."""
    if not json:
        say_path(finished.path)
        return
    request = finished.request
    say_record(
        {
            "path": str(finished.path),
            "prompt": request.prompt,
            "negative": request.negative,
            "seed": request.seed,
            "size": [request.width, request.height],
            "steps": request.steps,
            "cfg": request.cfg,
            "sampler": request.sampler,
            "schedule": request.schedule,
            "seconds": round(finished.seconds, 3),
            "model": finished.origin.model,
            "hash": finished.origin.hash,
        }
    )
