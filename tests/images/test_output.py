"""A picture is whole under its name, or it is not there; nothing is replaced by accident."""

import errno
import os
import stat
import threading
import unicodedata
from pathlib import Path

import pytest

from txt2img.errors import BadOutput, BadRequest
from txt2img.images.formats import FORMATS
from txt2img.images.output import Output, parse, slug, write_file
from txt2img.request import Request, Sampler
from txt2img.system import files

REQUEST = Request("Red apple, 3D emoji!", "", "m", 64, 72, 3, 7.5, sampler=Sampler.EULER_A, seed=42)


def put(target: Output, data: bytes, request: Request) -> Path:
    """Write a request's picture; gives where."""
    return target.write_as(data, target.name(request, 1))


def left(folder: Path) -> list[str]:
    """The names of all that is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_the_default_name_is_the_prompt_and_the_seed(folder: Path) -> None:
    with parse(None, several=False) as target:
        assert put(target, b"1", REQUEST) == Path("red-apple-3d-emoji-42.png")
    assert left(folder) == ["red-apple-3d-emoji-42.png"]


def test_a_taken_name_gets_the_next_free_number(folder: Path) -> None:
    target = parse(None, several=False)
    names = [put(target, b"%d" % i, REQUEST).name for i in range(3)]
    assert names == [f"red-apple-3d-emoji-42{end}.png" for end in ("", "-2", "-3")]
    assert [Path(name).read_bytes() for name in names] == [b"0", b"1", b"2"]


def test_a_folder_is_made_and_used(folder: Path) -> None:
    with parse("a/b/", several=True) as target:
        assert put(target, b"", REQUEST) == Path("a/b/red-apple-3d-emoji-42.png")


def test_an_existing_folder_needs_no_slash(folder: Path) -> None:
    (folder / "here").mkdir()
    assert parse("here", several=False).folder == Path("here")


def test_a_device_is_no_file_and_no_name_for_one(folder: Path) -> None:
    os.mkfifo("pipe")
    for text in ("/dev/null", "pipe"):
        for several in (False, True):
            with pytest.raises(BadRequest, match="-o - writes one to standard output"):
                parse(text, several=several)
    assert left(folder) == ["pipe"]


def test_a_folder_that_was_made_for_nothing_goes_again(folder: Path) -> None:
    with pytest.raises(KeyError), parse("a/b/", several=True):
        raise KeyError
    assert left(folder) == []


@pytest.mark.parametrize(("text", "name"), [("b.png", "b.png"), ("b", "b.png"), ("B.PNG", "B.PNG")])
def test_a_file_name_is_kept(folder: Path, text: str, name: str) -> None:
    assert put(parse(text, several=False), b"", REQUEST) == Path(name)


@pytest.mark.parametrize("name", ["b.png", "b.jpg", "b.JPEG", "b.webp", "b.avif"])
def test_a_files_name_tells_the_format(folder: Path, name: str) -> None:
    target = parse(name, several=False, format=FORMATS["webp"])
    assert target.pattern == name
    assert Path(name.lower()).suffix in target.format.suffixes
    assert parse("b", several=False, format=FORMATS["webp"]).pattern == "b.webp"
    assert parse("b/", several=True, format=FORMATS["jpeg"]).pattern == "{prompt}-{seed}.jpg"
    assert parse(name, several=True).pattern == f"b-{{index}}{name[1:]}"


def test_a_folder_in_use_is_not_removed_by_another_run(folder: Path) -> None:
    with parse("a/b/", several=True) as mine:
        with parse("a/b/", several=True) as theirs:
            theirs._new_folders.append(Path("a/b"))  # as if both had made it at once
        assert put(mine, b"x", REQUEST).exists()
    assert left(folder / "a/b") == ["red-apple-3d-emoji-42.png"]


def test_an_exact_name_that_exists_is_an_error_before_any_work(folder: Path) -> None:
    Path("b.png").write_bytes(b"old")
    with pytest.raises(BadOutput, match="exists; add --overwrite"), parse("b.png", several=False):
        pass
    assert Path("b.png").read_bytes() == b"old"


def test_overwrite_replaces_a_file_but_never_one_of_the_same_run(folder: Path) -> None:
    Path("b.png").write_bytes(b"old")
    with parse("{prompt}.png", several=True, overwrite=True) as target:
        for data in (b"1", b"2"):
            put(target, data, REQUEST)
    with parse("b.png", several=False, overwrite=True) as target:
        put(target, b"new", REQUEST)
    assert Path("b.png").read_bytes() == b"new"
    assert left(folder) == ["b.png", "red-apple-3d-emoji-2.png", "red-apple-3d-emoji.png"]


def test_one_name_for_several_pictures_is_numbered() -> None:
    target = parse("b.png", several=True)
    assert [target.name(REQUEST, i) for i in (1, 2)] == ["b-0001.png", "b-0002.png"]


@pytest.mark.parametrize("text", ["new", "runs/v1.5"])
def test_several_pictures_go_to_a_folder_if_the_name_is_no_pictures(
    folder: Path, text: str
) -> None:
    target = parse(text, several=True)
    assert (target.folder, target.name(REQUEST, 1)) == (Path(text), "red-apple-3d-emoji-42.png")
    assert parse(text, several=False).name(REQUEST, 1) == f"{Path(text).name}.png"


def test_tokens_are_filled() -> None:
    target = parse("{index}-{prompt}-{seed}-{width}x{height}-{steps}-{cfg}-{sampler}-{model}", True)
    assert target.name(REQUEST, 7) == "0007-red-apple-3d-emoji-42-64x72-3-7.5-euler_a-m.png"
    padded = parse("{seed:05d}-{index:02}-{steps:03}.png", True)
    assert padded.name(REQUEST, 7) == "00042-07-003.png"
    assert not padded.exact


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("b.gif", 'png, jpeg, webp, avif, svg, not "b.gif"; name it "b.png"'),
        ("b.pdf", 'not "b.pdf"; name it "b.png"'),
        ("{sed}.png", r"no \{sed\}; choose from \{seed\}"),
        ("{seed}/b.png", "file's name only"),
        ("{seed:05}/b.png", "file's name only"),
        ("{prompt:05}.png", r"\{prompt:05\}: only .* take digits"),
        ("{seed:>5}.png", r"\{seed:>5\}: only .* take digits"),
        ("{seed:}.png", r"\{seed:\}: only .* take digits"),
        ("-", "no name"),
        ("", "no name"),
        ("a/..", "no name"),
        ("a\nb.png", "no name"),
        ("a\udcff.png", "UTF-8"),
    ],
)
def test_what_cannot_be_a_name_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse(text, several=False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("..", "picture"),
        ("", "picture"),
        ("-rf /", "rf"),
        (".hidden", "hidden"),
        ("a\0b\n\x1b[31m", "a-b-31m"),
        ("Äpfel & 苹果", "äpfel-苹果"),
        ("हिन्दी", "हिन्दी"),
        ("🍎", "picture"),
        ("C:\\x<y>|z?*", "c-x-y-z"),
        ("a {seed} b", "a-seed-b"),
    ],
)
def test_a_prompt_is_a_safe_name(text: str, name: str) -> None:
    assert slug(text) == name


@pytest.mark.parametrize("text", ["word " * 100, "苹" * 300, "e\u0301" * 300])
def test_a_long_prompt_is_a_short_name(text: str) -> None:
    assert 20 < len(slug(text).encode()) <= 120


def test_only_the_beginning_of_a_prompt_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes the square of the length of a run of combining marks."""
    normalize, lengths = unicodedata.normalize, list[int]()

    def recorded(form: str, text: str) -> str:
        lengths.append(len(text))
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", recorded)
    assert slug("a" + "\u0301\u0323" * 30_000)
    assert max(lengths) <= 4096


