"""IP-Adapters on the command line: drawn, recorded, drawn again, described."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import T2IAdapter
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import Command
from tests.support import ip_adapters, tiny
from tests.support.annotators import detector_folder, pose_folder
from txt2img.images import image_file


@pytest.fixture
def draw(command: Command, folder: Path) -> Command:
    """Draws two steps of a tiny model, with adapters, an encoder and pictures in the folder."""
    ip_adapters.file_of("plus", tiny.sd1().unet, folder, "plus")
    (folder / "image_encoder").symlink_to(ip_adapters.encoder_folder())
    Image.new("RGB", (40, 30), "red").save("red.png")
    Image.new("L", (40, 40), 255).save("mask.png")
    usual = ("a red apple", "--model", str(tiny.sd1().folder), "--steps", "2")
    size = ("-W", "64", "-H", "64", "--seed", "1")
    return lambda *more: command(*usual, *size, *more)


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_a_picture_is_drawn_recorded_and_drawn_again(
    draw: Command, command: Command, folder: Path
) -> None:
    assert draw("-o", "plain.png").code == 0
    given = ("--ip-adapter", "plus.safetensors:red.png:0.8:0..0.9", "--ip-mask", "mask.png")
    outcome = draw(*given, "-o", "one.png")
    assert (outcome.code, outcome.out) == (0, "one.png\n"), outcome.err
    assert pixels("one.png") != pixels("plain.png")
    info = image_file.read(Path("one.png"))
    assert info.request is not None
    [use] = info.request.ip_adapters
    assert (use.model.name, use.weight, str(use.interval)) == ("plus", 0.8, "0..0.9")
    assert use.images[0].name == "red.png" and len(use.images[0].hash) == 64
    assert use.encoder is not None and len(info.request.ip_masks[0].hash) == 64
    assert 'ControlNet 0: "Module: ip-adapter_clip_h, Model: plus [' in info.texts["parameters"]
    outcome = command("replay", "one.png", "--model", str(tiny.sd1().folder), "-o", "again.png")
    assert outcome.code != 0 and "plus" in outcome.err  # its file is found by name only in folders
    again = ("--ip-adapter", given[1])
    outcome = command(
        "replay", "one.png", "--model", str(tiny.sd1().folder), *again, "-o", "again.png"
    )
    assert outcome.code == 0, outcome.err
    assert pixels("again.png") == pixels("one.png")


def test_it_is_found_by_name_in_folders_of_models(
    draw: Command, command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder))
    assert draw("--ip-adapter", "plus:red.png", "-o", "one.png").code == 0
    outcome = command("replay", "one.png", "--model", str(tiny.sd1().folder), "-o", "again.png")
    assert outcome.code == 0, outcome.err
    assert pixels("again.png") == pixels("one.png")
    line = command("info", "--command", "one.png").out
    assert "--ip-adapter plus:red.png" in line
    outcome = command("info", "--json", "plus.safetensors")
    assert json.loads(outcome.out)["kind"] == "an IP-Adapter"


def test_a_sweep_and_a_second_picture_load_it_once(draw: Command, folder: Path) -> None:
    given = ("--ip-adapter", "plus.safetensors:red.png,mask.png")
    outcome = draw(*given, "--sweep", "ip-adapter-weight=0,1", "-o", "sweep/")
    assert outcome.code == 0, outcome.err
    assert len([*Path("sweep").glob("*.png")]) == 3  # and the sheet


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--ip-adapter", "plus.safetensors"), "--ip-adapter is MODEL:IMAGE"),
        (("--ip-adapter", "none:red.png"), 'no file "none"'),
        (("--ip-adapter", "plus.safetensors:gone.png"), "gone.png"),
        (("--ip-mask", "mask.png"), "--ip-mask"),
        (("--ip-adapter", "red.png:red.png"), "red.png"),
    ],
)
def test_mistakes_are_one_line(draw: Command, given: tuple[str, ...], words: str) -> None:
    outcome = draw(*given, "-o", "x.png")
    assert outcome.code != 0 and words in outcome.err
    assert outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    assert not Path("x.png").exists()


def test_everything_at_once_is_drawn_again_bit_for_bit(
    draw: Command, command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA, a T2I-Adapter, a picture to begin from and a second pass."""
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder))
    lora = {
        f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.{part}": value
        for part, value in {
            "lora_down.weight": torch.ones(2, 32),
            "lora_up.weight": torch.ones(32, 2),
        }.items()
    }
    save_file(lora, "style.safetensors")
    adapter = T2IAdapter(3, [32, 64], 2, 4, "full_adapter").half()
    save_file(dict(adapter.state_dict()), "sketch.safetensors")
    given = (
        *("--ip-adapter", "plus:red.png:0.5", "--ip-mask", "mask.png", "--lora", "style:0.5"),
        *("--control", "sketch:mask.png:0.7:0..0.6", "--control-mode", "prompt"),
        *("--image", "red.png", "--hires", "1.5", "--strength", "0.9"),
    )
    outcome = draw(*given, "-o", "one.png")
    assert outcome.code == 0, outcome.err
    usual = ("replay", "one.png", "--model", str(tiny.sd1().folder), "--lora", "style:0.5")
    outcome = command(*usual, "-o", "again.png")
    assert outcome.code == 0, outcome.err
    assert pixels("again.png") == pixels("one.png")
    outcome = command(*usual, "--low-memory", "-o", "low.png")
    assert "--low-memory" in outcome.err  # a LoRA is not merged then
    parameters = image_file.read(Path("one.png")).texts["parameters"]
    assert "ControlNet 0" in parameters and "ControlNet 1" in parameters
    outcome = command("info", "sketch.safetensors")
    assert "a T2I-Adapter" in outcome.out and "full, of colour pictures" in outcome.out


