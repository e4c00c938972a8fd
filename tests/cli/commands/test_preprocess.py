"""preprocess makes the maps of files, by the same rules of names and folders as upscale."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands.test_upscale import picture
from tests.conftest import Command
from tests.support import tiny_control, tiny_transformers
from tests.support.annotators import depth_folder, detector_folder, pose_folder
from txt2img.images import image_file

pytest.importorskip("cv2")


def test_a_folder_becomes_maps_of_the_same_sizes_once(command: Command) -> None:
    Path("in").mkdir()
    picture("in/b.png", "RGBA")
    picture("in/a.png", parameters="a cat\nSteps: 20, Sampler: Euler, Seed: 1, Size: 20x12")
    assert command("preprocess", "in/").out == "in/a-canny.png\nin/b-canny.png\n"
    assert command("preprocess", "in/", "--resume").out == ""  # nor are maps preprocessed
    assert command("preprocess", "in", "-p", "blur:3", "-o", "m/").out.split() == [
        "m/a-blur.png",
        "m/b-blur.png",
    ]
    info = image_file.read(Path("m/a-blur.png"))
    assert (info.width, info.height, info.request) == (20, 12, None)  # no record would draw it
    assert info.texts == {"postprocessing": 'Preprocessor: "blur:3"'}
    with Image.open("in/a-canny.png") as edges:
        assert edges.mode == "RGB" and {*np.unique(edges)} <= {0, 255}


def test_a_models_map_is_recorded_by_its_name(command: Command) -> None:
    picture("a.png", size=(20, 16))
    outcome = command("preprocess", "a.png", "-p", f"depth:{depth_folder()}", "--json")
    record = json.loads(outcome.out)
    assert (record["path"], record["size"]) == ("a-depth.png", [20, 16])
    assert (record["preprocess"], len(record["hash"])) == ("depth:dpt", 10)
    assert image_file.read(Path("a-depth.png")).texts == {
        "postprocessing": 'Preprocessor: "depth:dpt"'
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-p", "openpose"], "the preprocessor pose needs a model for pose estimation"),
        (["-p", f"pose:{pose_folder()},nope"], '--preprocess pose: no file "nope"'),
        (["-p", f"pose:{pose_folder()},a.png"], "pose takes a folder of transformers"),
        (["-p", "canny:1,2,3"], "canny takes LOW, HIGH; got"),
        (["-p", "depth"], "the preprocessor depth needs a model for depth estimation"),
        (["-p", "depth:nope"], '--preprocess depth: no file "nope"'),
        (["-p", "depth:a.png"], "depth takes a folder of transformers"),
        (["b.png", "-o", "-"], "-o - writes one picture to standard output"),
    ],
)
def test_what_cannot_be_is_a_line(command: Command, words: list[str], line: str) -> None:
    picture("a.png")
    outcome = command("preprocess", "a.png", *words)
    assert outcome.code in (1, 2) and outcome.err.startswith(f"Error: {line}"), outcome.err
    assert outcome.err.count("\n") == 1 and [p.name for p in Path().iterdir()] == ["a.png"]


def test_a_pipe_needs_no_torch(folder: Path) -> None:
    picture("a.png")
    script = (
        "import runpy, sys\ntry:\n    runpy.run_module('txt2img', run_name='__main__')\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "preprocess", "-", "-p", "invert", "-o", "-"],
        input=Path("a.png").read_bytes(),
        capture_output=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == b"False"
    with Image.open(BytesIO(done.stdout)) as image, Image.open("a.png") as given:
        assert np.array_equal(np.array(image), 255 - np.array(given))


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.array(image)


@pytest.mark.parametrize("how", ["canny:40,120", "depth", "pose"])
def test_a_control_follows_the_map_that_the_command_shows(
    draw: Command, command: Command, sd1_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    Image.linear_gradient("L").resize((64, 64)).rotate(30).convert("RGB").save("photo.png")
    control, model = tiny_control.control("sd1").folder, depth_folder()
    models = {"depth": [model], "pose": [pose_folder(), detector_folder()]}.get(how, [])
    named = ":".join([how, *[",".join(map(str, models))] * bool(models)])
    recorded = ":".join([how, *[",".join(one.name for one in models)] * bool(models)])
    command("preprocess", "photo.png", "-p", named, "-o", "map.png")
    rest = ("--seed", "7", "--steps", "2", "-W", "64", "-H", "64", "-q")
    made = draw("a cat", "--control", f"{control}:photo.png", "--preprocess", named, *rest,
                "-o", "a.png")  # fmt: skip
    assert made.code == 0, made.err
    draw("a cat", "--control", f"{control}:map.png", *rest, "-o", "b.png")
    draw("a cat", "--control", f"{control}:photo.png", *rest, "-o", "c.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))
    request = image_file.read(Path("a.png")).request
    assert request and request.controls[0].image.name == "photo.png"
    [preprocess] = request.preprocess
    assert str(preprocess) == recorded
    assert len(preprocess.hash) == (10 if models else 0)
    monkeypatch.setenv("TXT2IMG_MODELS", f"{control.parent}:{model.parent}")
    verified = command("verify", "a.png", "-m", str(sd1_folder))
    assert verified.out == "a.png: identical\n", verified.err
    by_name = ("--control", f"{control.name}:photo.png", "--preprocess", str(preprocess))
    assert draw("a cat", *by_name, *rest, "-o", "d.png").code == 0  # folders, by their names
    assert np.array_equal(pixels("d.png"), pixels("a.png"))
    wrong = draw("a cat", "--control", f"{control}:photo.png", *["--preprocess", "gray"] * 3)
    assert "3 times --preprocess for 1 ControlNets" in wrong.err and wrong.code == 2


def test_a_pose_without_a_detector_says_that_it_is_of_one_person(command: Command) -> None:
    picture("a.png", size=(20, 16))
    outcome = command("preprocess", "a.png", "-p", f"pose:{pose_folder()}")
    assert outcome.out == "a-pose.png\n"
    assert "the whole picture is taken for one person; pose:MODEL,DETECTOR" in outcome.err
    both = f"pose:{pose_folder()},{detector_folder()}"
    assert "one person" not in command("preprocess", "a.png", "-p", both, "-o", "b.png").err
    assert image_file.read(Path("b.png")).texts == {
        "postprocessing": 'Preprocessor: "pose:vitpose-1-17,yolos-person"'
    }


def test_models_that_follow_a_picture_follow_its_map(command: Command, sd1_folder: Path) -> None:
    Image.linear_gradient("L").resize((64, 64)).rotate(30).convert("RGB").save("photo.png")
    command("preprocess", "photo.png", "-p", "canny:5,9", "-o", "map.png")
    rest = ("-m", str(tiny_transformers.flux_depth().folder), "--seed", "7", "--steps", "2", "-q")
    made = command("a cat", "-i", "photo.png", "--preprocess", "canny:5,9", *rest, "-o", "a.png")
    assert made.code == 0, made.err
    command("a cat", "-i", "map.png", *rest, "-o", "b.png")
    command("a cat", "-i", "photo.png", *rest, "-o", "c.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))
    alone = command("a cat", "-m", str(sd1_folder), "--preprocess", "canny")
    assert alone.code == 2 and "which is missing" in alone.err
