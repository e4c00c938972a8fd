"""Times drawing on a CUDA card, diffusers beside it where that is installed.

    python -m tests.bench.cuda                 SD 1.5 at 512×512, SDXL at 1024×1024: five minutes
    python -m tests.bench.cuda --only sd15     one model; --compile: compiled as well

Pictures are whole ones, from words to pixels, of a model that has drawn one before: files are made
while a card draws on, and have a row of their own (random weights draw noise, the slowest to pack).
MFU is the share of a measured matrix product's speed that the U-Net's and the decoder's arithmetic
reaches. Weights are random; sizes, names and types are the published ones.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL.Image import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import memory as bench_memory
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import OutOfMemory
from txt2img.images.image_file import encode
from txt2img.pipeline.generate import images_of, prepare, ready_to_draw
from txt2img.request.request import Request
from txt2img.system.device.device import choose
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model, origin

SIDES = {"sd15": 512, "sdxl": 1024}
PROMPT = "a photograph of an astronaut riding a horse"
TERA = 1e12
COLUMNS = "{:44} {:>9} {:>9} {:>7} {:>7}"


@dataclass(frozen=True)
class Row:
    """One figure: seconds a picture, TFLOP/s, the share of the ceiling, of the card's time."""

    name: str
    seconds: float
    speed: float = 0.0
    mfu: float = 0.0
    busy: float = 0.0


def timed(work: Callable[[], object], rounds: int) -> float:
    """The median seconds of some rounds, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def ceiling(dtype: torch.dtype, side: int = 8192) -> float:
    """FLOP/s of a large matrix product of random numbers."""
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * side**3 * 10 / timed(lambda: [a @ b for _ in range(10)], 5)


def request(model: Model, side: int, steps: int) -> Request:
    """The picture that is drawn."""
    wish = Request(PROMPT, width=side, height=side, steps=steps, seed=1)
    return resolve_adapters(model, wish).filled(model.family.defaults)


def pictures(model: Model, asked: Request, count: int) -> list[Image]:
    """Some pictures drawn together, seed after seed; their words are read anew."""
    model.prompt_cache.clear()
    return images_of(model, [replace(asked, seed=(asked.seed or 0) + i) for i in range(count)])


@torch.inference_mode()
def work(model: Model, asked: Request) -> float:
    """The arithmetic of one picture, FLOPs."""
    weight = next(model.network.parameters())
    cells = (asked.height or 0) // 8, (asked.width or 0) // 8
    x = torch.zeros(2, 4, *cells, device=weight.device, dtype=weight.dtype)
    config = model.network.config
    sizes = torch.zeros(2, config.sizes, device=x.device) if config.sizes else None
    pooled = x.new_zeros(2, config.pooled) if config.pooled else None
    cond = Cond(x.new_zeros(2, 77, config.cross_dim), pooled, sizes)
    with FlopCounterMode(display=False) as steps:
        model.network(x, torch.zeros(2, device=x.device), cond)
    with FlopCounterMode(display=False) as last:
        model.vae.decode(x[:1])
    total: int = steps.get_total_flops() * (asked.steps or 0) + last.get_total_flops()
    return float(total)


def busy(model: Model, asked: Request) -> float:
    """The share of the steps' time in which the card computes; a profile itself takes time."""
    wall, _ = steps_of(model, asked, nullcontext())
    seen = profile(activities=[ProfilerActivity.CUDA])
    _, by_kernels = steps_of(model, asked, seen)
    return by_kernels / wall


def steps_of(
    model: Model, asked: Request, seen: profile | nullcontext[None]
) -> tuple[float, float]:
    """The seconds that all steps but the first take, and those of the kernels that were seen."""
    device, dtype = torch.device("cuda"), next(model.network.parameters()).dtype
    job = prepare(model, [asked])
    with ready_to_draw(model, job, device, dtype), torch.inference_mode():
        states = job.states()
        next(states)
        torch.cuda.synchronize()
        with seen:
            start = time.perf_counter()
            deque(states, maxlen=1)
            torch.cuda.synchronize()
            wall = time.perf_counter() - start
    events = seen.key_averages() if isinstance(seen, profile) else []
    return wall, sum(float(event.self_device_time_total) for event in events) / 1e6


