"""Times txt2img and diffusers in one run, turn by turn, on the same weights and inputs.

    python -m tests.bench.bench                half of Stable Diffusion 1.5's width, two minutes
    python -m tests.bench.bench --full         its exact size, at 256×256 and 512×512
    python -m tests.bench.bench --only start   one part: network, vae, transformer, bf16 (all
                                              three in it, where a processor has it), img2img,
                                              control, fewer, start, loop, model, warm, sdcpp
                                              (--full runs it too, where installed)
    python -m tests.bench.bench --markdown     a table for README

Seconds differ from hour to hour; the ratios do not, since the two take turns.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.bench import control as bench_control
from tests.bench import img2img as bench_img2img
from tests.bench import process as bench_process
from tests.bench import sdcpp as bench_sdcpp
from tests.bench import transformer as bench_transformer
from tests.bench import warm as bench_warm
from txt2img.system.device.device import has_bf16

PARTS = (
    "network",
    "vae",
    "transformer",
    "img2img",
    "control",
    "bf16",
    "fewer",
    "start",
    "loop",
    "model",
    "warm",
    "sdcpp",
)
FLOAT32 = torch.float32
SECONDS, MEBIBYTES, MICROSECONDS = "s", "MiB", "µs"
SCALES = {SECONDS: 1.0, MEBIBYTES: 2.0**-20, MICROSECONDS: 1.0}
SD15 = (320, 640, 1280, 1280)
SD15_VAE = (128, 256, 512, 512)
CFG = 7.5
EVALUATIONS = 30  # steps that a prepared network is made for
COLUMNS = "{:46} {:>9} {:>10} {:>6} {:>11}"
MARKDOWN = "| {} | {} | {} | {} | {} |"
HEADS = ("medians", "txt2img", "diffusers", "ratio", "difference")
DEFAULT = Path(__file__).parent.parent.parent / "txt2img" / "weights" / "default"


@dataclass(frozen=True)
class Result:
    """One comparison: medians, and how far the two outputs are apart."""

    name: str
    ours: float  # seconds, bytes or microseconds, as `unit` says
    diffusers: float | None = None
    difference: float | None = None
    unit: str = SECONDS

    @property
    def ratio(self) -> float | None:
        """How many times as much diffusers takes."""
        return None if self.diffusers is None else self.diffusers / self.ours


def in_turns(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Both medians, seconds; the two take turns in who begins, after one uncounted round."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for turn in range(rounds + 1):
        for work in (ours, theirs) if turn % 2 else (theirs, ours):
            start = clock()
            work()
            if turn:
                seconds[work].append(clock() - start)
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs])


def widths(full: Sequence[int], factor: float) -> tuple[int, ...]:
    """A model's channels a level, narrower by `factor`, in whole groups of 32."""
    return tuple(max(32, round(width * factor / 32) * 32) for width in full)


def same_weights(mine: torch.nn.Module, other: torch.nn.Module, dtype: torch.dtype) -> None:
    """Give ours diffusers' random weights, both in `dtype`, and prepare it as for drawing."""
    from txt2img.models.optimize.cpu import CpuPlan, optimize

    mine.load_state_dict(other.state_dict(), strict=True)
    mine.eval().to(dtype)
    optimize(mine, CpuPlan(evaluations=EVALUATIONS))
    other.eval().to(dtype)


