"""Many pictures on one page."""

from PIL import Image

from txt2img.train.default_model.sheet import sheet


def test_a_sheet_has_a_cell_a_picture_and_room_for_the_longest_label() -> None:
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    small = sheet(images, ["a", "b", "c"], columns=2)
    tall = sheet(images, ["a", "a label of very many words that need lines", "c"], columns=2)
    assert small.width == tall.width > 2 * 64
    assert tall.height > small.height > 2 * 64
    colours = {colour for _, colour in small.getcolors(1 << 16)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours
