"""A name finds one model, or says why not."""

import os
from pathlib import Path

import pytest

from txt2img.errors import BadRequest, ModelNotFound
from txt2img.weights.registry import find


@pytest.fixture
def models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two folders of models that are searched."""
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("TXT2IMG_MODELS", f"{folder / 'one'}{os.pathsep}{folder / 'two'}")
    for name in ("one/a.safetensors", "one/deep/b.safetensors", "two/c/unet/w.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_names_of_files_and_folders_are_found_in_subfolders_too(models: Path) -> None:
    assert find.find("a") == find.find("a.safetensors") == models / "one/a.safetensors"
    assert find.find("b") == find.find("deep/b") == models / "one/deep/b.safetensors"
    assert find.find("c") == models / "two/c"
    assert find.names() == ["a", "c", "deep/b", "default", "few-steps"]


def test_two_of_a_name_are_both_named(models: Path) -> None:
    (models / "two/b.safetensors").write_bytes(b"y")
    (models / "two/a.safetensors").write_bytes(b"y")
    assert find.find("b") == models / "two/b.safetensors"  # its whole name, not its last part
    with pytest.raises(BadRequest, match=r'"a" may be any of 2: .*one/a\..*two/a\.'):
        find.find("a")


def test_the_config_names_models(models: Path) -> None:
    config = models / "config/txt2img/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[models]\nmine = "{(models / "two/c").as_posix()}"\n[paths]\nmodels=["m"]')
    (config.parent / "m").mkdir()
    (config.parent / "m/d.safetensors").write_bytes(b"z")
    assert find.find("mine") == models / "two/c"
    assert find.find("d") == config.parent / "m/d.safetensors"


@pytest.mark.parametrize("name", ["sd15", "owner/model", "owner/model@v1"])
def test_what_is_not_here_is_not_fetched(models: Path, name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"txt2img models pull {name}$"):
        find.find(name)


def test_hidden_folders_are_not_searched(models: Path) -> None:
    (models / "one/.pulling").mkdir()
    (models / "one/.pulling/half.safetensors").write_bytes(b"h")
    with pytest.raises(ModelNotFound, match='no model "half"'):
        find.find("half")