def ours(name: str, file: Path, options: argparse.Namespace, top: float) -> Iterator[Row]:
    """Our rows of a model: loading, batches, and compiled if wished."""
    yield Row(f"{name}: load", timed(lambda: load(str(file), choose("cuda")), 1))
    emptied()
    for compiled in (False, True) if options.compile else (False,):
        model = load(str(file), replace(choose("cuda"), compile=compiled))
        yield from batches(model, name, options, top)
        for line in model.memory.pop_warnings():
            print(line, file=sys.stderr)
        del model
        emptied()


def emptied() -> None:
    """Give back what a model took that nothing names any more: it refers to itself."""
    gc.collect()
    torch.cuda.empty_cache()


def batches(model: Model, name: str, options: argparse.Namespace, top: float) -> Iterator[Row]:
    """Rows of pictures alone and together."""
    side = SIDES[name]
    asked = request(model, side, options.steps)
    flops = work(model, asked)
    by, [picture] = origin(model), pictures(model, asked, 1)
    yield Row(f"{name}: one file of it", timed(lambda: encode(picture, asked, by), 3))
    how = ", compiled" if model.graphed and model.graphed.compiled_in else ""
    for count in options.batch:
        what = f"{name}: {side}×{side}, {options.steps} steps, batch {count}{how}"
        draw = partial(pictures, model, asked, count)
        try:
            seconds = timed(draw, options.rounds if count == 1 else 1) / count
        except OutOfMemory as error:
            print(f"{what}: {error}", file=sys.stderr)
            continue
        speed = flops / seconds
        share = busy(model, asked) if count == 1 else 0.0
        yield Row(what, seconds, speed / TERA, speed / top, share)


def theirs(name: str, file: Path, options: argparse.Namespace) -> Iterator[Row]:
    """diffusers on the same file: as it is, and compiled with channels last."""
    try:
        import diffusers
    except ImportError:
        print("diffusers is not installed: it is left out", file=sys.stderr)
        return
    if name != "sd15":
        return
    folder = file.parent / "configs"
    if not folder.exists():
        folder.mkdir()
        bench_memory.write_folder(folder)
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), torch_dtype=torch.float16, safety_checker=None
    ).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    side = SIDES[name]

    def draw() -> None:
        pipe(PROMPT, num_inference_steps=options.steps, height=side, width=side)

    what = f"{name}: diffusers, {side}×{side}, {options.steps} steps"
    yield Row(what, timed(draw, options.rounds))
    if options.compile:
        for part in (pipe.unet, pipe.vae):
            part.to(memory_format=torch.channels_last)
        pipe.unet = torch.compile(pipe.unet, mode="max-autotune", fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode="max-autotune", fullgraph=True)
        yield Row(f"{what}, compiled, channels last", timed(draw, options.rounds))


def shown(row: Row) -> str:
    """One line of the table."""
    figures = [(row.speed, "{:.0f}"), (100 * row.mfu, "{:.0f} %"), (100 * row.busy, "{:.0f} %")]
    cells = [form.format(value) if value else "–" for value, form in figures]
    return COLUMNS.format(row.name, f"{row.seconds:.3f}", *cells)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=SIDES, help="a model; may be repeated")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="(1 4 16)")
    parser.add_argument("--steps", type=int, default=50, help="(50)")
    parser.add_argument("--rounds", type=int, default=5, help="of single pictures (5)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile as well")
    parser.add_argument("--keep", type=Path, help="a folder for the weights, which then stay")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def main() -> None:
    """Print the table line by line, and write the figures."""
    chosen = options()
    if not torch.cuda.is_available():
        raise SystemExit("this machine has no CUDA device")
    done = list[dict[str, object]]()
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        top = ceiling(torch.float16)
        card = torch.cuda.get_device_name()
        figures = {"card": card, "torch": torch.__version__, "ceiling": top, "rows": done}
        print(f"{card}, torch {torch.__version__}, matrix products at {top / TERA:.0f} TFLOP/s")
        print(COLUMNS.format("seconds a picture", "seconds", "TFLOP/s", "MFU", "busy"))
        for name in chosen.only or SIDES:
            file = root / f"{name}.safetensors"
            if not file.exists():
                bench_memory.write_file(file, name)
            for rows in (ours(name, file, chosen, top), theirs(name, file, chosen)):
                for row in rows:
                    print(shown(row), flush=True)
                    done.append(asdict(row))
                    if chosen.json:  # each time: a call of limited length may end in between
                        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
            if not chosen.keep:
                file.unlink()


if __name__ == "__main__":
    main()
