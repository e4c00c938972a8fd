"""models rm and default, env, again; tables on terminals and tabs in pipes."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from shutil import copyfile

import pytest

from tests.conftest import Command
from txt2img.cli.last_line import with_new_seeds
from txt2img.cli.terminal import console
from txt2img.images import image_file
from txt2img.system import user_config
from txt2img.weights.registry import hub_cache
from txt2img.weights.registry.find import SHIPPED


@pytest.fixture
def own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models with a LoRA, and user folders of the test's own."""
    for name in ("DATA", "CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name))
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder / "own"))
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.delenv("TXT2IMG_CONFIG", raising=False)
    (folder / "own").mkdir()
    copyfile(SHIPPED / "few-steps.safetensors", folder / "own" / "mine.safetensors")
    return folder / "own"


def test_a_model_is_deleted_when_it_is_said_for_sure(own: Path, command: Command) -> None:
    asked = command("models", "rm", "mine")
    assert asked.code == 2 and "say --yes" in asked.err and (own / "mine.safetensors").exists()
    done = command("models", "rm", "mine", "--yes")
    assert done.code == 0 and not list(own.iterdir())
    assert done.out == f"{own / 'mine.safetensors'}\n"


def test_what_is_in_no_folder_of_models_stays(own: Path, command: Command) -> None:
    (own / "mine.safetensors").rename("elsewhere.safetensors")
    outside = command("models", "rm", "elsewhere.safetensors", "--yes")
    assert outside.code == 2 and "delete it yourself" in outside.err
    for name in ("default", "few-steps"):
        kept = command("models", "rm", name, "--yes")
        assert kept.code == 2 and "comes with txt2img" in kept.err


def test_a_link_is_deleted_and_not_what_it_leads_to(own: Path, command: Command) -> None:
    (own / "mine.safetensors").rename("real.safetensors")
    (own / "mine.safetensors").symlink_to(Path("real.safetensors").absolute())
    assert command("models", "rm", "mine", "--yes").code == 0
    assert Path("real.safetensors").exists() and not list(own.iterdir())


def test_a_model_of_the_hub_goes_with_its_repository(own: Path, command: Command) -> None:
    repository = hub_cache.cache_dir() / "models--some--lora"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    copyfile(SHIPPED / "few-steps.safetensors", snapshot / "x.safetensors")
    done = command("models", "rm", "some/lora:x.safetensors", "--yes")
    assert done.code == 0, done.err
    assert not repository.exists()


def test_the_default_model_is_printed_and_set(own: Path, command: Command) -> None:
    from tests.support import tiny

    assert command("models", "default").out == "default\n"
    model = tiny.sd1().folder
    assert command("models", "default", str(model)).code == 0
    assert command("models", "default").out == f"{model}\n"
    told = command("x", "--dry-run", "-o", "o/")
    assert told.err.startswith(f"{model.name}: ")
    lora = command("models", "default", "mine")
    assert lora.code == 1  # it is no model


@pytest.mark.parametrize(
    "before",
    [
        "",
        "# mine\n[defaults]\nsteps = 5  # few\n",
        '[defaults]\nmodel = "old"\nsteps = 5\n\n[models]\nx = "y/z"\n',
        '[models]\nx = "y/z"',
        "[profiles.fast]\nsteps = 4\n",
    ],
)
def test_other_lines_of_the_config_stay(
    before: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "sub" / "config.toml"
    monkeypatch.setenv("TXT2IMG_CONFIG", str(path))
    path.parent.mkdir()
    path.write_text(before)
    value = 'a "model" \\ é'
    assert user_config.set_default("model", value) == path
    config = user_config.read_config()
    assert config.defaults["model"] == value
    lines = [line for line in before.splitlines() if not line.startswith("model")]
    assert [line for line in path.read_text().splitlines() if line in lines] == lines


def test_env_tells_what_a_report_needs_and_no_secret(
    own: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-value")
    record = json.loads(command("env", "--json").out)
    assert record["schema"] == 1 and record["packages"]["torch"] and record["devices"]["cpu"]
    assert str(own) in record["folders"]["models 1"]
    text = command("env")
    assert "secret-value" not in text.out + json.dumps(record)
    assert "txt2img " in text.out and text.err == ""


def test_again_draws_the_same_with_new_seeds(own: Path, command: Command) -> None:
    assert command("again").code == 2
    first = command("red apple", "--steps", "1", "--seed", "5", "-o", "a.png")
    assert first.code == 0
    two = command("again", "-n", "2", "--cfg", "3")
    assert two.code == 0 and len(two.out.splitlines()) == 2
    requests = [image_file.read(Path(path)).request for path in two.out.splitlines()]
    for request in requests:
        assert request is not None and request.seed != 5
        assert (request.prompt, request.steps, request.cfg) == ("red apple", 1, 3.0)
    assert command("x", "--dry-run").code == 0
    assert command("again", "--dry-run").out.endswith("red apple\n")  # a dry run is not kept


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("x --seed 5 --steps 3", "x --steps 3 --seed -1 --count 4"),
        ("x --seed=5 -o a/", "x -o a/ --seed -1 --count 4"),
        ("-o a.png x", "-o a-{seed}.png x --seed -1 --count 4"),
        ("-o {prompt}-{seed}.png x", "-o {prompt}-{seed}.png x --seed -1 --count 4"),
        ("--output=b.webp -- --seed", "--output b-{seed}.webp --seed -1 --count 4 -- --seed"),
    ],
)
def test_a_line_loses_its_seed_and_keeps_the_rest(line: str, changed: str, folder: Path) -> None:
    assert with_new_seeds(line.split(), 4) == changed.split()


