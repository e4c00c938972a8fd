"""replay draws pictures again: ours to the byte, others' by what they say."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command
from tests.images.metadata.test_readers import GRAPH
from txt2img.cli.provenance import differences
from txt2img.cli.requests import from_picture
from txt2img.errors import BadRequest
from txt2img.images import image_file
from txt2img.images.record import Origin
from txt2img.pipeline import verify
from txt2img.request.input_image import ImagePaths


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


def test_a_former_default_model_is_told_apart_by_its_hash() -> None:
    then, now = Origin("default", "4567"), Origin("default", "0123")
    [line] = differences([then], now)
    assert line == (
        "the picture is of another version's default model: it has the hash 4567, this one 0123"
    )
    assert verify.differences(then, now) == ("default model 4567 then, 0123 now",)


def test_each_difference_is_reported_once() -> None:
    now = Origin("m", "0123", {"torch": "2", "device": "cpu"})
    then = replace(now, hash="4567", environment={"torch": "1", "device": "cpu"})
    assert differences([now], now) == []
    assert differences([then, then], now) == [
        "the picture's model has the hash 4567, this one 0123",
        'torch was "1", now 2; bytes may differ',
    ]


def save_a1111(name: str, entries: str) -> None:
    """A picture of A1111 with some entries besides its steps, seed and size."""
    texts = PngInfo()
    texts.add_text("parameters", f"a cat\nSteps: 1, Sampler: Euler, Seed: 7, Size: 64x64{entries}")
    Image.new("RGB", (64, 64)).save(name, pnginfo=texts)


@pytest.mark.parametrize("entries", ["", ", Model hash: 45dee52b", ", Model: default"])
@pytest.mark.parametrize("verb", ["replay", "--params-from"])
def test_only_our_own_record_means_the_default_model(
    command: Command, entries: str, verb: str
) -> None:
    save_a1111("c.png", entries)
    outcome = command(verb, "c.png", "--dry-run")
    assert outcome.code == 2
    assert outcome.err == 'Error: "c.png" does not name its model; give --model\n'
    assert " --model MODEL" in command("info", "--command", "c.png").out
    assert command(verb, "c.png", "--model", "default", "--dry-run").code == 0


def test_a_graph_whose_model_is_merged_names_none(command: Command) -> None:
    graph = json.loads(json.dumps(GRAPH))
    graph["3"]["inputs"]["model"] = ["20", 0]
    graph["20"] = {"class_type": "ModelMergeSimple", "inputs": {"model1": ["4", 0], "ratio": 0.5}}
    texts = PngInfo()
    texts.add_text("prompt", json.dumps(graph))
    Image.new("RGB", (64, 64)).save("c.png", pnginfo=texts)
    outcome = command("replay", "c.png", "--dry-run")
    assert (outcome.code, "does not name its model" in outcome.err) == (2, True)


def test_a_model_is_found_by_its_hash(
    command: Command, sd1_folder: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    weights = sd1_folder / "unet" / "diffusion_pytorch_model.safetensors"
    (folder / "models").mkdir()
    model = folder / "models" / "ink.safetensors"
    model.write_bytes(weights.read_bytes())
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    digits = command("models", "hash", "ink").out.split()[0]
    old = sha256(model.read_bytes()[2**20 : 2**20 + 2**16]).hexdigest()[:8]
    for name, entries in (("a.png", f", Model hash: {digits}, Model: foo"), ("b.png", "")):
        save_a1111(name, entries or f", Model hash: {old}")
        request, notes, _ = from_picture(Path(name), {}, ImagePaths())
        assert request.model == str(model)
        assert notes[-1].startswith('its model is "ink" here, by its hash ')
    save_a1111("c.png", ", Model hash: 0123456789, Model: foo")
    with pytest.raises(BadRequest, match='was drawn by the model "foo"'):
        from_picture(Path("c.png"), {}, ImagePaths())


def foreign(name: str, more: str) -> None:
    """A picture of A1111's img2img."""
    texts = PngInfo()
    line = "Steps: 2, Sampler: Euler, CFG scale: 5, Seed: 4, Size: 64x64, Model hash: 0123456789"
    texts.add_text("parameters", f"a cat\n{line}, Denoising strength: 0.6{more}, Version: v1.10.1")
    Image.new("RGB", (64, 64)).save(name, pnginfo=texts)


def test_what_another_programs_picture_began_from_is_found_or_asked_for(
    command: Command, draw: Command, sd1_folder: Path
) -> None:
    line = ("-m", str(sd1_folder), "-q", "-o", "new/")
    Path("old").mkdir()
    foreign("old/plain.png", "")
    outcome = command("replay", "old/plain.png", *line)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        'Error: "old/plain.png" began from a picture that it does not name; give it with --image\n'
    )
    foreign("old/masked.png", ", Mask blur: 4")
    outcome = command("replay", "old/masked.png", *line)
    assert outcome.err.count("\n") == 1 and "give it with --image and --mask" in outcome.err
    foreign("old/named.png", ", Init image hash: c0ffee")
    outcome = command("replay", "old/named.png", *line)
    assert 'from a picture, "c0ffee.png", that is not here' in outcome.err
    Image.linear_gradient("L").resize((64, 64)).save("start.png")
    given = command("replay", "old/plain.png", "--image", "start.png", *line)
    Path("starts").mkdir()
    Path("start.png").rename("starts/c0ffee.png")
    found = command("replay", "old/named.png", "--image-dir", "starts", *line)
    assert (given.code, found.code) == (0, 0)
    first, second = (image_file.read(Path(path)) for path in (given.out + found.out).split())
    assert first.request and second.request and first.request.strength == 0.6
    assert first.request.image and second.request.image
    assert first.request.image.hash == second.request.image.hash
    assert first.pixels_sha256 == second.pixels_sha256
