"""NovelAI's emphasis is the weights that it stands for."""

import pytest

from txt2img.images.metadata.novelai import has_emphasis, to_a1111
from txt2img.request.prompt_syntax import DEPTH_MAX, spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a girl", "a girl"),
        ("{a girl}, sky", "(a girl:1.05), sky"),
        ("{{a}} [b]", "(a:1.1025) (b:0.9524)"),
        ("{a {b}}", "(a :1.05)(b:1.1025)"),
        ("{[a]}", "a"),
        ("a (b) c", r"a \(b\) c"),
        ("{a (b)}", r"(a \(b\):1.05)"),
        ("a } b { c", "a } b { c"),
        ("a ] [ b", r"a \] \[ b"),
        ("1.5::red cat :: sky", "(red cat :1.5) sky"),
        ("-1::hat::, {x}", "(hat:-1), (x:1.05)"),
        ("16:9, c:\\d", r"16:9, c:\\d"),
        ("", ""),
    ],
)
def test_emphasis_is_a_weight(text: str, words: str) -> None:
    assert to_a1111(text) == words


def test_a1111_reads_what_novelai_meant() -> None:
    found = spans(to_a1111(r"{{red} (old)} cat [dull \ ], 2::big::"))
    assert [(span.text, span.weight) for span in found] == [
        ("red", 1.1025),
        (" (old)", 1.05),
        (" cat ", 1.0),
        ("dull \\ ", 0.9524),
        (", ", 1.0),
        ("big", 2.0),
    ]


def test_no_text_takes_long_or_is_lost() -> None:
    text = "{" * 5000 + "x" + "[" * 5000
    assert to_a1111(text).replace("\\", "") == text
    deep = to_a1111("{a" * 15_000 + "}" * 15_000)
    assert deep.count("a") == 15_000 and deep.count("}") == 15_000 - DEPTH_MAX
    assert not has_emphasis("a (b)") and has_emphasis("[a]") and has_emphasis("2::a::")
