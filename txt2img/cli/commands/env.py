"""txt2img env: versions, devices and folders, for reports of bugs."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import print_json, print_line
from txt2img.system.resources import cores
from txt2img.system.user_config import config_path
from txt2img.system.version import __version__

EPILOG = """
\b
Examples:
  txt2img env
  txt2img env --json
"""
PACKAGES = (
    *("torch", "safetensors", "tokenizers", "transformers", "huggingface_hub", "accelerate"),
    *("pillow", "numpy", "typer", "rich", "spandrel", "torchao"),
)
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_ENABLE_MPS_FALLBACK", "HF_HOME")
SCHEMA = 1  # the version of the --json record; raised when a key changes its meaning
NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record.")]


def env(json: Json = False) -> None:
    """Print versions, devices and folders, for a report of a bug. No model is loaded."""
    record = {
        "txt2img": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "devices": devices(),
        "folders": folders(),
        "variables": variables(),
    }
    if json:
        print_json({"schema": SCHEMA, **record})
        return
    for key, value in record.items():
        if not isinstance(value, Mapping):
            print_line(f"{key:18} {value}")
            continue
        for name, text in value.items():
            print_line(f"{name:18} {text}")


def devices() -> dict[str, str]:
    """The processor, and Nvidia's cards if their tool is there. torch is not asked."""
    found = {
        "cpu": f"{platform.processor() or platform.machine()}, {cores() or os.cpu_count()} cores"
    }
    if shutil.which(NVIDIA[0]):
        try:
            done = subprocess.run(NVIDIA, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            found["cuda"] = f"unknown: {error}"
        else:
            found |= {f"cuda:{i}": line for i, line in enumerate(done.stdout.splitlines())}
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found["mps"] = "Apple silicon"
    return found


def folders() -> dict[str, str]:
    """Where files are looked for and kept; those that are not there are told so."""
    from txt2img.pipeline.estimates import history
    from txt2img.weights.registry import find, hub_cache

    places = {
        "package": Path(__file__).parents[2],
        "config": config_path(),
        "estimates": history.path(),
        "Hub cache": hub_cache.cache_dir(),
    }
    places |= {f"models {i}": path for i, path in enumerate(find.folders(), 1)}
    return {
        name: f"{path}{'' if os.path.lexists(path) else ' (not there)'}"
        for name, path in places.items()
    }


def variables() -> dict[str, str]:
    """Environment variables that change what is done, but none that holds a secret."""
    ours = (name for name in os.environ if name.startswith("TXT2IMG_") and "KEY" not in name)
    return {name: os.environ[name] for name in (*VARIABLES, *sorted(ours)) if name in os.environ}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


COMMAND: Command = env, EPILOG
