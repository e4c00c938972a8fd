"""Weighs and times loading and drawing at Stable Diffusion 1.5's size, and diffusers beside it.

    python -m tests.bench.memory               both, about ten minutes; makes a file of 2.1 GB
    python -m tests.bench.memory --only load   one part: load, first, draw, transformer

Every figure is of a process of its own, above what it held when it had imported its libraries.
Private pages are what a program takes; pages of a mapped file the system can take back at any time.
A model is loaded when a value of each page of its weights was read: diffusers maps a file, and
reads it at the first use only. Cold is after the system was asked to forget what it has of the
file; the other rows find it in memory. The processor's seconds say what a busy machine hides.
Pictures are drawn in four steps: in fewer, fewer filters are laid out for Winograd's transforms.
A transformer is of Z-Image's depth and a third of its width.
Weights are random; sizes, names and types are the published ones. Linux only: it reads /proc.
"""

import argparse
import json
import os
import select
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np

from tests.bench import transformer as bench_transformer
from tests.support import published

PARTS = ("load", "first", "draw", "transformer")
POLL_SECONDS = 0.002
GB = 1e9
Command = tuple[str, ...]
COLUMNS = "{:66} {:>8} {:>9} {:>8} {:>8} {:>9} {:>9}"
WAIT = """
def touch(*networks):
    for network in networks:
        for weight in network.parameters():
            weight.detach().reshape(-1)[:: 4096 // weight.element_size()].sum()
print("ready", flush=True)
sys.stdin.readline()
start, spent = time.perf_counter(), time.process_time()
"""
DONE = """
spans = time.perf_counter() - start, time.process_time() - spent
print("done", *spans, flush=True)
sys.stdin.readline()
"""
OURS = f"""
import sys, time
from dataclasses import replace
from txt2img.system.device.device import choose
from txt2img.pipeline.generate import generate
from txt2img.request.request import Request
from txt2img.weights.load import load
path, dtype, kept = sys.argv[1:4]
side, steps = map(int, sys.argv[4:])
{WAIT}
if kept == "plain":
    from txt2img.models.optimize import cpu as prepared
    prepared.winograd.CHANNELS = 2**31
model = load(path, replace(choose("cpu", dtype), low=kept == "low"))
if steps:
    generate(Request("a red apple", width=side, height=side, steps=steps, seed=1), model)
elif kept != "low":
    touch(model.network, model.vae, model.text)
{DONE}
"""
THEIRS = f"""
import sys, time
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel
path, folder, dtype, side, steps = *sys.argv[1:4], *map(int, sys.argv[4:])
{WAIT}
pipe = StableDiffusionPipeline.from_single_file(
    path, config=folder, torch_dtype=getattr(torch, dtype), local_files_only=True,
    safety_checker=None)
if steps:
    pipe("a red apple", width=side, height=side, num_inference_steps=steps)
else:
    touch(pipe.unet, pipe.vae, pipe.text_encoder)
{DONE}
"""


@dataclass(frozen=True)
class Weight:
    """One run: bytes above those held before, and seconds."""

    name: str
    peak: float  # of all pages
    private: float
    mapped: float  # pages of files
    whole: float  # the peak with what was held before
    seconds: float
    processor: float  # seconds of all threads


