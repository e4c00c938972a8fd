"""A training run's configuration."""

from dataclasses import replace
from pathlib import Path

import pytest

from txt2img.errors import BadFile, BadRequest
from txt2img.train.config import Run, TrainConfig, read_config, with_options

RECIPES = sorted(
    (Path(__file__).parent.parent.parent / "txt2img" / "train" / "default_model").glob("*.toml")
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_reads(recipe: Path) -> None:
    config = read_config(recipe)
    assert config.unet.in_channels == config.vae.latent_channels
    assert config.unet.cross_dim == config.text.width


def test_tables_reach_into_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("size = 64\n[unet]\nchannels = [32, 64]\n[vae_run]\nlr = 1\n", "utf-8")
    config = read_config(path)
    assert (config.size, config.unet.channels, config.vae_run.lr) == (64, (32, 64), 1.0)
    assert config.unet.cross_dim == TrainConfig().unet.cross_dim


def test_minutes_may_be_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("single_object_share = 1\n[unet_run]\nminutes = 3\n", "utf-8")
    config = read_config(path)
    assert (config.single_object_share, config.unet_run.minutes, config.vae_run.minutes) == (
        1.0,
        3.0,
        None,
    )


def test_steps_reach_the_stages_that_have_some_or_are_asked_for() -> None:
    everything = with_options(TrainConfig(), {"steps": 5})
    assert (everything.unet_run.steps, everything.decoder_run.steps) == (5, 0)
    assert with_options(TrainConfig(), {"steps": 5, "stage": "decoder"}).decoder_run.steps == 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stop_after": 0.0}, "stop_after"),
        ({"single_object_share": 1.5}, "single_object_share"),
        ({"unet_run": Run(minutes=-1.0)}, "unet_run"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        replace(TrainConfig(), **options)


@pytest.mark.parametrize(
    ("text", "told"),
    [("sise = 64", "sise"), ("[unet]\nchanels = [1]", "chanels"), ("size = ", "my.toml")],
)
def test_a_bad_file_is_one_line_that_names_the_culprit(
    tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(BadFile, match=told) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_options_override_and_steps_reach_both_stages() -> None:
    config = with_options(TrainConfig(), {"steps": 7, "seed": 3, "dtype": None, "out": Path("x")})
    assert config.vae_run.steps == config.unet_run.steps == 7
    assert (config.seed, config.out) == (3, Path("x"))


@pytest.mark.parametrize(
    "option", [{"stage": "tea"}, {"prediction": "x0"}, {"prediction": "eps"}, {"size": 100}]
)
def test_impossible_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match=str(next(iter(option.values())))):
        with_options(TrainConfig(), option)


def test_older_names_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    text = 'what = "distil"\nnoisy = 0.5\nsingles = 0.25\ndrafts = 7\ndistil_steps = 3\n'
    path.write_text(f"{text}[distil_run]\nsteps = 9\n", "utf-8")
    config = with_options(read_config(path), {})
    assert (config.stage, config.time_bias, config.single_object_share) == ("distill", 0.5, 0.25)
    assert (config.noised_samples, config.distill_steps, config.distill_run.steps) == (7, 3, 9)
    assert with_options(TrainConfig(), {"what": "distil"}).stage == "distill"
