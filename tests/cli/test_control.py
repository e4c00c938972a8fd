"""--control from the command line: records, replay by name and hash, dry runs, mistakes, sweeps."""

import json
import shutil
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import Command
from tests.support import tiny_control
from txt2img.images import image_file
from txt2img.weights.registry.hashes import model_hash


@pytest.fixture
def control(folder: Path) -> str:
    """A ControlNet and a picture in the working folder, as the option names them."""
    (folder / "nets").mkdir()
    shutil.copy(tiny_control.control("sd1").file, folder / "nets" / "edges.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "hint.png")
    up = {"lora_unet_x.lora_up.weight": torch.ones(4, 2)}
    save_file(up | {"lora_unet_x.lora_down.weight": torch.ones(2, 4)}, "style.safetensors")
    key = "ip_adapter.1.to_{}_ip.weight".format
    save_file({key(part): torch.ones(2, 2) for part in "kv"}, "plus.safetensors")
    return "nets/edges.safetensors:hint.png"


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.array(image)


def test_a_record_names_it_and_is_replayed_by_name_or_hash(
    draw: Command,
    command: Command,
    control: str,
    sd1_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = draw("a cat", "--seed", "7", "-q", "--control", f"{control}:0.7:0..0.5", "-o", "a.png")
    assert drawn.code == 0
    info = image_file.read(Path("a.png"))
    digits = model_hash([Path("nets/edges.safetensors")])
    assert (
        f'ControlNet 0: "Module: none, Model: edges [{digits[:8]}], Weight: 0.7, '
        "Resize Mode: Crop and resize, Guidance Start: 0, Guidance End: 0.5, "
        "Control Mode: Balanced" in info.texts["parameters"]
    )
    assert "nets" not in "".join(info.texts.values())  # no path
    model = ("-m", str(sd1_folder))
    lost = command("verify", "a.png", *model)
    assert lost.code == 1 and lost.err.count("\n") == 1 and digits in lost.err
    assert command("verify", "a.png", *model, "--lora-dir", "nets").out == "a.png: identical\n"
    Path("nets/edges.safetensors").rename("nets/renamed.safetensors")
    monkeypatch.setenv("TXT2IMG_MODELS", str(Path("nets").resolve()))
    model_hash([Path("nets/renamed.safetensors").resolve()])  # as after any drawing with it
    assert command("replay", "a.png", *model, "-o", "b.png", "-q").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_dry_run_counts_it_and_refuses_what_drawing_does(
    draw: Command, control: str, xl_folder: Path
) -> None:
    plain, with_it = (
        json.loads(draw("a cat", "--seed", "7", "--dry-run", "--json", *more).out)["memory"]
        for more in ((), ("--control", control))
    )
    network = tiny_control.control("sd1").network
    # Filters are kept as they are stored, in float32 here.
    assert with_it - plain == 4 * sum(weight.numel() for weight in network.parameters())
    for dry in ((), ("--dry-run",)):
        other = ("a cat", "-q", "-m", str(xl_folder), "--control", control, *dry)
        refused = draw(*other, "-o", "x.png")
        assert refused.code == 1 and refused.err.count("\n") == 1
        assert '"edges.safetensors" is made for another model' in refused.err
    assert not Path("x.png").exists()


@pytest.fixture(scope="session")
def xl_folder() -> Path:
    return tiny_control.MODELS["xl"]().folder


@pytest.mark.parametrize(
    ("text", "more", "code", "message"),
    [
        ("edges", (), 2, "--control is MODEL:IMAGE[:WEIGHT[:START..END]]"),
        ("nowhere:hint.png", (), 1, 'no file "nowhere"'),
        ("nets/edges.safetensors:nowhere.png", (), 1, 'cannot read "nowhere.png"'),
        ("nets/edges.safetensors:nets/edges.safetensors", (), 1, "is no picture"),
        ("nets/edges.safetensors@depth:hint.png", (), 2, "is no Union model"),
        ("nets/edges.safetensors:hint.png:nan", (), 2, '"nan" is no WEIGHT[:START..END]'),
        ("nets/edges.safetensors:http://h/a.png", (), 1, '"http://h/a.png" is an address'),
        ("style.safetensors:hint.png", (), 1, "is a LoRA, no ControlNet; give it with --lora"),
        ("plus.safetensors:hint.png", (), 1, "an IP-Adapter, no ControlNet; give it with --ip-"),
        ("hint.png:hint.png", (), 1, "hint.png is a picture, not weights"),
        ("{c}", ("--control-mode", "best"), 2, 'no control mode "best"; choose from balanced'),
        ("{c}", ("--sweep", "control-weight=1,x"), 2, "a weight must be a number"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    draw: Command, control: str, text: str, more: tuple[str, ...], code: int, message: str
) -> None:
    text = text.replace("{c}", control)
    outcome = draw("a cat", "-q", "--seed", "7", "--control", text, *more, "-o", "out/")
    assert (outcome.code, outcome.err.count("\n")) == (code, 1)
    assert message in outcome.err
    assert not list(Path().glob("**/a-cat*"))


def test_other_programs_options_are_its_parts(draw: Command, control: str) -> None:
    def drawn(name: str, *words: str) -> bytes:
        outcome = draw("a cat", "--seed", "7", "-q", *words, "-o", name)
        assert outcome.code == 0, outcome.err
        return pixels(name).tobytes()

    model, picture = control.split(":")
    Image.new("RGB", (64, 64), "white").save("white.png")
    first = drawn("a.png", "--control", f"{control}:0.5")
    apart = ("--control-image", picture, "--control-strength", "0.5")
    assert drawn("b.png", "--controlnet", model, *apart) == first
    both = ("--control", model, "--control", model)
    second = drawn("c.png", "--control", control, "--control", f"{model}:white.png")
    apart = ("--control-image", picture, "--controlnet-image", "white.png")
    assert drawn("d.png", *both, *apart) == second != first
    mode = ("--control", control, "--control-mode", "ControlNet is more important")
    assert drawn("e.png", *mode) == drawn("f.png", *mode[:3], "control")


def test_its_picture_may_come_on_standard_input(
    draw: Command, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, picture = control.split(":")
    content = Path(picture).read_bytes()
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content)))
    assert draw("a cat", "--seed", "7", "-q", "--control", f"{model}:-", "-o", "a.png").code == 0
    assert draw("a cat", "--seed", "7", "-q", "--control", control, "-o", "b.png").code == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content)))
    both = draw("a cat", "-q", "--control", f"{model}:-", "--image", "-")
    assert both.code == 2 and "two pictures cannot both come on standard input" in both.err