def write_file(path: Path, model: str = "sd15") -> None:
    """A published model in half precision as a single file, of random weights."""
    random = np.random.default_rng(0)
    block = random.normal(0, 0.02, 2**22).astype(np.float16).tobytes()
    shapes = published.file_keys(model)
    rows: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        rows[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(rows).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            size = 2 * prod(shape)
            file.write(block * (size // len(block)) + block[: size % len(block)])


def write_folder(folder: Path) -> None:
    """The configs and the tokenizer that diffusers wants beside a single file."""
    from tests.support import tiny
    from txt2img.models.tokenizer import EOS
    from txt2img.weights.tokenizer_files import clip_tokenizer

    classes = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for component, config in published.configs("sd15").items():
        kind = classes.get(component)
        index[component] = ["diffusers", kind] if kind else ["transformers", "CLIPTextModel"]
        own = (
            config
            if kind
            else {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"}
        )
        name = "scheduler_config" if component == "scheduler" else "config"
        (folder / component).mkdir()
        (folder / component / f"{name}.json").write_text(json.dumps(config | own))
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    tiny.write_tokenizer(folder / "tokenizer", clip_tokenizer(77, EOS))


def status(pid: int) -> Mapping[str, int]:
    """What a process holds, in bytes, by the names that /proc gives."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {
        line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")
    }


def weighed(name: str, *command: str) -> Weight:
    """A script's peak and time between its two lines, "ready" and "done"."""
    child = subprocess.Popen(
        [sys.executable, "-c", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdin and child.stdout
        if child.stdout.readline() != "ready\n":
            raise SystemExit(f"{name}: the script did not begin")
        before = status(child.pid)
        Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # its peak counts from here
        child.stdin.write("\n")
        child.stdin.flush()
        private = mapped = 0
        while not select.select([child.stdout], [], [], POLL_SECONDS)[0]:
            now = status(child.pid)
            private = max(private, now["RssAnon"] - before["RssAnon"])
            mapped = max(mapped, now["RssFile"] - before["RssFile"])
        words = child.stdout.readline().split()
        if words[:1] != ["done"]:
            raise SystemExit(f"{name}: the script broke off")
        top = status(child.pid)["VmHWM"]
        child.stdin.write("\n")
    return Weight(name, top - before["VmRSS"], private, mapped, top, *map(float, words[1:]))


def median(runs: list[Weight]) -> Weight:
    """The median of each figure of several runs."""
    rows = [asdict(run) for run in runs]
    figures = {key: statistics.median(row[key] for row in rows) for key in rows[0] if key != "name"}
    return Weight(runs[0].name, **figures)


def forget(file: Path) -> None:
    """Ask the system to forget what it has of a file, so that the disk is read."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def runs(part: str, file: Path, folder: Path, steps: int) -> Iterator[tuple[str, bool, Command]]:
    """A part's runs: what each is called, whether it reads from the disk, and its command."""
    sizes = {"load": (0, 0), "first": (64, 1), "draw": (512, steps), "transformer": (256, 2)}
    side, count = sizes[part]
    what = f"draw {side}×{side}, {count} step{'s' * (count > 1)}" if count else "load"
    tail = (str(side), str(count))
    if part == "transformer":
        name = f"Z-Image's depth, {bench_transformer.weights_bytes(file) / GB:.2f} GB, {what}"
        yield name, False, (OURS, str(file), "float32", "whole", *tail)
        return
    for dtype in ("float16", "float32") if part == "load" else ("float32",):
        for cold in (False, True) if dtype == "float16" else (False,):
            name = f"{what} {dtype}{', cold' * cold}"
            mine: Command = (OURS, str(file), dtype, "whole", *tail)
            yield f"{name}: txt2img", cold, mine
            yield f"{name}: diffusers", cold, (THEIRS, str(file), str(folder), dtype, *tail)
    if part == "draw":
        plain: Command = (OURS, str(file), "float32", "plain", *tail)
        yield f"{what} without Winograd's filters: txt2img", False, plain
    yield f"{what} --low-memory: txt2img", False, (OURS, str(file), "float32", "low", *tail)


def rows(part: str, file: Path, folder: Path, options: argparse.Namespace) -> Iterator[Weight]:
    """A part's runs, one by turns with the other, each the median of some rounds."""
    chosen = list(runs(part, file, folder, options.steps))
    done: dict[str, list[Weight]] = {name: [] for name, _, _ in chosen}
    for _ in range(options.rounds):
        for name, cold, command in chosen:
            if cold:
                forget(file)
            done[name].append(weighed(name, *command))
    yield from map(median, done.values())


def main() -> None:
    """Print the table, then write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each (1)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a picture (4)")
    parser.add_argument("--keep", type=Path, help="a folder for the file, which then stays")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    chosen = parser.parse_args()
    done = []
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        file, folder = root / "sd15.safetensors", root / "configs"
        if not file.exists():
            write_file(file)
        if not folder.exists():
            folder.mkdir(parents=True)
            write_folder(folder)
        deep = root / "z-image"
        if not deep.exists() and "transformer" in (chosen.only or PARTS):
            bench_transformer.write_folder(deep)
        size = file.stat().st_size
        print(f"the file has {size / GB:.2f} GB")
        heads = ("peak", "private", "mapped", "whole", "seconds", "processor")
        print(COLUMNS.format("GB above the imports", *heads))
        for part in chosen.only or PARTS:
            model = deep if part == "transformer" else file
            for weight in rows(part, model, folder, chosen):
                sizes = (weight.peak, weight.private, weight.mapped, weight.whole)
                shown = [f"{bytes_ / GB:.2f}" for bytes_ in sizes]
                spans = f"{weight.seconds:.2f}", f"{weight.processor:.2f}"
                print(COLUMNS.format(weight.name, *shown, *spans), flush=True)
                done.append(asdict(weight))
    if chosen.json:
        figures = {"file": size, "runs": done}
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
