"""Steps and animations: files that say what they are, and that nobody takes for pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from tests.support import picture_files
from txt2img.errors import BadOutput
from txt2img.images import animation, image_file
from txt2img.images.output import Output
from txt2img.images.record import Origin
from txt2img.images.resume import ResumeIndex, picture_id
from txt2img.request.request import Request

REQUEST = Request("ein Haus, 家", model="/secret/path", width=64, height=64, steps=3, seed=7)
ORIGIN = Origin("mine", "0123456789")
SAID = animation.record(REQUEST, ORIGIN, 2, 3)


def plain(level: int) -> Image.Image:
    return Image.new("RGB", (16, 8), (level, 255 - level, 0))


def milliseconds(path: Path) -> int:
    """How long an animation takes."""
    total = 0
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            total += frame.info["duration"]
    return total


FRAMES = [plain(level) for level in (0, 80, 160, 255)]


def test_a_step_says_which_one_it_is(tmp_path: Path) -> None:
    path = tmp_path / "x-step-002.png"
    path.write_bytes(animation.still(plain(9), SAID))
    found = image_file.read(path)
    said = json.loads(found.texts[animation.STEP_KEY])
    assert (said["step"], said["steps"], said["model"]["name"]) == (2, 3, "mine")
    assert (said["request"]["prompt"], said["request"]["seed"]) == (REQUEST.prompt, 7)
    assert "/secret" not in found.texts[animation.STEP_KEY]
    assert Image.open(path).getpixel((3, 3)) == (9, 246, 0)


def test_nobody_takes_a_step_for_a_picture(tmp_path: Path) -> None:
    step, moving = tmp_path / "x.png", tmp_path / "y.png"
    step.write_bytes(animation.still(plain(9), SAID))
    moving.write_bytes(
        animation.animation(FRAMES, "png", animation.record(REQUEST, ORIGIN, None, 3))
    )
    for path in (step, moving):
        assert picture_id(path, ORIGIN) == ""
        assert image_file.read(path).request is None
    assert ResumeIndex(Output(tmp_path, "{prompt}.png"), ORIGIN).paths == {}


@pytest.mark.parametrize("kind", animation.KINDS)
def test_an_animation_has_every_frame_and_holds_the_last(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(animation.animation(FRAMES, kind, animation.record(REQUEST, ORIGIN, None, 3)))
    with Image.open(path) as image:
        shown = []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            shown.append((frame.convert("RGB").getpixel((3, 3)), frame.info["duration"]))
        assert image.info["loop"] == 0
    assert [duration for _, duration in shown] == [250, 250, 250, animation.LAST_SHOWN]
    for (colour, _), wanted in zip(shown, FRAMES, strict=True):
        near = wanted.getpixel((3, 3))
        assert all(abs(a - b) < 12 for a, b in zip(colour, near, strict=True))
    assert animation.is_step_file(path)


@pytest.mark.parametrize("kind", animation.KINDS)
@pytest.mark.parametrize(("steps", "seconds"), [(5, 1.25), (30, 3), (100, 4)])
def test_many_steps_take_as_long_as_few(
    steps: int, seconds: float, kind: str, tmp_path: Path
) -> None:
    moving = [plain(2 * i) for i in range(steps + 1)]  # some formats join frames that are alike
    (tmp_path / "x").write_bytes(animation.animation(moving, kind, SAID))
    assert milliseconds(tmp_path / "x") == 1000 * seconds + animation.LAST_SHOWN


def test_an_animation_of_the_picture_alone_is_one_frame(tmp_path: Path) -> None:
    (tmp_path / "x.webp").write_bytes(animation.animation(FRAMES[:1], "webp", SAID))
    with Image.open(tmp_path / "x.webp") as image:
        assert getattr(image, "n_frames", 1) == 1


def test_a_webp_says_what_it_is_to_info(tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    path.write_bytes(
        animation.animation(FRAMES, "webp", animation.record(REQUEST, ORIGIN, None, 3))
    )
    found = image_file.read(path)
    assert json.loads(found.texts[animation.STEP_KEY])["animation"] == 3
    assert found.request is None


def test_only_files_of_this_kind_are_replaced(tmp_path: Path) -> None:
    path, data = tmp_path / "x-step-001.png", animation.still(plain(1), SAID)
    assert animation.write(data, path) == path
    newer = animation.still(plain(2), SAID)
    assert animation.write(newer, path) == path
    assert path.read_bytes() == newer
    picture_files.save(plain(3), tmp_path / "other.png", REQUEST, ORIGIN)
    before = (tmp_path / "other.png").read_bytes()
    assert animation.write(newer, tmp_path / "other.png").name == "other-2.png"
    assert (tmp_path / "other.png").read_bytes() == before
    assert animation.write(newer, tmp_path / "other.png", overwrite=True).name == "other.png"
    with pytest.raises(BadOutput, match="cannot write"):
        animation.write(data, tmp_path / "nowhere" / "x.png")
    assert {file.name for file in tmp_path.iterdir()} == {
        *("x-step-001.png", "other.png", "other-2.png"),
    }


def test_what_is_no_picture_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert not animation.is_step_file(tmp_path / "x.png")
    assert not animation.is_step_file(tmp_path / "nothing.png")
    assert not animation.is_step_file(tmp_path)


def test_names_sort_in_order_and_never_meet_a_picture() -> None:
    assert animation.step_name("x.png", 3, 30) == "x-step-003.png"
    assert animation.step_name("x.png", 3, 1000) == "x-step-0003.png"
    assert animation.animated_name("a cat.v2.png", "webp") == "a cat.v2.webp"
    assert animation.animated_name("x.PNG", "png") == "x-steps.png"


def test_pictures_of_a_batch_are_seen_side_by_side() -> None:
    sheet = animation.grid(FRAMES[:3])
    assert sheet.size == (32, 16)
    corners = [sheet.getpixel(at) for at in ((0, 0), (16, 0), (0, 8), (16, 8))]
    assert corners == [(0, 255, 0), (80, 175, 0), (160, 95, 0), (0, 0, 0)]
    assert animation.grid(FRAMES[:1]) is FRAMES[0]
