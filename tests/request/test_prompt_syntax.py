"""The prompt language, after the examples that A1111 documents for its own."""

import pytest

from txt2img.errors import BadRequest
from txt2img.request.prompt_syntax import Span, schedule, spans, split_and


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        (r"\m/ metal :\ \\", [("m/ metal : \\", 1.0)]),
        (r"\m/ (metal)", [("m/ ", 1.0), ("metal", 1.1)]),
        (r"(a\:1.2)", [("a", 1.2)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *(("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1)),
                *(("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)),
            ],
        ),
        ("(a:1.2", [("a:1.2", 1.1)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("( a : -1 )", [(" a ", -1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_weights_are_as_a1111_documents_them(text: str, wanted: list[tuple[str, float]]) -> None:
    found = spans(text)
    assert [span.text for span in found] == [text for text, _ in wanted]
    assert [span.weight for span in found] == pytest.approx([weight for _, weight in wanted])


def test_break_begins_a_new_chunk_whatever_its_weight() -> None:
    assert spans("a BREAK b") == (Span("a"), Span("b", starts_chunk=True))
    assert spans("(a BREAK b:2)") == (Span("a", 2.0), Span("b", 2.0, starts_chunk=True))
    assert spans("BREAKFAST") == (Span("BREAKFAST"),)


def test_a_weight_that_is_no_number_is_pointed_at() -> None:
    with pytest.raises(BadRequest, match=r'character 8: "1\.2\.3" is no weight'):
        spans("a (red:1.2.3)")


def test_comfyui_replaces_the_outer_weight_and_knows_round_brackets_only() -> None:
    found = spans(r"a ((red:1.5) car:0.5) [x] \(y\) (z)", "comfyui")
    assert [span.text for span in found] == ["a ", "red", " car", " [x] (y) ", "z"]
    assert [span.weight for span in found] == pytest.approx([1, 1.5, 0.5, 1, 1.1])
    assert spans("(open", "comfyui") == (Span("(open"),)


def test_text_is_text() -> None:
    assert spans("(red:1.3) BREAK", "text") == (Span("(red:1.3) BREAK"),)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(i, "(b:1.1)" if i % 2 == 0 else "a") for i in range(1, 11)]),
        ("[fe|]male", [(i, "male" if i % 2 == 0 else "female") for i in range(1, 11)]),
        ("[a::0.5]b", [(5, "ab"), (10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        ("[x [a:b:0.5]]", [(5, "[x a]"), (10, "[x b]")]),
        (r"\[a:b:0.5]", [(10, r"\[a:b:0.5]")]),
    ],
)
def test_schedules_are_as_a1111_documents_them(text: str, wanted: list[tuple[int, str]]) -> None:
    assert schedule(text, 10) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),  # what modules/prompt_parser.py gives with lark for 10 steps
    [
        ("[p:q:0.3]", [(3, "p"), (10, "q")]),
        ("[p:q:0.3]:", [(3, "p:"), (10, "q:")]),
        ("[p:q:0.3]:)", [(10, "[p:q:0.3]:)")]),
        ("[p:q:0.3]:) x", [(10, "[p:q:0.3]:) x")]),
        ("[p:q:0.3] :)", [(3, "p :)"), (10, "q :)")]),
        ("[p:q:0.3]:))", [(3, "p:))"), (10, "q:))")]),
        ("[q:0.3]((", [(10, "[q:0.3]((")]),
        ("[p:q:0.3](x)", [(3, "p(x)"), (10, "q(x)")]),
        ("([p:q:0.3]))", [(10, "([p:q:0.3]))")]),
        ("(([p:q:0.3])):", [(3, "((p)):"), (10, "((q)):")]),
        ("([p:q:0.3] x):)", [(3, "(p x):)"), (10, "(q x):)")]),
        ("[p:q:0.3] a|b", [(10, "[p:q:0.3] a|b")]),
        ("[p|q] (a|b)", [(10, "[p|q] (a|b)")]),
        ("[p|q:0.3]", [(10, "[p|q:0.3]")]),
        ("[p:q:0.3] a\\", [(10, "[p:q:0.3] a\\")]),
        (r"[p:q:0.3] \| a\\", [(3, r"p \| a\\"), (10, r"q \| a\\")]),
        ("[p:q:0.3]:: [a:b:0.3]", [(3, "[p:q:0.3]:: a"), (10, "[p:q:0.3]:: b")]),
        ("[a:[p:q:0.3]:0.6]:)", [(3, "[a:p:0.6]:)"), (10, "[a:q:0.6]:)")]),
        ("a [unbalanced [p:q:0.3]", [(3, "a [unbalanced p"), (10, "a [unbalanced q")]),
    ],
)
def test_malformed_brackets_are_read_as_a1111_reads_them(
    text: str, wanted: list[tuple[int, str]]
) -> None:
    assert schedule(text, 10, strict=True) == wanted


def test_strict_brackets_of_great_number_come_to_an_end() -> None:
    for text in (
        "[a:b:0.5]" * 6000,
        "[a:b:0.5]:" * 6000,
        "([" * 30_000,
        "[a:b:0.5]" + ")" * 60_000,
    ):
        assert schedule(text, 2, strict=True)


def test_many_brackets_are_read_in_little_time() -> None:
    for text in ("[" * 20_000, "[" * 20_000 + "]" * 20_000, "(" * 20_000 + ")" * 20_000):
        assert schedule(text, 5) == [(5, text)]
    assert spans("(" * 60_000) == (Span(""),)
    assert spans("(" * 30_000 + "a" + ")" * 30_000, "comfyui")[0].weight > 1
    for text in ("(a" * 30_000, "[a" * 20_000 + "]" * 20_000, "([a" * 20_000 + "])" * 2_000):
        assert len(spans(text)) > 1
    assert schedule("[a" * 20_000 + "]" * 20_000, 5)[0][0] == 5
    assert len(schedule("[a|" * 20_000 + "]" * 20_000, 5)) == 5


def test_brackets_count_fifty_deep() -> None:
    assert spans("(a" * 51 + ")" * 51)[-1].weight == pytest.approx(1.1**50)
    assert spans("(a" * 40 + "[b" * 40)[-1].weight == pytest.approx(1.0)


def test_long_runs_of_one_sign_are_read_in_little_time() -> None:
    blank = " " * 60_000
    assert spans(f"a{blank}(b)") == (Span(f"a{blank}"), Span("b", 1.1))
    assert spans(f"a{blank}BREAK{blank}b") == (Span("a"), Span("b", starts_chunk=True))
    assert split_and(f"a{blank}: 2 b AND c{blank}:2") == [(1.0, f"a{blank}: 2 b "), (2.0, " c")]
