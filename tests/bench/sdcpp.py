"""stable-diffusion.cpp as a peer: guided steps of Stable Diffusion 1.5 from one f16 file, in turns.

It is left out, and that is said, where its package is not there. `pip install
stable-diffusion-cpp-python` builds it, with cmake and a C++ compiler, in some ten minutes; the
interpreter that has it is this one or the one that TXT2IMG_SDCPP names. Weights are random.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from tests.bench import memory as bench_memory

NAME = "TXT2IMG_SDCPP"
STEPS = 4  # the first of them is not counted: it lays things out
SIDE = 256  # pixels
LEFT_OUT = "stable-diffusion.cpp is left out: {} (pip install stable-diffusion-cpp-python)"

HEAD = """
import json, os, sys, time
path, threads, side, steps = sys.argv[1], *map(int, sys.argv[2:])
marks, out = [], os.fdopen(os.dup(1), "w")  # its wrapper closes standard output meanwhile
def mark():
    marks.append(time.process_time())
    if len(marks) > steps:
        print(json.dumps(marks), file=out, flush=True)
        os._exit(0)  # the picture itself is not wanted
"""
OURS = """
from txt2img.system.device.device import choose
from txt2img.pipeline.generate import sample
from txt2img.request import Request, Sampler
from txt2img.weights.load import load
from txt2img.weights.apply_adapters import resolve_adapters
model = load(path, choose("cpu"))
asked = Request("a red apple", width=side, height=side, steps=steps, cfg=7.5, seed=1,
    sampler=Sampler.EULER)
states = sample(model, [resolve_adapters(model, asked).filled(model.family.defaults)])
mark()
for _ in states:
    mark()
"""
THEIRS = """
from stable_diffusion_cpp import StableDiffusion
model = StableDiffusion(model_path=path, n_threads=threads, wtype="f16", verbose=False)
model.generate_image("a red apple", width=side, height=side, sample_steps=steps, cfg_scale=7.5,
    sample_method="euler", seed=1, progress_callback=lambda *_: mark())
"""


def absent() -> str | None:
    """Why stable-diffusion.cpp cannot be run, if it cannot."""
    done = subprocess.run(
        [python(), "-c", "import stable_diffusion_cpp"],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or ["it does not start"]
    return LEFT_OUT.format(lines[-1]) if done.returncode else None


def python() -> str:
    """The interpreter that has it."""
    return os.environ.get(NAME, sys.executable)


def steps(interpreter: str, program: str, path: Path, threads: int) -> list[float]:
    """The processor seconds of each step that counts. CalledProcessError."""
    asked = (str(path), str(threads), str(SIDE), str(STEPS))
    done = subprocess.run(
        [interpreter, "-c", HEAD + program, *asked], capture_output=True, text=True, check=True
    )
    marks = json.loads(done.stdout.splitlines()[-1])
    return [b - a for a, b in list(pairwise(marks))[1:]]


def medians(rounds: int, threads: int) -> tuple[float, float]:
    """Processor seconds a step of ours and of theirs, turn by turn. CalledProcessError."""
    ours, theirs = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "sd15.safetensors"
        bench_memory.write_file(path)
        for _ in range(rounds):
            ours += steps(sys.executable, OURS, path, threads)
            theirs += steps(python(), THEIRS, path, threads)
    return statistics.median(ours), statistics.median(theirs)