def test_no_prompt_leads_out_of_the_folder(folder: Path) -> None:
    with parse("in/{prompt}.png", several=False) as target:
        put(target, b"", Request("../../out"))
    assert left(folder) == ["in"]


def test_files_have_the_permissions_that_the_umask_leaves(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(b"", Path("b.png"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("b.png").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["fsync", "link", "write"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_write_that_fails_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    class Full:
        def __init__(self, descriptor: int, _: str) -> None:
            self.fileno = lambda: descriptor

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.fileno())

        def write(self, _: bytes) -> None:
            raise error

    def fail(*_: object) -> None:
        raise error

    if name == "write":
        monkeypatch.setattr(os, "fdopen", Full)
    elif name == "link" and isinstance(error, OSError):
        monkeypatch.setattr(os, "link", fail)
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(BadOutput if isinstance(error, OSError) else KeyboardInterrupt):
        write_file(b"x", Path("b.png"))
    assert left(folder) == []


def test_a_full_disk_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadOutput, match=r'cannot write "b\.png": no space left on device'):
        write_file(b"x", Path("b.png"))


def test_file_systems_without_links_work_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    write_file(b"x", Path("b.png"))
    with pytest.raises(BadOutput, match="exists"):
        write_file(b"y", Path("b.png"))
    assert Path("b.png").read_bytes() == b"x"
    assert left(folder) == ["b.png"]


def test_two_writers_never_take_one_name(folder: Path) -> None:
    def write(data: bytes) -> None:
        target = parse(None, several=True)
        for _ in range(20):
            put(target, data, REQUEST)

    writers = [threading.Thread(target=write, args=(data,)) for data in (b"a", b"b")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(path.read_bytes() for path in folder.iterdir()) == [b"a"] * 20 + [b"b"] * 20


def test_only_regular_files_are_overwritten(folder: Path) -> None:
    os.mkfifo("pipe.png")
    Path("link.png").symlink_to("elsewhere.png")
    for name in ("pipe.png", "link.png"):
        with pytest.raises(BadOutput):
            write_file(b"", Path(name), overwrite=True)
    assert left(folder) == ["link.png", "pipe.png"]


def test_a_planted_link_under_a_free_name_is_not_followed(folder: Path) -> None:
    Path("red-apple-3d-emoji-42.png").symlink_to("elsewhere.png")
    path = put(parse(None, several=False), b"x", REQUEST)
    assert path.name == "red-apple-3d-emoji-42-2.png"
    assert not Path("elsewhere.png").exists()


def test_a_folder_that_cannot_be_is_told_before_any_work(folder: Path) -> None:
    Path("file").write_bytes(b"")
    for text in ("file/", "file/b.png", "/proc/no/"):
        with pytest.raises(BadOutput, match="cannot write"), parse(text, several=False):
            pass
    assert left(folder) == ["file"]


def test_what_a_killed_run_left_is_swept(folder: Path) -> None:
    for name in (".txt2img-old.tmp", ".txt2img-new.tmp"):
        Path(name).write_bytes(b"")
    Path(".txt2img-0123.lock").write_bytes(b"")
    with Path(".txt2img-new.tmp").open() as held:
        assert files.hold(held.fileno())
        with Output(Path(), "x.png"):
            pass
        assert left(folder) == [".txt2img-new.tmp"]
    with Output(Path(), "x.png"):
        pass
    assert left(folder) == []
