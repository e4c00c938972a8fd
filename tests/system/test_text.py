"""Nothing from outside reaches a terminal as more than text."""

import pytest

from txt2img.system.text import escape, parse_size, shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202egnp\u2066", r"\u202egnp\u2066"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
        ("\U000e0001", r"\U000e0001"),
        ("äöü 苹果 👩\u200d🎨 [red]", "äöü 苹果 👩\u200d🎨 [red]"),
    ],
)
def test_control_and_bidi_characters_are_spelt_out(text: str, safe: str) -> None:
    assert escape(text) == safe


def test_what_is_kept_stays() -> None:
    assert escape("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_shown_is_quoted_and_short() -> None:
    assert shown("/home/me/" + "x/" * 50 + "b.png", 12) == '"/ho…/x/b.png"'  # both ends of a path
    assert shown(3) == "3"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("6GB", 6 * 10**9), ("1.5 gib", 3 * 2**29), ("800M", 8 * 10**8), ("12", 12)),
        *(("1,5GB", 15 * 10**8), ("7 B", 7)),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "6 gigs", "1e9", "6GBps"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_size(text)
