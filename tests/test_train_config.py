"""A training run's configuration."""

from pathlib import Path

import pytest

from txt2img.errors import BadFile, BadRequest
from txt2img.train.config import TrainConfig, override, read

RECIPES = sorted((Path(__file__).parent.parent / "txt2img" / "train").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_reads(recipe: Path) -> None:
    config = read(recipe)
    assert config.unet.in_channels == config.vae.latent_channels
    assert config.unet.cross_dim == config.text.width


def test_tables_reach_into_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("size = 64\n[unet]\nchannels = [32, 64]\n[vae_run]\nlr = 1\n", "utf-8")
    config = read(path)
    assert (config.size, config.unet.channels, config.vae_run.lr) == (64, (32, 64), 1.0)
    assert config.unet.cross_dim == TrainConfig().unet.cross_dim


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
        read(path)
    assert "\n" not in str(caught.value)


def test_options_override_and_steps_reach_both_stages() -> None:
    config = override(TrainConfig(), {"steps": 7, "seed": 3, "dtype": None, "out": Path("x")})
    assert config.vae_run.steps == config.unet_run.steps == 7
    assert (config.seed, config.out) == (3, Path("x"))


@pytest.mark.parametrize(
    "option", [{"what": "tea"}, {"prediction": "x0"}, {"prediction": "eps"}, {"size": 100}]
)
def test_impossible_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match=str(next(iter(option.values())))):
        override(TrainConfig(), option)
