"""replay draws pictures again: ours to the byte, others' by what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command
from tests.images.metadata.test_readers import GRAPH
from txt2img.cli.provenance import differences
from txt2img.images import image_file
from txt2img.images.record import Origin


def test_our_pictures_come_back_to_the_byte(
    command: Command, draw: Command, sd1_folder: Path
) -> None:
    assert draw("a cat", "-q", "--seed", "7", "--count", "2", "-o", "old/").code == 0
    old = sorted(Path("old").iterdir())
    outcome = command("replay", *map(str, old), "-q", "-m", str(sd1_folder), "-o", "new/")
    assert (outcome.code, outcome.err) == (0, "")
    new = sorted(Path("new").iterdir())
    assert [path.name for path in new] == [path.name for path in old]
    assert [path.read_bytes() for path in new] == [path.read_bytes() for path in old]
    assert outcome.out.split() == [str(path) for path in new]


def save_graph(name: str) -> None:
    """A picture of ComfyUI's without LoRAs, 64x64 in one step."""
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"] |= {"model": ["4", 0], "steps": 1}
    graph["5"]["inputs"] |= {"width": 64, "height": 64, "batch_size": 2}
    texts = PngInfo()
    texts.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (64, 64)).save(name, pnginfo=texts)


def test_another_programs_picture_is_drawn_as_it_says(command: Command, sd1_folder: Path) -> None:
    save_graph("c.png")
    outcome = command("replay", "c.png", "-m", str(sd1_folder), "--seed", "3", "-o", "x.png")
    assert (outcome.code, outcome.out) == (0, "x.png\n")
    assert "Note: it was one of 2 drawn together" in outcome.err
    request = image_file.read(Path("x.png")).request
    assert request and (request.prompt, request.negative, request.seed) == ("a cat", "blurry", 3)


def test_a_dry_run_lists_what_would_be_drawn(command: Command) -> None:
    save_graph("c.png")
    outcome = command("replay", "c.png", "c.png", "-m", "default", "--dry-run", "--json")
    assert outcome.code == 0
    assert [json.loads(line)["seed"] for line in outcome.out.splitlines()] == [42, 42]


@pytest.mark.parametrize("form", ["--command", "--a1111", "--json"])
def test_info_says_another_programs_picture_in_every_form(command: Command, form: str) -> None:
    save_graph("c.png")
    said = command("info", form, "c.png").out
    assert "a cat" in said and "42" in said and "None" not in said


def test_a_model_that_is_not_known_is_asked_for(command: Command) -> None:
    save_graph("c.png")
    outcome = command("replay", "c.png")
    assert outcome.code == 2 and 'drawn by the model "v1-5"; give its --model' in outcome.err
    Image.new("RGB", (8, 8)).save("bare.png")
    assert "does not say how it was drawn" in command("replay", "bare.png").err


def test_each_difference_is_reported_once() -> None:
    now = Origin("m", "0123", {"torch": "2", "device": "cpu"})
    then = replace(now, hash="4567", environment={"torch": "1", "device": "cpu"})
    assert differences([now], now) == []
    assert differences([then, then], now) == [
        "the picture's model has the hash 4567, this one 0123",
        'torch was "1", now 2; bytes may differ',
    ]
