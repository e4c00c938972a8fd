"""--tile, from the command line into a picture and out of its record again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command
from txt2img.images import image_file
from txt2img.request.fields import Tile


def pixels(name: str) -> np.ndarray:
    """A picture's pixels as numbers."""
    return np.asarray(Image.open(name)).astype(float)


def a1111(name: str) -> str:
    """A picture's text in A1111's form."""
    with Image.open(name) as picture:
        return str(picture.info["parameters"])


def test_a_record_and_a1111s_text_say_it_and_replay_obeys(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    drawn = draw("a", "--seed", "1", "--tile", "xy", "-o", "a.png")
    assert drawn.code == 0
    assert draw("b", "--seed", "1", "--tile", "none", "-o", "b.png").code == 0
    info = image_file.read(Path("a.png"))
    assert info.request and info.request.to_json()["tile"] == "xy"
    assert ", Tiling: True, " in a1111("a.png") and "Tiling" not in a1111("b.png")
    assert command("verify", "a.png", "-m", str(sd1_folder)).code == 0
    assert draw("--params-from", "a.png", "-o", "c.png").code == 0
    assert (pixels("c.png") == pixels("a.png")).all()
    assert draw("--params-from", "a.png", "--tile", "none", "-o", "d.png").code == 0
    assert (pixels("d.png") != pixels("a.png")).any()


def test_a_line_of_a_prompt_file_and_a_sweep_choose_axes(draw: Command) -> None:
    Path("p.txt").write_text("a --seed 1 --tile x\n--prompt a --seed 2 --tiling true\n")
    for arguments in (("--prompts", "p.txt"), ("a", "--seed", "3", "--sweep", "tile=none,y")):
        assert draw(*arguments, "-o", "out/{seed}-{index}.png").code == 0
    requests = [image_file.read(path).request for path in sorted(Path("out").glob("?-*.png"))]
    assert [request and request.tile for request in requests] == [Tile.X, Tile.XY, None, Tile.Y]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tile", "z"), 'no tile "z"; choose from none, x, y, xy'),
        (("--tile", "x", "-W", "96"), "width must be a multiple of 64, got 96; the nearest: 64"),
        (("--tile", "xy", "-H", "72"), "height must be a multiple of 64, got 72; the nearest: 64"),
    ],
)
def test_what_cannot_be_tiled_is_one_line(
    command: Command, arguments: tuple[str, ...], message: str
) -> None:
    outcome = command("a", "-o", "x.png", *arguments)  # by the default model, of four levels
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
