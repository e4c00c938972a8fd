"""Options have sections in --help, other names that work, and defaults in config.toml."""

import json
from pathlib import Path

import pytest
import typer

from tests.conftest import Command
from txt2img.cli import registry
from txt2img.cli.options.aliases import spellings
from txt2img.cli.options.command import ALIASES, SectionedCommand


def command_of(name: str) -> SectionedCommand:
    """A command as typer makes it."""
    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=SectionedCommand)(registry.command(name)[0])
    made = typer.main.get_command(app)
    assert isinstance(made, SectionedCommand)
    return made


def record(command: Command, *line: str) -> dict[str, object]:
    """What a dry run says of the picture that a line draws."""
    outcome = command("a", "--seed", "1", "--dry-run", "--json", "-q", *line)
    assert outcome.code == 0, outcome.err
    made: dict[str, object] = json.loads(outcome.out)
    return made


def test_other_names_mean_options_and_hide_none() -> None:
    names = command_of("generate").option_names | command_of("train").option_names
    assert set(ALIASES.values()) <= names
    assert not set(ALIASES) & command_of("generate").option_names


def test_a_command_keeps_its_own_name_for_an_option() -> None:
    train, generate = command_of("train"), command_of("generate")
    assert (train.canonical_name("out"), generate.canonical_name("out")) == ("out", "output")
    assert (train.canonical_name("what"), generate.canonical_name("what")) == ("stage", "what")
    assert generate.canonical_name("unknown_name") == "unknown_name"


@pytest.mark.parametrize(
    ("other", "own"),
    [
        ("--num_inference_steps 7 --guidance-scale=3", "--steps 7 --cfg 3"),
        ("--sampling-method heun --cfg_scale 2", "--sampler heun --cfg 2"),
        ("--sampler-name euler --negative-prompt blurry", "--sampler euler -n blurry"),
        ("--num-images 1 --neg=-x --outdir pictures", "--count 1 --negative=-x -o pictures/"),
        ("--n_iter 1 --out b.png --schedule-type karras", "--count 1 -o b.png --schedule karras"),
        ("--reuse 2 --no-warm", "--deepcache 2 --no-keep-alive"),
    ],
)
def test_other_programs_and_former_names_mean_the_same(
    command: Command, other: str, own: str
) -> None:
    assert record(command, *other.split()) == record(command, *own.split())


@pytest.mark.parametrize("option", ["-p", "--prompt"])
def test_the_prompt_may_be_an_option(command: Command, option: str) -> None:
    assert command(option, "a cat", "--dry-run", "--seed", "1").out.endswith("a cat\n")
    assert command(option, "a cat", "a dog", "--dry-run").code == 2


def test_a_value_may_look_like_another_name(command: Command) -> None:
    assert record(command, "-n", "--cfg-scale")["negative"] == "--cfg-scale"


def test_the_config_takes_other_names_too(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_CONFIG", str(folder / "config.toml"))
    (folder / "config.toml").write_text("[defaults]\ncfg_scale = 3\n")
    assert record(command)["cfg"] == 3.0
    (folder / "config.toml").write_text('[defaults]\nshow = "nicely"\n')
    assert '--preview "nicely"' in command("a", "--dry-run").err


def test_other_names_are_not_shown(command: Command) -> None:
    text = command("--help").out
    shown = {word.rstrip(",") for word in text.split() if word.startswith("-")}
    hidden = {f"--{name}" for name in (*ALIASES, "show", "outdir", "prompt")}
    assert not shown & hidden


def test_spellings_are_all_that_mean_an_option() -> None:
    assert spellings("keep-alive") == ("--keep-alive", "--keep_alive", "--warm")
