"""The options for memory and precision reach the picture and its record."""

from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.images.image_file import read


def test_tiles_and_precisions_are_in_the_record(draw: Command) -> None:
    outcome = draw("a", "--vae-tiling", "on", "--dtype", "text=bf16", "-o", "x.png")
    assert outcome.code == 0, outcome.err
    environment = read(Path("x.png")).origin.environment
    assert environment["vae"] == "tiled"
    assert environment["dtype"] == "unet=float32,vae=float32,text=bfloat16"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--vae-tiling", "perhaps", '--vae-tiling "perhaps"; choose auto, on or off'),
        ("--dtype", "vae=int8", 'no dtype "int8"'),
    ],
)
def test_what_cannot_be_is_refused(draw: Command, option: str, value: str, message: str) -> None:
    outcome = draw("a", option, value)
    assert outcome.code == 2
    assert message in outcome.err


def test_what_it_computes_on_is_told_where_that_is_asked_for(draw: Command) -> None:
    told = draw("a", "--verbose", "--dtype", "bf16", "--device", "cpu").err
    assert "Computing on the CPU in bfloat16, " in told and " thread" in told
    assert "Computing" not in draw("a").err + draw("a", "--verbose", "-q").err


@pytest.mark.usefixtures("as_written")
def test_low_memory_draws_the_same_picture(draw: Command) -> None:
    assert draw("a", "--seed", "1", "--low-memory", "-o", "low.png").code == 0
    assert draw("a", "--seed", "1", "-o", "plain.png").code == 0
    assert Path("low.png").read_bytes() == Path("plain.png").read_bytes()
