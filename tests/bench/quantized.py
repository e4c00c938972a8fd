"""Weighs and times models whose weights stay packed, by files that `models convert` makes.

    python -m tests.bench.quantized                all parts, half an hour; makes files of 9 GB
    python -m tests.bench.quantized --only memory  one part: convert, memory, step, sdcpp

convert and memory are of a network of Z-Image's depth and half its width, in bf16 and
Q8_0; peaks are the kernel's, above what the process held when it had imported its libraries. step
and sdcpp are of Stable Diffusion 1.5's U-Net beside its f16 file, and beside stable-diffusion.cpp
where that is built (see tests/bench/sdcpp.py). Weights are random. Linux only: it reads /proc.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from tests.bench import memory, sdcpp
from txt2img.models.configs import ZImageConfig
from txt2img.models.z_image import ZImageTransformer
from txt2img.weights.formats.writers import PlannedTensor, write_safetensors

PARTS = ("convert", "memory", "step", "sdcpp")
HEADS = 15  # of 30
GB = 1e9
CONVERT = f"""
import sys, time
from pathlib import Path
import gguf
from txt2img.weights.convert.convert import Report, convert, plan
{memory.WAIT}
report = Report()
for _ in convert(plan(sys.argv[1], Path(sys.argv[2]), sys.argv[3]), report):
    pass
print(*report.worst, file=sys.stderr)
{memory.DONE}
"""
DRAW = f"""
import sys, time
from txt2img.system.device.device import choose
from txt2img.pipeline.generate import generate
from txt2img.request.request import Request
from txt2img.request.resolve import ComponentOverrides
from txt2img.weights.load import load
import transformers.models.qwen3.modeling_qwen3
from txt2img.weights.text_tokenizer_files import qwen_tokenizer
qwen_tokenizer(512)
path, vae, text = sys.argv[1:4]
{memory.WAIT}
model = load(path, choose("cpu"), vae_path=vae, overrides=ComponentOverrides(None, (text,)))
generate(Request("a red apple", width=256, height=256, steps=1, cfg=1, seed=1), model)
{memory.DONE}
"""
NARROW = sdcpp.OURS.replace(
    'load(path, choose("cpu"))', 'load(path, choose("cpu"), overrides=unet)'
)


def write_network(path: Path) -> None:
    """A Z-Image of random weights in bf16, alone, tensor by tensor."""
    with torch.device("meta"):
        network = ZImageTransformer(ZImageConfig(heads=HEADS, cross_dim=24))
    block = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    planned = [
        PlannedTensor(name, "BF16", shape, 2 * prod(shape)) for name, shape in shapes.items()
    ]

    def contents() -> Iterator[Tensor]:
        for shape in shapes.values():
            count = prod(shape)
            yield block.repeat(-(-count // len(block)))[:count].to(torch.bfloat16)

    for _ in write_safetensors(path, planned, contents(), {}):
        pass


def write_folder(folder: Path) -> None:
    """The network in a folder of a tiny model."""
    from tests.support.tiny_transformers import z_image

    shutil.copytree(z_image().folder, folder)
    config = (folder / "transformer" / "config.json").read_text(encoding="utf-8")
    sizes = {"dim": 128 * HEADS, "n_heads": HEADS, "n_kv_heads": HEADS}
    told = json.loads(config) | sizes | {"n_layers": 30, "n_refiner_layers": 2}
    (folder / "transformer" / "config.json").write_text(json.dumps(told), encoding="utf-8")
    write_network(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def told(weight: memory.Weight, file: Path) -> None:
    """A row: peak above the imports beside the file's size, and the processor's seconds."""
    size = file.stat().st_size
    print(
        f"{weight.name:48} {weight.peak / GB:6.2f} GB of {size / GB:5.2f} GB "
        f"({weight.peak / size:.0%}), {weight.processor:.1f} s",
        flush=True,
    )


def weigh(root: Path, parts: list[str]) -> None:
    """The parts convert and memory."""
    from tests.support.tiny_transformers import z_image

    folder, narrow = root / "z-image", root / "z-image-Q8_0.gguf"
    wide = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    if not folder.exists():
        write_folder(folder)
    if "convert" in parts or not narrow.exists():
        narrow.unlink(missing_ok=True)
        command = (CONVERT, str(folder), str(narrow), "gguf:Q8_0")
        told(memory.weighed("convert bf16 to Q8_0, and check", *command), wide)
    if "memory" in parts:
        files = z_image()
        command = (DRAW, str(narrow), str(files.vae), str(files.texts[0]))
        told(memory.weighed("draw 256×256 with Q8_0, 1 step", *command), narrow)


def time_steps(root: Path, parts: list[str], rounds: int) -> None:
    """The parts step and sdcpp: processor seconds of a guided step of 256×256, turn by turn."""
    file, narrow = root / "sd15.safetensors", root / "sd15-Q8_0.gguf"
    if not file.exists():
        memory.write_file(file)
    if not narrow.exists():
        command = (CONVERT, str(file), str(narrow), "gguf:Q8_0")
        told(memory.weighed("convert a U-Net in f16 to Q8_0, and check", *command), file)
    threads = torch.get_num_threads()
    begin = "from txt2img.request.resolve import ComponentOverrides\n"
    begin += f"unet = ComponentOverrides({str(narrow)!r})\n"
    rows = {"txt2img, f16 file": (sys.executable, sdcpp.OURS)}
    rows["txt2img, Q8_0"] = (sys.executable, begin + NARROW)
    if "sdcpp" in parts and sdcpp.absent() is None:
        rows["stable-diffusion.cpp, f16"] = (sdcpp.python(), sdcpp.THEIRS)
        eight = sdcpp.THEIRS.replace('wtype="f16"', 'wtype="q8_0"')
        rows["stable-diffusion.cpp, q8_0"] = (sdcpp.python(), eight)
    elif "sdcpp" in parts:
        print(sdcpp.absent())
    found = dict[str, list[float]]()
    for _ in range(rounds):
        for name, (python, program) in rows.items():
            try:
                found.setdefault(name, []).extend(sdcpp.steps(python, program, file, threads))
            except subprocess.CalledProcessError as error:
                print(f"{name}: {error.stderr.strip().splitlines()[-1:]}")
    for name, seconds in found.items():
        print(f"a step by {name:36} {statistics.median(seconds or [float('nan')]):6.2f} s")


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each (1)")
    parser.add_argument("--keep", type=Path, help="a folder for the files, which then stay")
    chosen = parser.parse_args()
    parts = chosen.only or list(PARTS)
    with tempfile.TemporaryDirectory() as temporary:
        root = chosen.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        if {"convert", "memory"} & set(parts):
            weigh(root, parts)
        if {"step", "sdcpp"} & set(parts):
            time_steps(root, parts, chosen.rounds)


if __name__ == "__main__":
    main()