def test_a_dry_run_counts_it_with_its_encoder_and_refuses_what_drawing_does(
    draw: Command, folder: Path
) -> None:
    def counted(*more: str) -> int:
        return int(json.loads(draw("--dry-run", "--json", *more).out)["memory"])

    files = [folder / "plus.safetensors", *ip_adapters.encoder_folder().glob("*.safetensors")]
    numbers = sum(value.numel() for file in files for value in load_file(file).values())
    given = ("--ip-adapter", "plus.safetensors:red.png")
    adapter = T2IAdapter(3, [32, 64], 2, 4, "full_adapter")
    save_file(dict(adapter.state_dict()), "sketch.safetensors")
    own = sum(weight.numel() for weight in adapter.parameters())
    both = (*given, *given, "--control", "sketch.safetensors:red.png")
    assert counted(*given) - counted() == 4 * numbers
    assert counted(*both) - counted() == 4 * (numbers + own)
    assert counted("--ip-adapter", f"{given[1]}:0") == counted()  # which loads nothing
    how = ("--control", both[-1], "--preprocess", f"pose:{pose_folder()},{detector_folder()}")
    models = [f for one in (pose_folder(), detector_folder()) for f in one.glob("*.safetensors")]
    kept = sum(value.numel() for file in models for value in load_file(file).values())
    assert counted(*how) - counted() == 4 * (own + kept)
    (folder / "image_encoder").unlink()
    outcome = draw("--dry-run", *given)
    assert outcome.code == 1 and "give its file with --ip-encoder" in outcome.err


def test_low_memory_draws_nearly_the_same(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder))
    adapter = T2IAdapter(3, [32, 64], 2, 4, "full_adapter").half()
    save_file(dict(adapter.state_dict()), "sketch.safetensors")
    given = ("--ip-adapter", "plus:red.png:0.5", "--control", "sketch:mask.png:0.7")
    assert draw(*given, "-o", "one.png").code == 0
    outcome = draw(*given, "--low-memory", "-o", "low.png")
    assert outcome.code == 0, outcome.err
    with Image.open("one.png") as one, Image.open("low.png") as low:
        assert np.abs(np.asarray(one, int) - np.asarray(low, int)).max() <= 2
