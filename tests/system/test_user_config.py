"""config.toml: what it may say, what comes before what, and what is wrong in it."""

import json
from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.errors import BadFile
from txt2img.system import user_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the config file is looked for."""
    path = tmp_path / "config.toml"
    monkeypatch.setenv("TXT2IMG_CONFIG", str(path))
    return path


def test_without_a_file_there_are_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TXT2IMG_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_config.read_config() == user_config.UserConfig(tmp_path / "txt2img" / "config.toml")


def test_the_command_line_comes_before_the_profile_before_the_defaults(
    config: Path, command: Command
) -> None:
    config.write_text(
        '[defaults]\nsteps = 3\ncfg = 4\nseed = 1\n[profiles.fast]\nsteps = 5\nsampler = "heun"\n'
        "cfg_rescale = 0.5"
    )

    def drawn(*more: str) -> tuple[object, ...]:
        record = json.loads(command("x", "--dry-run", "--json", "-q", *more).out)
        return tuple(record[key] for key in ("steps", "cfg", "sampler"))

    assert drawn() == (3, 4.0, "dpm++2m")  # the model's own
    assert drawn("--profile", "fast") == (5, 4.0, "heun")
    assert drawn("--profile", "fast", "--steps", "7") == (7, 4.0, "heun")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[default]\nsteps = 3", "did you mean defaults"),
        ("[defaults]\nstep = 3", "did you mean steps"),
        ("[profiles.a]\nsampller = 'heun'", "did you mean sampler"),
        ("[defaults]\nquiet = 3", "quiet must be true or false"),
        ("[defaults]\nsteps = true", "steps must be a text or a number"),
        ("[defaults]\nsteps = [1, 2]", "steps must be"),
        ("defaults = 3", "must be a table"),
        ("x = ", "not TOML"),
        ("[models]\nm = 3", "must be a path or a Hub id"),
        ("[paths]\nmodels = 3", "must be a list"),
    ],
)
def test_what_is_wrong_is_one_line(config: Path, command: Command, text: str, said: str) -> None:
    config.write_text(text)
    outcome = command("x", "--dry-run", "-q", "--seed", "1")
    assert outcome.code == 1 and said in outcome.err and outcome.err.count("\n") == 1
    assert command("--help").code == 0


def test_an_unknown_profile_names_the_nearest(config: Path, command: Command) -> None:
    config.write_text("[profiles.fast]\nsteps = 5")
    outcome = command("x", "--profile", "fsat", "--dry-run")
    assert outcome.code == 2 and "did you mean fast" in outcome.err


def test_models_are_paths_or_ids(config: Path) -> None:
    config.write_text('[models]\na = "./a"\nb = "o/m@v1"\nc = {id = "o/n", revision = "r"}')
    assert user_config.read_config().models == {
        "a": user_config.ModelSource(str(config.parent / "a")),
        "b": user_config.ModelSource("o/m", "v1"),
        "c": user_config.ModelSource("o/n", "r"),
    }


def test_a_file_that_is_named_must_be_there(config: Path) -> None:
    with pytest.raises(BadFile, match="cannot read"):
        user_config.read_config()


def test_what_a_picture_says_of_itself_comes_before_the_defaults(
    config: Path, command: Command, tmp_path: Path
) -> None:
    picture = str(tmp_path / "a.png")
    config.write_text("")
    drawn = command("x", "--steps", "1", "-W", "64", "-H", "64", "-q", "-o", picture)
    assert drawn.code == 0, drawn.err
    config.write_text('[defaults]\nsteps = 3\ncompat = "comfyui"\nclip_skip = 2')
    record = json.loads(command("--from", picture, "--dry-run", "--json", "-q").out)
    assert (record["steps"], record.get("compat"), record.get("clip_skip")) == (1, None, None)
