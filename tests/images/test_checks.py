"""Pictures that should not be kept."""

import pytest
from PIL import Image

from txt2img.errors import BadRequest, Rejected
from txt2img.images.checks import check, reasons, seed_again


def gradient() -> Image.Image:
    """A picture of something."""
    return Image.linear_gradient("L").convert("RGB")


@pytest.mark.parametrize(
    ("colour", "reject", "message"),
    [
        ((0, 0, 0), ("black",), "black"),
        ((8, 3, 0), ("black", "flat"), "black"),
        ((9, 9, 200), ("flat",), "one colour"),
        ((9, 0, 0), ("black",), None),
        ((0, 0, 0), ("nan",), None),
    ],
)
def test_black_and_flat_are_told(
    colour: tuple[int, int, int], reject: tuple[str, ...], message: str | None
) -> None:
    image = Image.new("RGB", (8, 8), colour)
    if message is None:
        check(image, reject)
        return
    with pytest.raises(Rejected, match=message) as raised:
        check(image, reject)
    assert raised.value.exit_code == 4


def test_a_picture_of_something_passes() -> None:
    check(gradient(), ("black", "flat"))


def test_reasons_are_a_list() -> None:
    assert reasons("Black, flat") == ("black", "flat")
    with pytest.raises(BadRequest, match='no reason "ugly" to reject; choose from nan, black'):
        reasons("ugly")


def test_retries_have_seeds_of_their_own() -> None:
    seeds = [seed_again(42, attempt) for attempt in range(1, 5)]
    assert len({42, *seeds}) == 5 and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == [seed_again(42, attempt) for attempt in range(1, 5)]
    assert seed_again(43, 1) not in seeds
