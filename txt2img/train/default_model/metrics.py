"""Metrics of a model: its VAE's sharpness, the spread of its pictures, the cost of one."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from txt2img.errors import BadFile
from txt2img.train.default_model.retrieval import blurred
from txt2img.train.losses import psnr

EDGES = 0.05  # of all slopes, the steepest: the edges of a drawing
SEED_FLOOR = 0.1  # of the distance between two things: two seeds of one should differ by so much
PROMPT = "red apple, 3d emoji"  # what a cost is measured with
FURTHER = 3  # pictures after the first, whose mean time is given
MIB = 2**20
# Runs a command; prints its seconds and its largest memory. A process's largest memory counts what
# it was forked from, which here would hold all that was evaluated before.
MEASURE_CHILD = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
LINUX_KIB = 1024 if sys.platform.startswith("linux") else 1  # unit of a process's largest memory


@dataclass(frozen=True)
class Copies:
    """Quality of a VAE's reconstructions."""

    db: float  # PSNR
    edges: float  # how steep they are where the originals are steepest: 1 is as steep


@dataclass(frozen=True)
class Spread:
    """Diversity of pictures: root mean square distances of blurred pixels in −1…1."""

    seeds: float  # two pictures of one caption
    captions: float  # two of different captions, with one seed
    varied: bool  # the first is at least SEED_FLOOR of the second


@dataclass(frozen=True)
class Novelty:
    """Scenes that were not taught: mean distances, as Spread's, of pictures half as large."""

    drawn_to_taught: float  # from a drawn scene to the nearest picture that was taught
    true_to_taught: float  # from the scene as it should be to the nearest that was taught
    drawn_to_true: float


@dataclass(frozen=True)
class Cost:
    """Time and memory of one picture, on this machine."""

    seconds: float  # a cold start: the program, its model, one picture
    mib: float  # the most memory that it held
    further: float  # seconds a further picture, one after another


def copy_quality(copies: Tensor, pixels: Tensor) -> Copies:
    """The quality of copies (N, 3, H, W) of pixels in −1…1."""
    return Copies(round(psnr(copies, pixels), 2), round(steepness(copies, pixels), 3))


def steepness(copies: Tensor, pixels: Tensor) -> float:
    """The slopes of copies (N, 3, H, W) where those of pixels are steepest, as part of theirs."""
    steep_copy = total = 0.0
    for axis in (-1, -2):
        true, copy = pixels.diff(dim=axis), copies.clamp(-1.0, 1.0).diff(dim=axis)
        steep = true.abs() >= true.abs().flatten().kthvalue(rank_of_edges(true.numel())).values
        steep_copy += float((copy * true.sign())[steep].sum())
        total += float(true.abs()[steep].sum())
    return steep_copy / total if total else 1.0


def rank_of_edges(count: int) -> int:
    """The rank, from 1, above which the steepest of `count` slopes lie."""
    return max(min(round(count * (1.0 - EDGES)), count), 1)


def spread(pictures: Tensor, seeds: int) -> Spread | None:
    """The spread of pictures (seeds · captions, 3, H, W); None if there is one seed or caption."""
    smooth = blurred(pictures).unflatten(0, (seeds, -1)).flatten(2)  # (S, C, D)
    if min(smooth.shape[:2]) < 2:
        return None
    one = mean_distance(smooth.transpose(0, 1))
    other = mean_distance(smooth)
    return Spread(round(one, 4), round(other, 4), one >= SEED_FLOOR * other)


def mean_distance(groups: Tensor) -> float:
    """Mean root mean square distance of two members of a group, of groups (G, N, D)."""
    count, width = groups.shape[1:]
    means = [functional.pdist(group).mean() / width**0.5 for group in groups]
    assert count > 1
    return float(torch.stack(means).mean())


def novelty(drawn: Tensor, true: Tensor, taught: Tensor) -> Novelty:
    """The novelty of drawn scenes (N, 3, H, W), given true ones and the training pictures."""
    a, b, known = (functional.avg_pool2d(part, 2).flatten(1) for part in (drawn, true, taught))
    scale = known.shape[1] ** 0.5
    near = [torch.cdist(part, known).min(dim=1).values.mean() / scale for part in (a, b)]
    own = (a - b).norm(dim=1).mean() / scale
    return Novelty(*(round(float(value), 4) for value in (*near, own)))


def cost(model: str, options: Sequence[str]) -> Cost:
    """The cost of a model, by name or path, with further options of the command line."""
    seconds, mib = run_process(model, 1, options)
    more, _ = run_process(model, 1 + FURTHER, options)
    return Cost(round(seconds, 2), round(mib, 1), round(max(more - seconds, 0.0) / FURTHER, 2))


def run_process(model: str, count: int, options: Sequence[str]) -> tuple[float, float]:
    """Seconds and MiB of a new process that draws pictures one by one. BadFile if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "{index}.png")
        words = ["generate", PROMPT, "--model", model, "-o", out, "--quiet", *options]
        words += ["--count", str(count), "--batch-size", "1"]
        command = [sys.executable, "-c", MEASURE_CHILD, sys.executable, "-m", "txt2img", *words]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise BadFile(f"drawing with {model} failed with exit code {child.returncode}")
    seconds, most = child.stdout.split()
    return float(seconds), int(most) * LINUX_KIB / MIB
