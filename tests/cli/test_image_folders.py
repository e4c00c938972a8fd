"""Folders of pictures to begin from: a job a file, however it is asked for."""

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Command
from txt2img.images import image_file
from txt2img.request import Request

LEVELS = {"shot2.png": 40, "shot10.png": 90, "Shot1.jpg": 140}


@pytest.fixture
def shots(folder: Path) -> Path:
    """A folder of three pictures, and files that are none."""
    Path("shots").mkdir()
    for name, level in LEVELS.items():
        Image.linear_gradient("L").resize((64, 64)).point(lambda v, k=level: v * k // 255).convert(
            "RGB"
        ).save(Path("shots") / name)
    for other in ("notes.txt", ".hidden.png"):
        (Path("shots") / other).write_text("no picture")
    (Path("shots") / "deeper.png").mkdir()
    return folder


def requests(*paths: str) -> list[Request]:
    """The requests that pictures record."""
    found = [image_file.read(Path(path)).request for path in paths]
    return [request for request in found if request is not None]


def masks(*names: str, folder: str = "masks") -> None:
    """A folder of masks of those names, white in the left half."""
    Path(folder).mkdir(exist_ok=True)
    for name in names:
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        mask.save(Path(folder) / name)


@pytest.mark.usefixtures("shots")
def test_each_picture_of_a_folder_is_drawn_in_natural_order(draw: Command) -> None:
    outcome = draw("a cat", "--image", "shots/", "--seed", "1", "-q", "-o", "new/")
    paths = ["new/Shot1.png", "new/shot2.png", "new/shot10.png"]
    assert (outcome.code, outcome.out.split()) == (0, paths)
    names = [request.image.name for request in requests(*paths) if request.image]
    assert names == ["Shot1.jpg", "shot2.png", "shot10.png"]
    assert len({Path(path).read_bytes() for path in paths}) == 3
    assert draw("a cat", "-i", "shots", "--seed", "1", "-q", "-o", "x.png").out.split()[0] == (
        "x-0001.png"
    )


@pytest.mark.usefixtures("shots")
def test_names_tell_seeds_and_swept_values_apart(draw: Command) -> None:
    line = ("a cat", "-i", "shots", "--seed", "1", "-q", "-o", "new/")
    assert draw(*line, "--count", "2").out.split()[:3] == [
        *("new/Shot1-1.png", "new/Shot1-2.png", "new/shot2-1.png"),
    ]
    swept = draw(*line, "--sweep", "strength=0.5..1:0.5").out.split()
    assert swept[:2] == ["new/Shot1-strength0.5.png", "new/Shot1-strength1.png"]
    assert swept[-2:] == ["new/sheet.png", "new/sheet.csv"]
    Path("p.txt").write_text("a cat\na dog\n")
    outcome = draw("--prompts", "p.txt", *line[1:])
    assert outcome.out.split()[0] == "new/Shot1-a-cat.png"


@pytest.mark.usefixtures("shots")
def test_a_dry_run_names_what_a_run_writes(draw: Command) -> None:
    line = ("a cat", "-i", "shots", "--seed", "1", "-q", "-o", "new/")
    said = [row.split("\t")[0] for row in draw(*line, "--dry-run").out.splitlines()]
    assert said == draw(*line).out.split()


@pytest.mark.usefixtures("shots")
def test_shards_and_resumed_runs_are_together_the_whole(draw: Command) -> None:
    line = ("a cat", "-i", "shots", "--seed", "1", "-q")
    draw(*line, "-o", "whole/")
    said = [draw(*line, "-o", "new/", "--shard", f"{i}/2").out.split() for i in (2, 1)]
    assert [len(paths) for paths in said] == [1, 2]
    Path("new/shot2.png").unlink()
    assert draw(*line, "-o", "new/", "--resume").out == "new/shot2.png\n"
    assert left("new") == left("whole")


def left(folder: str) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.usefixtures("shots")
def test_masks_beside_pictures_are_taken_and_told(draw: Command) -> None:
    masks("shot2_mask.png", "shot10_mask.png", folder="shots")
    outcome = draw("a cat", "-i", "shots", "--seed", "1", "-o", "new/")
    assert outcome.out.split() == ["new/Shot1.png", "new/shot2.png", "new/shot10.png"]
    assert '"shots": 2 of its pictures have a mask beside them' in outcome.err
    assert "1 have none" in outcome.err
    found = [request.mask and request.mask.name for request in requests(*outcome.out.split())]
    assert found == [None, "shot2_mask.png", "shot10_mask.png"]


@pytest.mark.usefixtures("shots")
def test_what_is_wrong_with_a_folder_is_one_line(draw: Command) -> None:
    Path("empty").mkdir()
    outcome = draw("a cat", "-i", "empty", "--seed", "1")
    assert outcome.code == 1
    assert outcome.err == 'Error: "empty" has no pictures, such as .png or .jpg files\n'
    outcome = draw("a cat", "-i", "shots", "--seed", "1", "-o", "shots/")
    assert outcome.code == 2 and 'among the pictures of "shots"' in outcome.err
    Path("shots/shot3.png").write_text("no picture")
    outcome = draw("a cat", "-i", "shots", "--seed", "1", "-o", "new/")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert 'shots/shot3.png" is no picture' in outcome.err
    assert not Path("new").exists()
    outcome = draw("a cat", "-i", "shots", "--seed", "1", "-o", "new/", "--on-error", "skip")
    assert (outcome.code, len(outcome.out.split())) == (3, 3)
    assert outcome.err.count("Error") == 1


