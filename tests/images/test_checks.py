"""Pictures that should not be kept."""

import pytest
from PIL import Image

from txt2img.errors import BadRequest, Rejected
from txt2img.images.checks import check_image, parse_reject, retry_seed


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
        check_image(image, reject)
        return
    with pytest.raises(Rejected, match=message) as raised:
        check_image(image, reject)
    assert raised.value.exit_code == 4


def test_a_picture_of_something_passes() -> None:
    check_image(gradient(), ("black", "flat"))


def test_reasons_are_a_list() -> None:
    assert parse_reject("Black, flat") == ("black", "flat")
    with pytest.raises(BadRequest, match='no reason "ugly" to reject; choose from nan, black'):
        parse_reject("ugly")


def test_retries_have_seeds_of_their_own() -> None:
    seeds = [retry_seed(42, attempt) for attempt in range(1, 5)]
    assert len({42, *seeds}) == 5 and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == [retry_seed(42, attempt) for attempt in range(1, 5)]
    assert retry_seed(43, 1) not in seeds
