"""Rows of the benchmark that need a process of their own, or none of a network's work.

Each program draws the default model's pictures in a fresh process, which says how long it took to
import, to load, for the first picture and for a later one, and how much memory it ever had.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

STEPS = 30
CFG = 5.0
SEED = 42
PROMPT = "red apple, 3d emoji"
FIGURES = ("import", "load", "first picture", "later picture", "memory")
FEWER: dict[str, dict[str, object]] = {
    "--lora few-steps": {"loras": [{"name": "few-steps"}], "steps": None},
    "--reuse 2": {"reuse": 2},
    "--reuse 3": {"reuse": 3},
    "--token-merging 0.5": {"token_merging": 0.5},
}
LOOP_STEPS = 200
LOOP_RUNS = 12  # the least of them counts: a machine that is busy with more only lengthens it
LOOP_SAMPLERS = ("euler", "ddim", "dpm++2m")

HEAD = """
import json, resource, sys, time
folder, prompt, seed, steps, cfg, path = sys.argv[1:]
seed, steps, cfg, marks = int(seed), int(steps), float(cfg), [time.perf_counter()]
def mark():
    marks.append(time.perf_counter())
"""
TAIL = """
draw(seed).save(path)
mark()
draw(seed + 1)
mark()
names = ("import", "load", "first picture", "later picture")
spans = {name: b - a for name, a, b in zip(names, marks, marks[1:])}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(spans | {"memory": peak * (1 if sys.platform == "darwin" else 1024)}))
"""
OURS = """
from txt2img.system.device.device import choose
from txt2img.pipeline.generate import generate
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.weights.load import load
mark()
model = load("default", choose("cpu"))
mark()
def draw(seed):
    return generate(Request(prompt, steps=steps, cfg=cfg, seed=seed, sampler=Sampler.DDIM,
        schedule=Schedule.TRAILING, compat=Compat.DIFFUSERS), model)[0]
"""
THEIRS = """
import torch
from diffusers import StableDiffusionPipeline
mark()
pipe = StableDiffusionPipeline.from_pretrained(
    folder, safety_checker=None, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
side = pipe.unet.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
mark()
def draw(seed):
    noise = torch.Generator().manual_seed(seed)
    return pipe(prompt, height=side, width=side, num_inference_steps=steps, guidance_scale=cfg,
        generator=noise).images[0]
"""


@dataclass(frozen=True)
class Run:
    """What a process measured of itself, the time that it took in all, and its first picture."""

    figures: dict[str, float]
    seconds: float
    picture: bytes  # RGB


def run(program: str, folder: Path) -> Run:
    """One run of a program with the model in a folder. CalledProcessError if it fails."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "picture.png")
        asked = (str(folder), PROMPT, str(SEED), str(STEPS), str(CFG), path)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", HEAD + program + TAIL, *asked], check=True, capture_output=True
        )
        seconds = time.perf_counter() - start
        figures = json.loads(done.stdout.splitlines()[-1])
        with Image.open(path) as image:
            return Run(figures, seconds, image.convert("RGB").tobytes())


def rehearsal(lines: int, rounds: int, *options: str) -> float:
    """Seconds of processor time, at the median, that a dry run of so many prompts takes.

    It is all that the process uses, start-up too. A round that does not count writes byte code.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "txt2img", "--prompts", "prompts.txt", "--seed", "1"]
    command += ["--dry-run", "--device", "cpu", *options]
    seconds = []
    with tempfile.TemporaryDirectory() as place:
        animals = Path(place, "lists", "animal.txt")
        animals.parent.mkdir()
        animals.write_text("cat\ndog\nsleeping bird\n")
        texts = (
            f"a {{red|blue}} __animal__ number {n}, (3d:1.2) emoji --cfg 5\n" for n in range(lines)
        )
        Path(place, "prompts.txt").write_text("".join(texts))
        for _ in range(rounds + 1):
            before = spent()
            subprocess.run(command, cwd=place, env=env, check=True, capture_output=True)
            seconds.append(spent() - before)
    return statistics.median(seconds[1:])


def spent() -> float:
    """Seconds of processor time that this process's children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def farthest(a: bytes, b: bytes) -> float:
    """How far two pictures' values are apart at most, of 1."""
    assert len(a) == len(b)
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) / 255


def medians(runs: list[Run]) -> dict[str, float]:
    """The medians of what runs measured, by FIGURES."""
    return {name: statistics.median(run.figures[name] for run in runs) for name in FIGURES}


def fewer() -> dict[str, tuple[float, float, float]]:
    """Processor seconds of a picture with fewer operations and with all, and their distance.

    That is the root of the mean square of their values' distances, of 1.
    """
    import torch

    from txt2img.pipeline.generate import generate
    from txt2img.request.request import Request
    from txt2img.system.device.device import choose
    from txt2img.weights.load import load

    model = load("default", choose("cpu"))
    found = {}

    def draw(seed: int, fields: dict[str, object]) -> tuple[float, torch.Tensor]:
        start = time.process_time()
        [image] = generate(
            Request.from_json({"prompt": PROMPT, "seed": seed, "steps": STEPS, **fields}), model
        )
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) / 255
        return time.process_time() - start, pixels

    for name, fields in FEWER.items():
        # The first of each kind is not counted: it loads a LoRA, or takes it off.
        less, whole = ([draw(seed, each) for seed in range(4)][1:] for each in (fields, {}))
        pairs = zip(less, whole, strict=True)
        apart = [float((a - b).square().mean().sqrt()) for (_, a), (_, b) in pairs]
        times = (statistics.median(spent for spent, _ in runs) for runs in (less, whole))
        found[name] = *times, statistics.median(apart)
    return found


def loop_microseconds() -> dict[str, float]:
    """What our own loop costs a step, by sampler: all but the network, which does nothing here.

    It is this thread's processor time, which other programs do not lengthen.
    """
    import torch

    from txt2img.diffusion.conditioning import Cond
    from txt2img.pipeline.generate import prepare, resolve_adapters
    from txt2img.request import Request, Sampler
    from txt2img.system.device.device import choose
    from txt2img.weights.load import load

    class Null(torch.nn.Module):
        """Takes a pair's latents once and gives them as they are, for both."""

        broadcasts_latents = True
        spent = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, time_: torch.Tensor, cond: Cond) -> torch.Tensor:
            start = time.thread_time()
            out = torch.cat([x, x])
            self.spent += time.thread_time() - start
            return out

    model = load("default", choose("cpu"))
    null = Null().requires_grad_(False)
    model.network = null  # type: ignore[assignment]
    best = dict.fromkeys(LOOP_SAMPLERS, float("inf"))
    for name in LOOP_SAMPLERS * LOOP_RUNS:
        asked = Request(PROMPT, steps=LOOP_STEPS, seed=SEED, sampler=Sampler.parse(name))
        asked = resolve_adapters(model, asked).filled(model.family.defaults)
        job, null.spent = prepare(model, [asked]), 0.0
        start = time.thread_time()
        with torch.inference_mode():
            for _ in job.states():
                pass
        best[name] = min(best[name], time.thread_time() - start - null.spent)
    return {name: seconds / LOOP_STEPS * 1e6 for name, seconds in best.items()}