def test_names_may_hold_the_day_and_the_models_hash(own: Path, command: Command) -> None:
    name = "{date}_{time}_{hash}_{seed}.png"
    done = command("red apple", "--steps", "1", "--seed", "5", "-o", name)
    day, clock, digits, seed = Path(done.out.strip()).stem.split("_")
    assert len(day) == 10 and clock.isdigit() and len(clock) == 6 and seed == "5"
    assert digits == image_file.read(Path(done.out.strip())).origin.hash
    dry = command("red apple", "--steps", "1", "--seed", "5", "-o", name, "--dry-run")
    assert f"_{digits}_5" in dry.out  # and -2 if it is the same second


def test_a_dry_run_tells_what_differs_between_lines(own: Path, command: Command) -> None:
    swept = command("cat", "--sweep", "cfg=1,2", "--seed", "1", "--dry-run", "-o", "o/").out
    assert [line.split("\t")[2] for line in swept.splitlines()] == ["cfg 1", "cfg 2"]
    Path("p.txt").write_text("cat\ndog --steps 7 --sampler heun\n")
    lines = command("--prompts", "p.txt", "--seed", "1", "--dry-run", "-o", "o/").out.splitlines()
    assert lines[0].split("\t")[1:] == ["seed 1", "cat"]
    assert lines[1].split("\t")[1:] == ["seed 1", "steps 7", "sampler heun", "dog"]


def test_steps_and_animations_are_told(own: Path, command: Command) -> None:
    line = ("red apple", "--steps", "2", "--seed", "1", "-o", "a.png", "--animate", "webp")
    done = command(*line, "--save-steps")
    assert done.out == "a.png\n"
    saved = [line for line in done.err.splitlines() if line.startswith("Saved ")]
    assert len(saved) >= 2 and all(Path(line.removeprefix("Saved ")).exists() for line in saved)
    assert command(*line, "-q", "--overwrite").err == ""


def test_rows_are_a_table_on_a_terminal_and_tabs_in_a_pipe(own: Path, command: Command) -> None:
    listed = command("models", "list").out.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["default", "mine", "few-steps"]
    assert json.loads(command("models", "list", "--json").out.splitlines()[0])["schema"] == 1
    leader, follower = pty.openpty()
    code = "from txt2img.cli import app; app.run(['models', 'list'])"
    with os.fdopen(leader, "rb") as terminal:
        subprocess.run([sys.executable, "-c", code], stdout=follower, check=True)
        os.close(follower)
        text = b""
        while not text.endswith(b"few-steps.safetensors\r\n"):
            text += terminal.read1(4096)
    lines = text.decode().splitlines()
    assert lines[0].split() == ["NAME", "KIND", "LAYOUT", "SIZE", "PATH"]
    assert len({line.index("  ") > 0 for line in lines}) == 1
    assert lines[0].index("KIND") == lines[1].index("latent diffusion")


def test_an_empty_table_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    console.print_table(("A", "B"), [])
    assert capfd.readouterr().out == ""
