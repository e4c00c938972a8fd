"""generate draws the requested picture under the requested name, and prints its path alone."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Command, Outcome
from tests.support import picture_files
from txt2img.images import image_file
from txt2img.images.record import Origin
from txt2img.request.interval import Interval
from txt2img.request.request import Request


def paths(outcome: Outcome) -> list[str]:
    """The paths that a successful command printed."""
    assert outcome.code == 0, outcome.err
    return outcome.out.splitlines()


def test_a_prompt_is_drawn_and_its_path_printed(draw: Command) -> None:
    assert paths(draw("red apple, 3d emoji", "--seed", "42")) == ["red-apple-3d-emoji-42.png"]
    with Image.open("red-apple-3d-emoji-42.png") as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_the_same_line_draws_the_same_bytes(draw: Command) -> None:
    lines = [("a", "--seed", seed, "-o", name) for seed, name in zip("112", "xyz", strict=True)]
    x, y, z = (Path(paths(draw(*line))[0]).read_bytes() for line in lines)
    assert x == y != z


def test_a_random_seed_is_reported(draw: Command) -> None:
    first, second = draw("a"), draw("a")
    assert first.err.startswith("seed ")
    seed = int(first.err.split()[1])
    assert paths(first) == [f"a-{seed}.png"]
    assert first.out != second.out
    again = Path(paths(draw("a", "--seed", str(seed), "-o", "b"))[0])
    assert again.read_bytes() == Path(first.out.strip()).read_bytes()


def test_a_seed_of_minus_one_is_a_random_one(command: Command, folder: Path) -> None:
    line = ("a", "--seed", "-1", "--dry-run", "--json", "-m", "default")
    seeds = {json.loads(command(*line).out)["seed"] for _ in range(2)}
    assert len(seeds) == 2
    request, origin = Request("a", seed=4), Origin("m", "0123456789")
    picture_files.save(Image.new("RGB", (64, 64)), folder / "x.png", request, origin)
    for again in (("--params-from", "x.png"), ("replay", "x.png")):
        outcome = command(*again, "--seed", "-1", "--dry-run", "--json", "-m", "default")
        drawn = json.loads(outcome.out)["seed"]
        assert drawn != 4 and f"seed {drawn}" in outcome.err


def test_a_given_seed_needs_no_telling(draw: Command) -> None:
    assert draw("a", "--seed", "1").err == ""


def test_count_draws_the_next_seeds_at_any_batch_size(draw: Command) -> None:
    many = paths(draw("a", "--count", "3", "--seed", "42", "-o", "m/"))
    assert many == [f"m/a-{seed}.png" for seed in (42, 43, 44)]
    [alone] = paths(draw("a", "--seed", "43"))
    batch = paths(draw("a", "--count", "3", "--seed", "42", "-o", "b/", "--batch-size", "2"))
    assert Path(alone).read_bytes() == Path(many[1]).read_bytes() == Path(batch[1]).read_bytes()


def test_a_samplers_old_name_says_its_schedule_too(draw: Command) -> None:
    line = ("a", "--seed", "1", "--sampler")
    [old] = paths(draw(*line, "DPM++ 2M Karras", "-o", "old"))
    [new] = paths(draw(*line, "dpm++2m", "--schedule", "karras", "-o", "new"))
    assert Path(old).read_bytes() == Path(new).read_bytes()


def test_several_pictures_go_to_a_folder_without_a_slash(draw: Command) -> None:
    assert paths(draw("a", "--seed", "1", "--count", "2", "-o", "m")) == ["m/a-1.png", "m/a-2.png"]


def test_guidance_in_a_part_of_the_way_is_recorded_and_repeated(draw: Command) -> None:
    [first] = paths(draw("a", "--seed", "1", "--cfg-interval", "0.2..1", "-o", "x"))
    assert image_file.read(Path(first)).request.cfg_interval == Interval(0.2, 1.0)
    [again] = paths(draw("--params-from", first, "-o", "y"))
    assert Path(again).read_bytes() == Path(first).read_bytes()


def test_quiet_says_nothing_but_paths(draw: Command) -> None:
    assert draw("a", "-q").err == ""


def test_json_says_all_about_each_picture(draw: Command) -> None:
    outcome = draw("ä\x7f", "--json", "--count", "2", "--seed", "1", "--sampler", "Euler a")
    first, second = (json.loads(line) for line in paths(outcome))
    assert outcome.out.isascii()
    assert "\x7f" not in outcome.out
    assert first["path"] == "ä-1.png" and Path(first["path"]).exists()
    wanted = {"prompt": "ä\x7f", "seed": 1, "size": [64, 64], "steps": 2, "sampler": "euler_a"}
    assert wanted.items() <= first.items()
    assert first["model"] == "tiny-sd1" and len(first["hash"]) == 10
    assert second["seed"] == 2


def test_generate_draws_prompts_that_are_commands(command: Command, draw: Command) -> None:
    assert paths(draw("generate", "train", "--seed", "1")) == ["train-1.png"]


def test_an_empty_prompt_is_drawn(draw: Command) -> None:
    assert paths(draw("", "--seed", "1")) == ["picture-1.png"]


def test_options_reach_the_picture(draw: Command) -> None:
    words = "--cfg 3 --cfg-rescale 0.7 --eta 0.5 --sampler ddim --schedule trailing --seed 5"
    [path] = paths(draw("a", "-n", "blurry", "-H", "72", *words.split()))
    request = image_file.read(Path(path)).request
    assert request is not None
    assert (request.width, request.height, request.steps) == (64, 72, 2)
    assert (request.cfg, request.cfg_rescale, request.eta, request.seed) == (3.0, 0.7, 0.5, 5)
    assert (request.negative, request.sampler, request.schedule) == ("blurry", "ddim", "trailing")


def test_a_picture_is_repeated_with_options_replaced(draw: Command) -> None:
    [first] = paths(draw("a red apple", "-n", "x", "--seed", "7", "--sampler", "heun"))
    [again] = paths(draw("--params-from", first))
    assert again == "a-red-apple-7-2.png"
    assert Path(again).read_bytes() == Path(first).read_bytes()
    [other] = paths(draw("--params-from", first, "--seed", "8"))
    request = image_file.read(Path(other)).request
    assert request is not None
    assert (request.prompt, request.seed, request.sampler) == ("a red apple", 8, "heun")
    assert paths(draw("a pear", "--params-from", first)) == ["a-pear-7.png"]


def test_a_picture_of_another_model_needs_its_name(command: Command, draw: Command) -> None:
    [first] = paths(draw("a", "--seed", "7"))
    outcome = command("--params-from", first)
    assert outcome.code == 2
    assert outcome.err == f'Error: "{first}" was drawn by the model "tiny-sd1"; give its --model\n'


def test_another_hash_is_reported(draw: Command) -> None:
    [first] = paths(draw("a", "--seed", "7"))
    changed = Origin("tiny-sd1", "0123456789")
    request = image_file.read(Path(first)).request
    assert request is not None
    picture_files.save(Image.new("RGB", (64, 64)), Path("x.png"), request, changed)
    outcome = draw("--params-from", "x.png")
    assert outcome.err.startswith("Note: the picture's model has the hash 0123456789, this one ")


def test_prompts_of_a_file_are_drawn_with_their_options(draw: Command) -> None:
    Path("p.txt").write_text("# list\na dog's bone\n\na pear --seed 7 --cfg 2\n")
    outcome = draw("--prompts", "p.txt", "--seed", "3", "-o", "{index}-{prompt}-{seed}")
    assert paths(outcome) == ["0001-a-dog-s-bone-3.png", "0002-a-pear-7.png"]
    assert outcome.err == ""


def test_each_line_without_a_seed_gets_a_random_one(draw: Command) -> None:
    Path("p.txt").write_text("a\nb\nc --seed 7\n")
    outcome = draw("--prompts", "p.txt")
    first, second = outcome.err.removeprefix("a random seed for each line: ").strip().split(", ")
    assert first != second
    assert paths(outcome) == [f"a-{first}.png", f"b-{second}.png", "c-7.png"]


def test_a_random_seed_of_a_line_is_its_own_beside_a_given_one(draw: Command) -> None:
    Path("p.txt").write_text("a\nb --seed -1\n")
    outcome = draw("--prompts", "p.txt", "--seed", "3")
    seed = outcome.err.removeprefix("seed ").strip()
    assert seed != "3" and paths(outcome) == ["a-3.png", f"b-{seed}.png"]


def test_prompts_come_from_standard_input(draw: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a", "seed": 9}')))
    assert paths(draw("--prompts", "-")) == ["a-9.png"]


def test_the_model_is_loaded_once(draw: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from txt2img.weights import load

    calls: list[str] = []
    real: Callable[..., object] = load.load

    def counted(name: str, device: object, **more: object) -> object:
        calls.append(name)
        return real(name, device, **more)

    monkeypatch.setattr(load, "load", counted)
    Path("p.txt").write_text("a\nb\n")
    assert len(paths(draw("--prompts", "p.txt"))) == 2
    assert len(calls) == 1


def test_a_prompt_that_other_programs_misread_is_reported(draw: Command) -> None:
    outcome = draw("a\nNegative prompt: b", "--seed", "1")
    assert outcome.err.startswith("Note: a line of the prompt starts with")
    assert len(paths(outcome)) == 1
