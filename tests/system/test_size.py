"""Numbers are said in the unit that fits them."""

import pytest

from txt2img.system.text import format_size


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 KB"),
        (2_132_000_000, "2.1 GB"),
        (57_671_680, "57.7 MB"),
        (335_000_000, "335 MB"),
        (13_900_000_000_000, "13.9 TB"),
    ],
)
def test_sizes_are_said_in_the_unit_that_fits(count: int, said: str) -> None:
    assert format_size(count) == said
