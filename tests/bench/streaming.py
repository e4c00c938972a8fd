"""Draw with a model of 4.4 GB as a whole and below a limit: peaks by the kernel, time of a step.

    python -m tests.bench.streaming FOLDER [--max-memory 1GB] [--size 256] [--steps 4]

Makes in FOLDER a Z-Image of real widths and eight blocks, random weights in bf16, unless it is
there. Both ways are processes of their own that begin with the files in the page cache.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

PARTS = ("net", "qwen", "vae")


def make(folder: Path) -> None:
    """Write the model's three files."""
    import torch
    from safetensors.torch import save_file
    from torch import nn
    from transformers import Qwen3Config, Qwen3Model

    from tests.support.transformers import original
    from txt2img.models.configs import FLUX_VAE, ZImageConfig
    from txt2img.models.vae import VAE
    from txt2img.weights.layouts.transformer_key_maps import z_image_layers
    from txt2img.weights.load import network_of

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)

    def written(network: nn.Module, name: str, prefix: str = "") -> None:
        with torch.no_grad():
            for weight in (p for p in network.parameters() if p.ndim > 1):
                weight.normal_(std=weight[0].numel() ** -0.5)
        state = network.state_dict()
        rows = original(state, z_image_layers(config)) if name == "net" else state
        path = folder / f"{name}.safetensors"
        save_file({f"{prefix}{n}": value.contiguous() for n, value in rows.items()}, path)

    config = ZImageConfig(layers=4, refiner_layers=2)
    written(network_of(config), "net")
    text = Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=3,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    written(Qwen3Model(text), "qwen", "model.")
    written(VAE(FLUX_VAE), "vae")


def draw(folder: Path, size: int, steps: int, limit: str) -> None:
    """Draw once, and print times, peak and pixels as JSON."""
    from dataclasses import replace

    from txt2img import Request
    from txt2img.pipeline.generate import stream
    from txt2img.request.resolve import ComponentOverrides
    from txt2img.system.device.device import choose
    from txt2img.system.text import parse_size
    from txt2img.weights.load import load

    device = replace(choose("cpu", "bf16"), optimize=False, offload="auto")
    device = replace(device, max_memory=parse_size(limit) if limit else None)
    net, text, vae = (str(folder / f"{part}.safetensors") for part in PARTS)
    overrides = ComponentOverrides(None, (text,))
    model = load(net, device, vae_path=vae, overrides=overrides)
    request = Request("a red apple", seed=1, steps=steps, cfg=1.0, width=size, height=size)
    times, work = [], []
    for state in stream(request, model):
        times.append(time.perf_counter())
        work.append(time.process_time())
        last = state
    [image] = last.images()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    steps, work = ([b - a for a, b in pairwise(one)] for one in (times, work))
    print(json.dumps({"peak": peak, "steps": steps, "work": work, "pixels": digest}))


def main() -> None:
    """Compare both ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--max-memory", default="1GB")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--child")
    given = parser.parse_args()
    if given.child is not None:
        draw(given.folder, given.size, given.steps, given.child)
        return
    if not all((given.folder / f"{part}.safetensors").is_file() for part in PARTS):
        make(given.folder)
    found = []
    for limit in ("", given.max_memory):
        for part in PARTS:
            with (given.folder / f"{part}.safetensors").open("rb") as file:
                while file.read(2**24):
                    pass
        command = [sys.executable, "-m", "tests.bench.streaming", *sys.argv[1:], "--child", limit]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        best, work = min(found[-1]["steps"]), min(found[-1]["work"])
        told = (
            f"step {best:.2f} s, {work:.2f} s of processors, peak {found[-1]['peak'] / 1e9:.2f} GB"
        )
        print(f"{limit or 'no limit':9} {told}", flush=True)
    whole, streamed = found
    ratios = (min(streamed[key]) / min(whole[key]) for key in ("steps", "work"))
    same = whole["pixels"] == streamed["pixels"]
    print("ratios {:.2f}, {:.2f} of processors; the same pixels: {}".format(*ratios, same))


if __name__ == "__main__":
    main()
