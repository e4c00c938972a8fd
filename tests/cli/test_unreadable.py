"""What the system refuses, or what a damaged file provokes, is one line: never "unexpected"."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_errors import nothing_in, refused
from tests.cli.test_process import shell
from tests.conftest import Command
from txt2img.cli.options.completion import known_models
from txt2img.errors import BadFile
from txt2img.images import image_file
from txt2img.system import missing
from txt2img.system.files import open_regular
from txt2img.weights.checkpoint import open_checkpoint

SMALL = ("-W", "64", "-H", "64", "--steps", "1", "--seed", "1", "-q")


@pytest.fixture
def locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that cannot be read, nor anything in it: for root, too, who may read all."""
    place = folder / "locked"
    place.mkdir()
    calls = {name: getattr(os, name) for name in ("open", "scandir", "listdir", "stat", "lstat")}

    def guarded(name: str) -> object:
        def call(path: object = ".", *rest: object, **more: object) -> object:
            if isinstance(path, str | os.PathLike):
                text = os.path.abspath(path)
                is_own = text == str(place) and name in ("stat", "lstat")
                if text.startswith(str(place)) and not is_own:
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return calls[name](path, *rest, **more)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, guarded(name))
    yield place


def test_an_unreadable_folder_of_models_is_not_an_empty_one(
    command: Command, locked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_MODELS", str(locked))
    listed = command("models", "list")
    assert listed.code == 0 and listed.out.startswith("default")
    assert listed.err == f'Note: cannot read "{locked}": permission denied\n'
    refused(command("x", "-m", "mine"), 1, 'no model "mine"', f'cannot read "{locked}"')
    refused(command("x", "--vae", "mine", *SMALL), 1, '--vae: no file "mine"', "permission denied")


def test_one_unreadable_file_does_not_end_a_list(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = folder / "models"
    models.mkdir()
    monkeypatch.setenv("TXT2IMG_MODELS", str(models))
    for name in ("a", "b", "c"):
        (models / f"{name}.safetensors").write_bytes(b"{}")
    original = os.open

    def failing(path: str | Path, *rest: int, **more: int) -> int:
        if Path(path).name == "b.safetensors":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return original(path, *rest, **more)

    monkeypatch.setattr(os, "open", failing)
    listed = command("models", "list")
    assert listed.code == 0
    names = [line.split("\t")[0] for line in listed.out.splitlines()]
    assert names == ["default", "a", "c", "few-steps"]
    assert listed.err.startswith("Note: cannot read ")
    assert listed.err.endswith('/models/b.safetensors": input/output error\n')


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("x -m locked", ["cannot read", "permission denied"]),
        ("x -m locked/x.safetensors", ["permission denied"]),
        ("a<lora:style:1> --lora-dir locked", ["style", "permission denied"]),
        ("x --embedding-dir locked", ["permission denied"]),
        ("__a*__ --wildcards locked", ["--wildcards: cannot read", "permission denied"]),
        ("__a__ --wildcards locked", ["permission denied"]),
        ("--prompts locked/p.txt", ["cannot read", "permission denied"]),
        ("--params-from locked/x.png", ["cannot read", "permission denied"]),
        ("x --resume --seed 1 -o locked/", ["permission denied"]),
        ("x -o locked/", ["cannot write", "permission denied"]),
        ("info locked/x.png", ["permission denied"]),
        ("verify locked", ["cannot read", "permission denied"]),
        ("train locked --out m", ["permission denied"]),
        ("models show locked", ["permission denied"]),
        ("models hash locked/x.safetensors", ["permission denied"]),
    ],
)
def test_what_may_not_be_read_is_one_line(
    command: Command, locked: Path, line: str, parts: list[str]
) -> None:
    outcome = command(*line.split())
    assert outcome.code == 1 and outcome.out == ""
    lines = [line for line in outcome.err.splitlines() if not line.startswith("Note: ")]
    assert len(lines) == 1 and "nexpected" not in lines[0]
    assert all(part in lines[0] for part in parts), lines[0]


def test_a_disk_that_fails_while_a_file_is_read(folder: Path) -> None:
    Path("x.json").write_text("{}")
    with open_regular(Path("x.json")) as file:
        inside = os.open(".", os.O_RDONLY)
        os.dup2(inside, file.fileno())  # reading a folder fails, as reading from a bad disk does
        os.close(inside)
        with pytest.raises(BadFile, match=r'cannot read "x\.json": is a directory'):
            file.read(1)
        with pytest.raises(BadFile, match=r'cannot read "x\.json": is a directory'):
            file.read()


LONG = "x" * 5000


@pytest.mark.parametrize(
    "line",
    [
        f"x -o {LONG}.png",
        f"x -o {LONG}/",
        f"x --wildcards {LONG}",
        f"x --lora-dir {LONG}",
        f"x --preview-file {LONG}/x.png",
        f"x -m {LONG}",
        f"x -m {LONG}.safetensors",
        f"x --lora {LONG}.safetensors",
        f"--prompts {LONG}",
        f"--params-from {LONG}.png",
        f"info {LONG}",
        f"verify {LONG}",
        f"models show {LONG}",
        f"train {LONG} --out m",
        f"train . --out {LONG}",
        "x -m ~nosuchuser/m",
        "x --vae ~nosuchuser/m.safetensors",
        "x --wildcards ~nosuchuser/ --lora-dir ~nosuchuser/",
    ],
)
def test_names_that_no_system_has_are_one_line(command: Command, folder: Path, line: str) -> None:
    outcome = command(*line.split())
    assert outcome.code in (1, 2) and outcome.out == ""
    [line] = outcome.err.splitlines()
    assert line.startswith("Error: ") and "nexpected" not in line and len(line) < 600
    assert nothing_in(folder)


