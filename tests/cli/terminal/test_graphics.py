"""The exact bytes that terminals draw pictures from."""

import base64
import io
import re

import pytest
from PIL import Image

from txt2img.cli.terminal import graphics

RED, BLUE = (255, 0, 0), (0, 0, 255)


def flag() -> Image.Image:
    """Two columns, red and blue; two rows each."""
    image = Image.new("RGB", (2, 2), RED)
    image.putpixel((1, 0), BLUE)
    image.putpixel((1, 1), BLUE)
    return image


def png_of(payload: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(payload)))


def test_half_blocks_paint_two_pixels_a_cell() -> None:
    image = Image.new("RGB", (1, 2), RED)
    image.putpixel((0, 1), BLUE)
    deep = graphics.blocks(image, (1, 1), truecolor=True)
    assert deep == "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m\x1b[K\n"
    of_256 = graphics.blocks(image, (1, 1), truecolor=False)
    assert of_256 == "\x1b[38;5;196;48;5;21m▀\x1b[0m\x1b[K\n"


def test_equal_half_blocks_are_painted_at_once() -> None:
    text = graphics.blocks(Image.new("RGB", (8, 8), RED), (4, 2), truecolor=True)
    row = "\x1b[38;2;255;0;0;48;2;255;0;0m▀▀▀▀\x1b[0m\x1b[K\n"
    assert text == 2 * row


@pytest.mark.parametrize(
    ("colour", "number"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 231),
        ((255, 0, 0), 196),
        ((95, 135, 175), 67),
        ((128, 128, 128), 244),
        ((8, 8, 8), 232),
    ],
)
def test_a_colour_of_the_256_is_shown_as_it_is(colour: tuple[int, int, int], number: int) -> None:
    text = graphics.blocks(Image.new("RGB", (4, 8), colour), (4, 4), truecolor=False)
    assert text == 4 * f"\x1b[38;5;{number};48;5;{number}m▀▀▀▀\x1b[0m\x1b[K\n"


def test_other_colours_are_mixed_of_the_256() -> None:
    text = graphics.blocks(Image.new("RGB", (32, 32), (160, 60, 30)), (32, 16), truecolor=False)
    shown = []
    for first, second, run in re.findall(r"38;5;(\d+);48;5;(\d+)m(▀+)", text):
        for number in (int(first) - 16, int(second) - 16):
            assert 0 <= number < 216
            levels = number // 36, number // 6 % 6, number % 6
            shown += [[graphics.CUBE[level] for level in levels]] * len(run)
    assert len(shown) == 32 * 32
    mean = [sum(levels) / len(shown) for levels in zip(*shown, strict=True)]
    assert all(abs(a - b) < 8 for a, b in zip(mean, (160, 60, 30), strict=True))


def test_kitty_sends_a_png_in_chunks_that_say_whether_more_come() -> None:
    noise = Image.effect_noise((64, 64), 90)
    text = graphics.kitty(noise, (4, 2), 77)
    before, after = "\n\n\x1b[2A\x1b7", "\x1b8\x1b[2B"
    assert text.startswith(before) and text.endswith(after)
    commands = re.findall("\x1b_G(.*?);(.*?)\x1b\\\\", text)
    keys = [key for key, _ in commands]
    assert keys[0] == "a=T,f=100,i=77,p=1,q=2,C=1,c=4,r=2,m=1"
    assert keys[1:] == ["m=1"] * (len(keys) - 2) + ["m=0"]
    assert len(keys) > 1
    payloads = [payload for _, payload in commands]
    assert {len(payload) for payload in payloads[:-1]} == {graphics.CHUNK}
    with png_of("".join(payloads)) as image:
        assert image.tobytes() == noise.convert("RGB").tobytes()
    drawn = "".join(f"\x1b_G{key};{payload}\x1b\\" for key, payload in commands)
    assert text == before + drawn + after


def test_a_small_kitty_picture_is_one_command() -> None:
    assert graphics.kitty(flag(), (1, 1), 5).count("\x1b_G") == 1
    assert ",m=0;" in graphics.kitty(flag(), (1, 1), 5)
    assert graphics.erase_kitty(5) == "\x1b_Ga=d,d=I,i=5,q=2\x1b\\"


def test_iterm_sends_one_png_of_so_many_cells() -> None:
    text = graphics.iterm(flag(), (3, 2))
    found = re.fullmatch(
        "\n\n\x1b\\[2A\x1b7\x1b\\]1337;File=inline=1;size=(\\d+);width=3;height=2;"
        "preserveAspectRatio=0;doNotMoveCursor=1:([^\x07]+)\x07\x1b8\x1b\\[2B",
        text,
    )
    assert found
    assert len(base64.b64decode(found[2])) == int(found[1])
    with png_of(found[2]) as image:
        assert image.tobytes() == flag().tobytes()


def test_sixels_of_a_flag() -> None:
    # Two rows of a strip: bits 1 and 2, so 3 + 63 = "B"; a colour's blanks before it are "?".
    text = graphics.sixel(flag(), (1, 1))
    body = text.removeprefix("\n\x1b[1A\x1b7").removesuffix("\x1b8\x1b[1B")
    known = ('\x1bP0;1q"1;1;2;2{}\x1b\\').format
    red, blue = "2;100;0;0", "2;0;0;100"
    assert body in (
        known(f"#0;{red}#1;{blue}#0B$#1?B"),
        known(f"#0;{blue}#1;{red}#0?B$#1B"),
    )


def decoded(text: str) -> list[list[tuple[int, ...]]]:
    """The picture that a terminal would draw from sixels: rows of colours, in percent."""
    width, height, body = re.search('"1;1;(\\d+);(\\d+)(.*)\x1b\\\\', text, re.DOTALL).groups()
    palette: dict[int, tuple[int, ...]] = {}
    rows = [[(-1,)] * int(width) for _ in range(int(height))]
    top = x = colour = 0
    for token in re.findall(r"#\d+(?:;\d+)*|!\d+[?-~]|[?-~]|[$-]", body):
        if token == "$":
            x = 0
        elif token == "-":
            top, x = top + 6, 0
        elif token.startswith("#"):
            numbers = [int(part) for part in token[1:].split(";")]
            colour = numbers[0]
            if numbers[1:]:
                palette[colour] = tuple(numbers[2:])
        else:
            for _ in range(int(token[1:-1]) if token.startswith("!") else 1):
                for y in range(6):
                    if (ord(token[-1]) - 63) >> y & 1:
                        rows[top + y][x] = palette[colour]
                x += 1  # noqa: SIM113 - strips and colours begin again
    return rows


def test_sixels_are_the_picture_again() -> None:
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    image.paste((255, 0, 0), (5, 3, 30, 17))
    image.paste((0, 0, 255), (20, 10, 22, 12))
    rows = decoded(graphics.sixel(image, (5, 2)))
    data = image.tobytes()
    percent = [
        tuple(round(level / 2.55) for level in data[i : i + 3]) for i in range(0, len(data), 3)
    ]
    assert rows == [percent[y * 40 : y * 40 + 40] for y in range(20)]


@pytest.mark.parametrize(
    ("size", "room", "cells"),
    [
        ((128, 128), (79, 20), (40, 20)),
        ((512, 256), (79, 20), (79, 20)),
        ((256, 512), (79, 20), (20, 20)),
        ((1000, 10), (79, 20), (79, 1)),
    ],
)
def test_a_picture_fills_the_room_undistorted(
    size: tuple[int, int], room: tuple[int, int], cells: tuple[int, int]
) -> None:
    assert graphics.fit(size, room, (8, 16)) == cells
