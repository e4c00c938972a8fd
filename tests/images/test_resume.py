"""What of a batch is done and who draws what, told by pictures and locks alone."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from txt2img.images import image_file
from txt2img.images.output import Output, parse
from txt2img.images.record import Origin
from txt2img.images.resume import Item, ResumeIndex, item_id, items, picture_id
from txt2img.request import Request, Sampler, Schedule
from txt2img.system import files

REQUEST = Request("a", "", "m", 64, 64, 2, 5.0, 0.0, None, Sampler.EULER, Schedule.LINEAR, 1)
ORIGIN = Origin("m", "0123456789")


def plan(requests: list[Request], name: str = "{prompt}.png") -> tuple[Output, list[Item]]:
    """A batch that goes to the current folder."""
    target = parse(name, several=True)
    return target, list(items(requests, target, ORIGIN))


def finish(target: Output, item: Item) -> Path:
    """Write an item's picture, as a run does."""
    data = image_file.encode(Image.new("RGB", (8, 8)), item.request, ORIGIN, item.first_seed)
    return target.write_as(data, item.name, item.number)


def test_an_id_is_of_all_that_decides_a_picture() -> None:
    same = item_id(replace(REQUEST, model="/some/path"), Origin("m", "0"))
    others = [
        item_id(REQUEST, Origin("m", "1")),
        item_id(replace(REQUEST, seed=2), Origin("m", "0")),
        item_id(replace(REQUEST, cfg=5.5), Origin("m", "0")),
        item_id(replace(REQUEST, prompt="b"), Origin("m", "0")),
    ]
    assert same == item_id(REQUEST, Origin("m", "0"))
    assert len({same, *others}) == 5


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"rng": "cpu"}, {}, True),
        ({"rng": "cpu,cpu"}, {"rng": "cpu"}, False),  # the steps' noise begins anew, or goes on
        ({"rng": "cpu,cpu", "compat": "comfyui"}, {"rng": "cpu", "compat": "comfyui"}, True),
        ({"rng": "cpu,nv", "compat": "comfyui"}, {"compat": "comfyui"}, True),
        ({"rng": "nv", "compat": "a1111-gpu"}, {"compat": "a1111-gpu"}, True),
        ({"rng": "nv", "compat": "a1111"}, {"compat": "a1111-gpu"}, False),
        ({"ensd": 31337, "compat": "novelai"}, {"compat": "novelai"}, True),
        ({"ensd": 0}, {}, True),
        ({"ensd": 1}, {}, False),
        ({"clip_skip": 1}, {}, True),
        ({"clip_skip": 2}, {}, False),
        ({"subseed": 3}, {}, True),
        ({"subseed": 3, "subseed_strength": 0.5}, {}, False),
    ],
)
def test_what_changes_nothing_is_no_part_of_an_id(
    one: dict[str, object], other: dict[str, object], alike: bool
) -> None:
    ids = [item_id(REQUEST.with_json(values), Origin("m", "0")) for values in (one, other)]
    assert (ids[0] == ids[1]) == alike


def test_a_picture_has_the_id_of_its_item(folder: Path) -> None:
    target, [item] = plan([REQUEST])
    assert picture_id(finish(target, item), ORIGIN) == item.id


def test_a_retried_picture_has_the_id_of_what_was_asked_for(folder: Path) -> None:
    target, [item] = plan([REQUEST])
    again = replace(item, request=replace(REQUEST, seed=99), first_seed=1)
    assert picture_id(finish(target, again), ORIGIN) == item.id


def test_foreign_and_broken_pictures_have_none(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save("x.png")
    Path("y.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert [picture_id(Path(name), ORIGIN) for name in ("x.png", "y.png", "no.png")] == ["", "", ""]


def test_names_are_planned_as_they_will_be_written(folder: Path) -> None:
    requests = [replace(REQUEST, prompt=p, seed=s) for s, p in enumerate(["a", "a", "a-2", "a"])]
    target, planned = plan(requests)
    written = [finish(target, item).name for item in planned]
    assert written == ["a.png", "a-2.png", "a-2-2.png", "a-3.png"]
    backwards = parse("b/", several=True)
    backwards.pattern = "{prompt}.png"
    with backwards:
        names = [finish(backwards, item).name for item in reversed(planned)]
    assert names[::-1] == written


def test_what_is_there_is_done_under_any_name(folder: Path) -> None:
    target, [first, second] = plan([REQUEST, replace(REQUEST, seed=2)])
    finish(target, second).rename("else.png")
    with ResumeIndex(target, ORIGIN) as ledger:
        assert (ledger.done(first), ledger.done(second)) == (None, Path("else.png"))
        late: list[Item] = []
        assert list(ledger.claimable([first, second], late)) == [first]
        assert late == []


def test_equal_items_are_as_many_pictures(folder: Path) -> None:
    target, planned = plan([REQUEST] * 3)
    assert [item.copy for item in planned] == [0, 1, 2]
    finish(target, planned[0])
    with ResumeIndex(target, ORIGIN) as ledger:
        assert list(ledger.claimable(planned, [])) == planned[1:]


def test_a_claim_keeps_others_away_until_it_ends(folder: Path) -> None:
    target, planned = plan([REQUEST, replace(REQUEST, seed=2)])
    with ResumeIndex(target, ORIGIN) as mine, ResumeIndex(target, ORIGIN) as theirs:
        assert mine.claim(planned[0]) is True
        assert theirs.claim(planned[0]) is None
        late: list[Item] = []
        assert list(theirs.claimable(planned, late)) == planned[1:] and late == planned[:1]
        finish(target, planned[0])
        mine.release(planned[:1])
        assert theirs.wait(planned[0]) is False  # it is there now
        assert theirs.done(planned[0]) == Path("a.png")
    assert [path.name for path in folder.iterdir()] == ["a.png"]


def test_a_claim_ends_with_its_holder(folder: Path) -> None:
    target, [item] = plan([REQUEST])
    with ResumeIndex(target, ORIGIN) as mine:
        assert mine.claim(item)
    with ResumeIndex(target, ORIGIN) as theirs:
        assert theirs.claim(item) is True
    assert list(folder.iterdir()) == []


def test_a_name_that_others_took_does_not_hide_a_picture(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    target, planned = plan([REQUEST, REQUEST])
    with ResumeIndex(target, ORIGIN) as mine:
        assert finish(target, planned[0]).name == "a-2.png"
        assert mine.claim(planned[0]) is False
        assert mine.claim(planned[1]) is True
        assert finish(target, planned[1]).name == "a-3.png"
        mine.release(planned[1:])
        assert mine.claim(planned[1]) is False


def test_a_lock_that_is_swept_is_made_anew(folder: Path) -> None:
    path = Path(".txt2img-x.lock")
    first = files.claim(path)
    assert first is not None and files.claim(path) is None
    files.release(path, first)
    again = files.claim(path)
    assert again is not None and path.exists()
    files.release(path, again)