def test_again_draws_other_pictures_with_it_though_the_last_were_resumed(
    draw: Command, command: Command, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("state").resolve()))
    given = (
        "--seed",
        "7",
        "-q",
        "--control",
        control,
        "--resume",
        "--shard",
        "1/2",
        "--count",
        "2",
    )
    assert draw("a cat", *given, "-o", "out/").code == 0
    done = command("again", "--control-weight", "0.25")
    assert done.code == 0 and done.out.count("\n") == 2, done.err
    for line in done.out.splitlines():
        request = image_file.read(Path(line)).request
        assert request is not None and request.control_weight == "0.25"


def test_a_sweep_over_its_weight_begins_with_the_picture_without_it(
    draw: Command, control: str
) -> None:
    sweep = ("--sweep", "control-weight=0,1", "--control", control, "-o", "out/")
    assert draw("a cat", "--seed", "7", "-q", *sweep).code == 0
    names = [f"out/a-cat-7-control-weight{weight}.png" for weight in (0, 1)]
    draw("a cat", "--seed", "7", "-q", "-o", "plain.png")
    assert np.array_equal(pixels("plain.png"), pixels(names[0]))
    assert not np.array_equal(pixels("plain.png"), pixels(names[1]))


def test_what_is_part_of_a_model_is_no_model(draw: Command, control: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_control.control("sd1").folder, "control")
    for name, line in {
        "plus.safetensors": "this is an IP-Adapter; a whole SD 1",
        "nets/edges.safetensors": "this is a ControlNet; a whole SD 1",
        "control": 'the folder of a single network, a "ControlNetModel"; that of a whole model',
    }.items():
        outcome = draw("a cat", "-q", "-m", name)
        assert outcome.code == 1 and line in outcome.err
    adapter = draw("a cat", "-q", "--ip-adapter", control)
    assert "is a ControlNet, no IP-Adapter; give it with --control" in adapter.err
