"""Options have sections in --help, other names that work, and defaults in config.toml."""

import json
from pathlib import Path

import pytest
import typer

from tests.conftest import Command
from txt2img.cli import registry
from txt2img.cli.options.aliases import spellings
from txt2img.cli.options.command import (
    ALIASES,
    LEFT_OUT,
    SectionedCommand,
    with_left_out_values,
)
from txt2img.images import image_file
from txt2img.request.fields import Transparent


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
    hidden = {f"--{name}" for name in (*ALIASES, "outdir", "prompt")}
    assert not shown & hidden


def test_spellings_are_all_that_mean_an_option() -> None:
    assert spellings("keep-alive") == ("--keep-alive", "--keep_alive", "--warm")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('steps = "abc"', 'defaults.steps must be a whole number, got "abc"'),
        ("steps = 0", "defaults.steps: steps must be 1 … 10,000"),
        ('cfg_scale = "x"', "defaults.cfg_scale must be a number"),
        ('sampler = "eulr"', 'defaults.sampler: no sampler "eulr"'),
        ('lora = ["few-steps", "nope"]', 'defaults.lora: --lora: no file "nope"'),
        ('lora = ["bad.safetensors"]', "defaults.lora: bad.safetensors is a text, not weights"),
        ('format = "bmp"', 'defaults.format: no format "bmp"'),
        ('sweep = ["cfg"]', "defaults.sweep: --sweep"),
        ('device = "gpu"', 'defaults.device: no device "gpu"'),
        ('model = "nomodel"', 'defaults.model: no model "nomodel"'),
    ],
)
def test_an_error_in_a_value_of_the_config_names_its_place(
    line: str, place: str, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_CONFIG", "config.toml")
    Path("config.toml").write_text(f"[defaults]\n{line}\n", encoding="utf-8")
    Path("bad.safetensors").write_bytes(b"x" * 20)
    done = command("cat", "--dry-run", "-o", "o/")
    assert done.code in (1, 2) and done.err.count("\n") == 1
    assert f'"config.toml": {place}' in done.err


def test_an_error_on_the_line_is_not_blamed_on_the_config(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_CONFIG", "config.toml")
    text = "[defaults]\nsteps = 5\n[profiles.x]\nsteps = 0\n"
    Path("config.toml").write_text(text, encoding="utf-8")
    assert command("cat", "--steps", "0", "--dry-run").err.startswith("Error: steps must be")
    assert "profiles.x.steps: steps must" in command("cat", "--profile", "x", "--dry-run").err


def test_a_default_lora_is_not_forced_upon_a_model_it_does_not_fit(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import tiny

    monkeypatch.setenv("TXT2IMG_CONFIG", "config.toml")
    Path("config.toml").write_text('[defaults]\nlora = ["few-steps"]\n', encoding="utf-8")
    other = command("cat", "--model", str(tiny.sd1().folder), "--dry-run", "-o", "o/")
    assert other.code == 0 and "config.toml's --lora few-steps is left out" in other.err
    own = command("cat", "--dry-run", "-o", "o/")
    assert own.code == 0 and "left out" not in own.err and "4 steps" in own.err
    asked = command("cat", "--model", str(tiny.sd1().folder), "--lora", "few-steps", "--dry-run")
    assert asked.code == 1


def test_a_line_without_words_has_no_values_left_out() -> None:
    assert with_left_out_values([]) == []
    masked = "--only-masked"
    assert with_left_out_values([masked]) == [masked, LEFT_OUT[masked][0]]


def test_transparency_has_one_option_everywhere(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_CONFIG", "config.toml")
    Path("config.toml").write_text("[profiles.cut]\ntransparent = true\n", encoding="utf-8")
    Path("lines.txt").write_text("an apple --transparent border\n", encoding="utf-8")
    border = ["an apple", "--transparent", "border"]
    for options in (border, ["an apple", "--transparent-border"], ["--prompts", "lines.txt"]):
        done = draw(*options, "--seed", "1", "-o", "a.png", "--overwrite")
        assert done.code == 0, done.err
        request = image_file.read(Path("a.png")).request
        assert request and request.transparent is Transparent.BORDER
    for options in (["--transparent"], ["--profile", "cut"]):
        assert "draws no transparent pictures" in draw("an apple", *options).err
    assert draw("an apple", "--profile", "cut", "--transparent", "none", "-q").code == 0
