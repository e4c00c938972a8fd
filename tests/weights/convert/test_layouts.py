"""Models go from one layout to another and back with every bit, and diffusers reads the folders."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from tests.support import tiny, tiny_transformers, tiny_xl
from txt2img.weights.checkpoint import Checkpoint, open_checkpoint
from txt2img.weights.convert.convert import Report, convert, plan
from txt2img.weights.formats import tensors
from txt2img.weights.layouts import detect

CPU = torch.device("cpu")
MODELS = {
    "sd1": lambda: (tiny.sd1().folder, tiny.sd1().file),
    "sd2": lambda: (tiny.sd2().folder, tiny.sd2().file),
    "xl": lambda: (tiny_xl.base().folder, tiny_xl.base().file),
    "refiner": lambda: (tiny_xl.refiner().folder, tiny_xl.refiner().file),
    "ssd": lambda: (tiny_xl.ssd().folder, tiny_xl.ssd().file),
    "flux": lambda: _paths(tiny_transformers.flux_dev()),
    "sd3": lambda: _paths(tiny_transformers.sd3()),
    "z_image": lambda: _paths(tiny_transformers.z_image()),
    "flux2": lambda: _paths(tiny_transformers.flux2_klein()),
}


def _paths(files: tiny_transformers.TinyTransformer) -> tuple[Path, Path]:
    return files.folder, files.single


def converted(source: Path, out: Path, **options: str) -> Report:
    report = Report()
    for step in convert(plan(str(source), out, **options), report):
        assert 0 < step.done <= step.total
    return report


def assert_same(ours: Checkpoint, other: Checkpoint) -> None:
    """That two checkpoints have the same networks, bit for bit."""
    assert ours.components.keys() == other.components.keys()
    for name, part in ours.components.items():
        theirs = other.components[name].tensors
        assert part.tensors.keys() == theirs.keys(), name
        own, expected = (tensors.read(one, CPU, torch.float32) for one in (part.tensors, theirs))
        for tensor, value in expected.items():
            assert torch.equal(own[tensor], value), f"{name} {tensor}"


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in ("refiner", "ssd"))) for n in MODELS],
)
def test_a_folder_becomes_a_single_file_and_that_a_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has the names and values of one that was made by hand, its leftovers aside."""
    monkeypatch.setattr(detect, "OPEN_CLIP_USED", 3)  # layers of the tiny Stable Diffusion 2's
    folder, file = MODELS[name]()
    made, back = tmp_path / f"{file.stem}.safetensors", tmp_path / folder.name
    assert converted(folder, made).worst[1] == 0.0
    written, by_hand = load_file(made), _usual(load_file(file))
    assert all(torch.equal(value, by_hand[n]) for n, value in _usual(written).items())
    assert len(_usual(written)) >= 0.9 * len(by_hand)
    single = open_checkpoint(str(made))
    assert_same(single, open_checkpoint(str(file)))
    assert converted(made, back).worst[1] == 0.0
    again = open_checkpoint(str(back))
    assert_same(again, single)
    for field in ("network", "vae", "texts", "process", "prediction", "name"):
        assert getattr(again.family, field) == getattr(single.family, field), field
    for component, tokenizer in again.tokenizers.items():
        assert tokenizer.fingerprint == single.tokenizers[component].fingerprint


def _usual(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names that ComfyUI's files have."""
    names = {name: name.replace("transformer.text_model.", "transformer.") for name in state}
    inner = {n: o.replace("vae.encoder.quant", "vae.quant") for n, o in names.items()}
    inner = {n: o.replace("vae.decoder.post_quant", "vae.post_quant") for n, o in inner.items()}
    return {inner[name]: value for name, value in state.items()}


def _networks(name: str) -> dict[str, torch.nn.Module]:
    """The networks that a tiny model was written from, by component."""
    if name == "sd1":
        model = tiny.sd1()
        return {"unet": model.unet, "vae": model.vae, "text_encoder": model.text}
    if name == "xl":
        xl = tiny_xl.base()
        texts = dict(zip(("text_encoder", "text_encoder_2"), xl.texts, strict=True))
        return {"unet": xl.unet, "vae": xl.vae, **texts}
    files = {"flux": "flux_dev", "flux2": "flux2_klein"}.get(name, name)
    pipeline = getattr(tiny_transformers, files)().pipeline
    parts = pipeline.components.items()
    return {n: part for n, part in parts if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("name", ["sd1", "xl", "flux", "sd3", "z_image", "flux2"])
def test_diffusers_reads_the_folders(tmp_path: Path, name: str) -> None:
    """With the very weights that the single file was made of."""
    made = tmp_path / "made"
    converted(MODELS[name]()[1], made)
    ours = DiffusionPipeline.from_pretrained(made)
    for component, network in _networks(name).items():
        state = getattr(ours, component).state_dict()
        for key, value in network.state_dict().items():
            assert key in state, f"{component} {key}"
            same = torch.equal(state[key].float(), value.float())
            assert same or "num_batches" in key, f"{component} {key}"
