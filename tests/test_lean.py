"""Weights that stay as they are stored give the same bits as weights that are upcast once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pipeline import SMALL

from txt2img.device import choose
from txt2img.errors import BadRequest
from txt2img.extras import Lora
from txt2img.pipeline import generate
from txt2img.weights.load import load
from txt2img.weights.wear import ready


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def stored(request: pytest.FixtureRequest, sd1_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with its weights stored in a narrow type."""
    for path in sd1_folder.rglob("*"):
        target = tmp_path / path.relative_to(sd1_folder)
        if path.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            narrow = {
                n: t.to(request.param) if t.is_floating_point() else t for n, t in tensors.items()
            }
            save_file(narrow, target)
        else:
            target.write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.usefixtures("as_written")
def test_bits_are_those_of_the_ordinary_load(stored: Path) -> None:
    plain = load(str(stored), choose("cpu"))
    low = load(str(stored), replace(choose("cpu"), low=True))
    request = replace(SMALL, steps=1)
    [a], [b] = generate(request, plain), generate(request, low)
    assert a.tobytes() == b.tobytes()
    for part in ("network", "vae"):
        size = [sum(p.nbytes for p in getattr(m, part).parameters()) for m in (low, plain)]
        assert size[0] < 0.6 * size[1]
    low.wardrobe.library = replace(low.wardrobe.library, loras={"x": stored / "x.safetensors"})
    with pytest.raises(BadRequest, match="low-memory"):
        ready(low, replace(SMALL, loras=(Lora("x"),)))