def network(factor: float, pixels: int, rounds: int, dtype: torch.dtype = FLOAT32) -> Result:
    """One step under guidance: two passes in one batch, and the clean picture they aim at."""
    from diffusers import UNet2DConditionModel

    from txt2img.diffusion.conditioning import Cond
    from txt2img.diffusion.guidance import Predictor, guided
    from txt2img.diffusion.levels import Diffusion, betas
    from txt2img.diffusion.predictions import PREDICTIONS
    from txt2img.models.configs import UNetConfig
    from txt2img.models.unet import UNet

    torch.manual_seed(0)
    channels = widths(SD15, factor)
    other = UNet2DConditionModel(
        block_out_channels=channels, cross_attention_dim=768, attention_head_dim=8
    )
    mine = UNet(UNetConfig(channels=channels))
    same_weights(mine, other, dtype)
    process = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
    level, x = process.level(500.0), torch.randn(1, 4, pixels // 8, pixels // 8)
    positive, negative = torch.randn(1, 77, 768), torch.randn(1, 77, 768)
    denoise = guided(
        Predictor(mine, process, PREDICTIONS["eps"]),
        lambda _: Cond(tokens=positive),
        lambda _: Cond(tokens=negative),
        CFG,
    )

    def ours() -> Tensor:
        return denoise(x, level)

    def theirs() -> Tensor:
        tokens, both = torch.cat([negative, positive]), torch.cat([x, x])
        low, high = other(both.to(dtype), 500, tokens.to(dtype)).sample.float().chunk(2)
        return (x - level.sigma * (low + CFG * (high - low))) / level.alpha

    with torch.inference_mode():
        difference = (ours() - theirs()).abs().max().item()
        return Result(
            f"U-Net step under guidance, {pixels}×{pixels}{named(dtype)}",
            *in_turns(ours, theirs, rounds),
            difference,
        )


def vae(factor: float, pixels: int, rounds: int, dtype: torch.dtype = FLOAT32) -> Result:
    """Latents to pixels."""
    from diffusers import AutoencoderKL

    from txt2img.models.configs import VAEConfig
    from txt2img.models.vae import VAE

    torch.manual_seed(0)
    channels = widths(SD15_VAE, factor)
    other = AutoencoderKL(
        block_out_channels=channels,
        latent_channels=4,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    )
    mine = VAE(VAEConfig(channels=channels))
    same_weights(mine, other, dtype)
    x = torch.randn(1, 4, pixels // 8, pixels // 8)

    def ours() -> Tensor:
        return mine.decode(x.to(dtype))

    def theirs() -> Tensor:
        decoded: Tensor = other.decode(x.to(dtype) / mine.config.scaling).sample
        return decoded

    with torch.inference_mode():
        difference = (ours() - theirs()).abs().max().item()
        name = f"VAE decode, {pixels}×{pixels}{named(dtype)}"
        return Result(name, *in_turns(ours, theirs, rounds), difference)


def transformer(rounds: int, dtype: torch.dtype = FLOAT32) -> Result:
    """One step of a transformer of Z-Image's depth."""
    with torch.inference_mode():
        ours, theirs = bench_transformer.step(dtype=dtype)
        difference = (ours() - theirs()).abs().max().item()
        side = bench_transformer.PIXELS
        name = f"Z-Image step, a fifth of its width, {side}×{side}{named(dtype)}"
        return Result(name, *in_turns(ours, theirs, rounds), difference)


def img2img(factor: float, pixels: int, rounds: int) -> Result:
    """A picture to another: the encoder, half of the steps under guidance, and the decoder."""
    sizes = widths(SD15, factor), widths(SD15_VAE, factor)
    ours, theirs = bench_img2img.programs(*sizes, pixels, CFG, same_weights)
    with torch.inference_mode():
        difference = (ours().clamp(-1, 1) - theirs()).abs().max().item()
        name = f"img2img, {bench_img2img.STEPS} guided steps, {pixels}×{pixels}"
        return Result(name, *in_turns(ours, theirs, rounds), difference)


def control(factor: float, pixels: int, rounds: int) -> Result:
    """One step under guidance with a ControlNet."""
    ours, theirs = bench_control.step(widths(SD15, factor), pixels, CFG, same_weights)
    with torch.inference_mode():
        difference = (ours() - theirs()).abs().max().item()
        name = f"guided step with a ControlNet, {pixels}×{pixels}"
        return Result(name, *in_turns(ours, theirs, rounds), difference)


def named(dtype: torch.dtype) -> str:
    """What a row says of a precision other than the usual one."""
    return "" if dtype == FLOAT32 else ", bf16"


def process(*command: str) -> Callable[[], object]:
    """A run of this Python in a process of its own."""
    return lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True)


def start(rounds: int) -> Result:
    """`--help` against what a script with diffusers waits for before its first line."""
    ours = process("-m", "txt2img", "--help")
    theirs = process("-c", "from diffusers import StableDiffusionPipeline")
    return Result("start: --help against diffusers' import", *in_turns(ours, theirs, rounds))


def rehearsals(rounds: int) -> Iterator[Result]:
    """Dry runs of 1,000 prompts, in processor time, which other programs lengthen less."""
    for name, options in (
        ("1,000 prompts", ()),
        ("1,000 prompts, --json", ("--json",)),
        ("1,000 prompts, wildcards", ("--wildcards", "lists")),
    ):
        seconds = bench_process.rehearsal(1000, rounds, *options)
        yield Result(f"start: dry run of {name}, CPU time", seconds)


def model_rows(rounds: int) -> Iterator[Result]:
    """The default model in fresh processes: each part of a run, and all of it."""
    ours, theirs = [bench_process.run(bench_process.OURS, DEFAULT)], []
    try:
        theirs.append(bench_process.run(bench_process.THEIRS, DEFAULT))
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode("utf-8", "replace").strip().splitlines()[-1]
        print(f"diffusers does not run the default model: {last}", file=sys.stderr)
    for _ in range(rounds - 1):
        ours.append(bench_process.run(bench_process.OURS, DEFAULT))
        if theirs:
            theirs.append(bench_process.run(bench_process.THEIRS, DEFAULT))
    apart = bench_process.farthest(ours[0].picture, theirs[0].picture) if theirs else None
    mine, other = (bench_process.medians(runs) if runs else {} for runs in (ours, theirs))
    for name in bench_process.FIGURES:
        difference = apart if name == "first picture" else None
        unit = MEBIBYTES if name == "memory" else SECONDS
        yield Result(f"default model: {name}", mine[name], other.get(name), difference, unit)
    whole = statistics.median(run.seconds for run in ours)
    others = statistics.median(run.seconds for run in theirs) if theirs else None
    yield Result("default model: two pictures, cold", whole, others, apart)


def warm(rounds: int) -> Iterator[Result]:
    """The default model by a call that loads it and by one that finds it loaded."""
    for name, seconds in bench_warm.figures(rounds).items():
        yield Result(name, seconds)


def fewer() -> Iterator[Result]:
    """The default model with fewer operations, in the place of diffusers: itself with all."""
    for name, figures in bench_process.fewer().items():
        yield Result(f"default model: {name}; without", *figures)


def sdcpp(rounds: int) -> Iterator[Result]:
    """A guided step from one f16 file, in the place of diffusers: stable-diffusion.cpp."""
    if (reason := bench_sdcpp.absent()) is not None:
        print(reason, file=sys.stderr)
        return
    found = bench_sdcpp.medians(rounds, torch.get_num_threads())
    yield Result("SD 1.5 step, 256×256, processor; sd.cpp f16", *found)


def results(options: argparse.Namespace) -> Iterator[Result]:
    """The chosen parts, one result at a time."""
    sizes = (256, 512) if options.full else (256,)
    factor = 1.0 if options.full else options.width
    parts = options.only or [part for part in PARTS if part != "sdcpp" or options.full]
    for pixels in sizes:
        if "network" in parts:
            yield network(factor, pixels, options.rounds)
        if "vae" in parts:
            yield vae(factor, pixels, options.rounds)
        if "bf16" in parts and has_bf16(torch.device("cpu")):
            yield network(factor, pixels, options.rounds, torch.bfloat16)
            yield vae(factor, pixels, options.rounds, torch.bfloat16)
    if "transformer" in parts:
        yield transformer(min(options.rounds, 3))
    if {"transformer", "bf16"} <= set(parts) and has_bf16(torch.device("cpu")):
        yield transformer(min(options.rounds, 3), torch.bfloat16)
    if "img2img" in parts:
        yield img2img(factor, sizes[0], min(options.rounds, 3))
    if "control" in parts:
        yield control(factor, sizes[0], min(options.rounds, 3))
    if "fewer" in parts:
        yield from fewer()
    if "sdcpp" in parts:
        yield from sdcpp(min(options.rounds, 2))
    if "start" in parts:
        yield start(min(options.rounds, 3))
        yield from rehearsals(min(options.rounds, 5))
    if "loop" in parts:
        for sampler, spent in bench_process.loop_microseconds().items():
            yield Result(f"loop around a null network, {sampler}", spent, unit=MICROSECONDS)
    if "model" in parts:
        yield from model_rows(min(options.rounds, 3))
    if "warm" in parts and (DEFAULT / "model_index.json").exists():
        yield from warm(min(options.rounds, 3))


def row(result: Result) -> list[str]:
    """What a line of the table says."""
    scale, form = SCALES[result.unit], ".3f" if result.unit == SECONDS else ".0f"
    figures = [
        "–" if figure is None else f"{figure * scale:{form}}"
        for figure in (result.ours, result.diffusers)
    ]
    ratio = "–" if result.ratio is None else f"{result.ratio:.2f}"
    difference = "–" if result.difference is None else f"{result.difference:.1e}"
    return [f"{result.name} ({result.unit})", *figures, ratio, difference]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="the exact size, at 256 and 512 pixels")
    parser.add_argument("--width", type=float, default=0.5, help="share of the channels (0.5)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count (5)")
    parser.add_argument("--threads", type=int, help="torch's threads (its own choice)")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print a table for README")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def main() -> None:
    """Print the table line by line, then write the figures."""
    chosen = options()
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
        os.environ["OMP_NUM_THREADS"] = str(chosen.threads)  # for the processes started below
    width = 1.0 if chosen.full else chosen.width
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "width": width,
        "rounds": chosen.rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    line = MARKDOWN if chosen.markdown else COLUMNS
    print(line.format(*HEADS))
    if chosen.markdown:
        print(line.format("---", "---:", "---:", "---:", "---:"))
    done = []
    for result in results(chosen):
        print(line.format(*row(result)), flush=True)
        done.append({**asdict(result), "ratio": result.ratio})
    if chosen.json:
        figures = {"machine": machine, "results": done}
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
