"""A transformer alone in place of a model's, from each layout that networks come in."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.support import gguf_files, tiny_transformers
from tests.weights.test_gguf_models import CPU, a_pass
from txt2img.errors import UnknownLayout
from txt2img.request.resolve import ComponentOverrides
from txt2img.weights.checkpoint import open_checkpoint
from txt2img.weights.load import load


def test_a_network_of_any_layout_takes_the_place_of_a_models_own(tmp_path: Path) -> None:
    dev, schnell = tiny_transformers.flux_dev(), tiny_transformers.flux_schnell()
    expected = a_pass(load(str(schnell.folder), CPU))
    narrow = tmp_path / "schnell.gguf"
    gguf_files.write(narrow, load_file(schnell.network), {})
    for path in (schnell.network, schnell.folder, schnell.folder / "transformer", narrow):
        model = load(str(dev.folder), CPU, overrides=ComponentOverrides(str(path)))
        assert model.family.name == "FLUX.1 schnell" and model.family.defaults.steps == 4
        assert model.family.texts == load(str(dev.folder), CPU).family.texts
        assert (a_pass(model) == expected).all()
    assert model.name == "schnell"


def test_what_does_not_fit_is_refused_by_name() -> None:
    dev, other = tiny_transformers.flux_dev(), tiny_transformers.z_image()
    with pytest.raises(UnknownLayout, match="of Z-Image, whose prompts and latents are others"):
        open_checkpoint(str(dev.folder), overrides=ComponentOverrides(str(other.network)))
    with pytest.raises(UnknownLayout):
        open_checkpoint(str(dev.folder), overrides=ComponentOverrides(str(dev.vae)))