@pytest.mark.usefixtures("shots")
def test_a_folder_of_one_picture_goes_to_standard_output(draw: Command) -> None:
    outcome = draw("a cat", "-i", "shots", "--seed", "1", "-o", "-")
    assert outcome.code == 2 and "one picture" in outcome.err
    for name in ("shot2.png", "shot10.png"):
        Path("shots", name).unlink()
    outcome = draw("a cat", "-i", "shots", "--seed", "1", "-o", "-")
    assert outcome.code == 0 and outcome.out[1:4] == "PNG"


@pytest.mark.usefixtures("shots")
def test_each_picture_has_its_mask_of_a_folder(draw: Command) -> None:
    masks("shot2.png", "Shot1_mask.png")
    line = ("a cat", "-i", "shots", "--mask", "masks", "--seed", "1", "-o", "new/")
    outcome = draw(*line)
    assert (outcome.code, outcome.err) == (
        1,
        'Error: no mask for "shot10.png" in "masks": name it "shot10.png" or "shot10_mask.png"\n',
    )
    skipped = draw(*line, "--on-error", "skip", "-q")
    assert (skipped.code, skipped.err) == (3, outcome.err)
    assert skipped.out.split() == ["new/Shot1.png", "new/shot2.png"]
    for path, name in zip(skipped.out.split(), ("Shot1.jpg", "shot2.png"), strict=True):
        with Image.open(path) as drawn, Image.open(f"shots/{name}") as before:
            right = (52, 0, 64, 64)  # beyond the blur of the mask's border
            same = before.convert("RGB").crop(right).tobytes()
            assert drawn.crop(right).tobytes() == same
            assert drawn.tobytes() != before.convert("RGB").tobytes()
    one = draw("a cat", "-i", "shots/shot2.png", "--mask", "masks", "--seed", "1", "-o", "one.png")
    assert one.code == 0
    assert Path("one.png").read_bytes() == Path("new/shot2.png").read_bytes()
    whole = draw("a cat", "-i", "shots", "--mask", "masks/shot2.png", "--seed", "1", "-o", "all/")
    assert len(whole.out.split()) == 3


@pytest.mark.usefixtures("shots")
def test_a_prompt_file_names_pictures_that_records_find_again(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    masks("m.png", folder="lists")
    held = base64.b64encode(Path("shots/shot2.png").read_bytes()).decode()
    lines = [
        {"prompt": "a cat", "image": "../shots/shot2.png", "strength": 1, "seed": 3},
        {"prompt": "a dog", "init_images": [held], "denoising_strength": 1, "seed": 3},
        {"prompt": "a fox", "image": "../shots/shot2.png", "mask": "m.png", "mask_blur": 2},
    ]
    Path("lists/p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    line = ("--prompts", "lists/p.jsonl", "--seed", "1", "-q", "-o", "new/")
    outcome = draw(*line)
    assert outcome.code == 0
    cat, dog, fox = outcome.out.split()
    assert draw(*line, "--resume").out == ""
    starts = [request.image and request.image.hash for request in requests(cat, dog, fox)]
    assert len(set(starts)) == 1
    model = ("-m", str(sd1_folder))
    outcome = command("verify", cat, *model)
    assert outcome.code == 1 and '"shot2.png"' in outcome.err and "--image-dir" in outcome.err
    both = ("--image-dir", "shots", "--image-dir", "lists")
    outcome = command("verify", cat, dog, fox, *model, *both, "-q")
    assert outcome.out == "".join(f"{path}: identical\n" for path in (cat, dog, fox))
    outcome = command("replay", fox, *model, *both, "-q", "-o", "again.png")
    assert Path("again.png").read_bytes() == Path(fox).read_bytes()
    Path("lists/q.txt").write_text("a cat --image gone.png\na cat --image ../shots --t 1\n")
    outcome = draw("--prompts", "lists/q.txt", "--seed", "1", "-o", "q/", "--on-error", "skip")
    assert (outcome.code, len(outcome.out.split())) == (3, 3)
    assert outcome.err.count("\n") == 1 and 'cannot read "lists/gone.png"' in outcome.err


@pytest.mark.usefixtures("shots")
def test_a_sweep_takes_the_pictures_of_a_folder_each_with_its_mask(draw: Command) -> None:
    masks("Shot1.png", "shot2.png", "shot10.png")
    swept = ("--sweep", "image=shots/", "--sweep", "strength=0.3,0.6")
    outcome = draw("a cat", *swept, "--mask", "masks/", "--seed", "1", "-q", "-o", "new/")
    assert outcome.code == 0, outcome.err
    *drawn, sheet = [path for path in outcome.out.split() if path.endswith(".png")]
    asked = [(str(one.image), str(one.mask), one.strength) for one in requests(*drawn)]
    assert asked == [
        (name, f"{Path(name).stem}.png", strength)
        for strength in (0.3, 0.6)
        for name in ("Shot1.jpg", "shot2.png", "shot10.png")
    ]
    with Image.open(sheet) as image:
        assert image.width > 3 * 64  # a column for each picture
    Path("empty").mkdir()
    assert '"empty" has no pictures' in draw("a cat", "--sweep", "image=empty").err
    one = draw("a cat", "--sweep", "image=shots/shot2.png", "--strength", "0.3", "--seed", "1")
    assert one.code == 0 and "changes nothing" not in one.err