def test_a_home_that_is_not_known_stays_a_name(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("c.toml").write_text(
        '[models]\nmine = "~nosuchuser/m.safetensors"\n[paths]\nmodels = ["~nosuchuser/"]\n'
    )
    monkeypatch.setenv("TXT2IMG_CONFIG", "c.toml")
    refused(command("x", "-m", "mine"), 1, "~nosuchuser/m.safetensors")
    monkeypatch.setenv("TXT2IMG_MODELS", "~nosuchuser/m")
    monkeypatch.setenv("HF_HUB_CACHE", "~nosuchuser/hub")
    assert command("models", "list").code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[defaults]\nsteps = 0x" + "f" * 5000, "steps must be a text or a number, got a number"),
        ("[defaults]\nlora = [0x" + "f" * 5000 + "]", "got a number of too many digits"),
        ("[models]\nx = 0x" + "f" * 5000, "models.x"),
        ("[defaults]\ncfg = " + "[" * 5000 + "]" * 5000, "not TOML"),
        ("[paths]\nmodels = [0x" + "f" * 5000 + "]", "paths.models must be a list"),
    ],
)
def test_a_config_that_python_cannot_write_again(
    command: Command, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    Path("c.toml").write_text(text)
    monkeypatch.setenv("TXT2IMG_CONFIG", "c.toml")
    refused(command("x"), 1, "c.toml", says)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif"])
def test_a_damaged_picture_of_any_format_is_a_bad_file(folder: Path, kind: str) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole, kind)
    data = whole.getvalue()
    path = Path(f"x.{kind}")
    for at in range(16, len(data), max(1, len(data) // 60)):
        for damaged in (data[:at], data[:at] + b"\xff" * 4 + data[at + 4 :]):
            path.write_bytes(damaged)
            try:
                image_file.read(path)
            except BadFile as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("error", [RuntimeError("odd"), EOFError(), OverflowError("wide")])
def test_whatever_a_picture_library_raises_is_a_bad_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.new("RGB", (8, 8)).save("x.avif")

    def failing(*_: object, **__: object) -> object:
        raise error

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(BadFile, match="is not a whole AVIF file"):
        image_file.read(Path("x.avif"))


@pytest.mark.parametrize("megabytes", [150, 300, 450])
def test_memory_that_ends_during_imports_is_exit_code_5(folder: Path, megabytes: int) -> None:
    limit = f"ulimit -v {megabytes * 1024}; exec"
    outcome = shell(f"{limit} {sys.executable} -m txt2img x -o - {' '.join(SMALL)} >/dev/null")
    assert outcome.returncode == 5, outcome.stderr
    assert outcome.stderr.startswith("Error: the limit on this process's memory (ulimit -v)")
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", ["torch", "typer", "PIL"])
def test_a_missing_library_is_told_with_what_installs_it(folder: Path, package: str) -> None:
    Path("run.py").write_text(
        f"import sys\nsys.modules[{package!r}] = None\nsys.argv = ['txt2img', 'x', '-q']\n"
        "from txt2img.__main__ import main\nmain()\n"
    )
    outcome = shell(f"{sys.executable} run.py")
    name = {"PIL": "pillow"}.get(package, package)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"Error: the package {name} is missing; install it: ")
    assert outcome.stderr.endswith(f" install --upgrade {name}\n") or "--python" in outcome.stderr


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missing.resources, "available", lambda: 2**33)
    old = ImportError("cannot import name 'x' from 'rich'", name="rich.progress")
    line, code = missing.explain(old)
    assert code == 1 and line.startswith("the package rich is broken or too old (cannot import")
    monkeypatch.setattr(missing, "find_spec", lambda name: None)
    assert missing.install_command("rich").startswith("uv pip install --python ")
    line, code = missing.explain(ImportError("cannot import name 'y'", name="txt2img.cli"))
    assert code == 1 and line.endswith("install txt2img again")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_path_is_safe_on_a_terminal_and_exact_in_a_pipe(
    command: Command, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    name = "\x1b]0;x\x07.safetensors"
    Path(name).write_bytes(b"x")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: is_terminal, raising=False)
    printed = command("models", "path", f"./{name}").out
    assert printed == ("\\x1b]0;x\\x07.safetensors\n" if is_terminal else f"{name}\n")


def test_completion_offers_nothing_that_a_terminal_obeys(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder))
    for name in ("plain", "\x1b[2J", "\u202eodd"):
        Path(f"{name}.safetensors").write_bytes(b"x")
    assert "plain" in known_models("")
    assert [one for one in known_models("") if not one.isprintable()] == []


def test_an_unreadable_part_of_a_model_is_a_bad_file(locked: Path) -> None:
    with pytest.raises(BadFile, match="permission denied"):
        open_checkpoint(str(locked))
