"""Diffusion transformers' files: what is missing is said, sets are named once, parts are found."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Command
from tests.support import tiny_transformers
from txt2img.errors import BadRequest, MissingWeights, UnknownLayout
from txt2img.images.image_file import read
from txt2img.request.resolve import ComponentOverrides
from txt2img.weights.checkpoint import check_complete, open_checkpoint, summary

SIZE = ("--width", "64", "--height", "64", "--steps", "1", "--seed", "1")


def test_what_a_lone_network_lacks_is_said_by_name_with_its_source(command: Command) -> None:
    files = tiny_transformers.flux_dev()
    assert summary(str(files.network)).family.name == "FLUX.1 dev"
    outcome = command("a", "--model", str(files.network), *SIZE, "-o", "x.png")
    assert outcome.code and not Path("x.png").exists()
    for name in ("clip_l.safetensors", "t5xxl_fp16.safetensors", "ae.safetensors", "--vae"):
        assert name in outcome.err
    [clip, _] = files.texts
    checkpoint = open_checkpoint(
        str(files.network), overrides=ComponentOverrides(None, (str(clip),))
    )
    with pytest.raises(MissingWeights, match="needs t5xxl_fp16") as caught:
        check_complete(checkpoint, str(files.vae))
    assert "clip_l" not in str(caught.value)


def test_a_text_encoder_that_a_family_has_not_is_an_error() -> None:
    files = tiny_transformers.flux_dev()
    twice = ComponentOverrides(None, (str(files.texts[1]), str(files.texts[1])))
    with pytest.raises(BadRequest, match=r"t5xxl.safetensors.* is one too many for FLUX.1 dev"):
        open_checkpoint(str(files.network), overrides=twice)


def test_stable_diffusion_3_draws_without_t5(command: Command) -> None:
    files = tiny_transformers.sd3()
    clips = [part for path in files.texts[:2] for part in ("--text-encoder", str(path))]
    model = ("--model", str(files.network), *clips, "--vae", str(files.vae))
    assert command("a", *model, *SIZE, "-o", "x.png").code == 0


def test_a_set_of_files_is_named_once_in_the_config(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_transformers.flux_dev()
    config = Path("config.toml").absolute()
    texts = ", ".join(f'"{path}"' for path in files.texts)
    config.write_text(
        f'[models.dev]\npath = "{files.network}"\nvae = "{files.vae}"\ntext_encoders = [{texts}]\n'
    )
    monkeypatch.setenv("TXT2IMG_CONFIG", str(config))
    assert command("a", "--model", "dev", *SIZE, "-o", "set.png").code == 0
    split = [part for path in files.texts for part in ("--text-encoder", str(path))]
    parts = ("--model", str(files.network), *split, "--vae", str(files.vae))
    assert command("a", *parts, *SIZE, "-o", "parts.png").code == 0
    by_set, by_parts = read(Path("set.png")), read(Path("parts.png"))
    assert by_set.pixels_sha256 == by_parts.pixels_sha256
    assert by_set.request is not None and by_set.request.model == "dev"
    assert by_set.request.guidance == 3.5


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--tile", "xy"), "--tile: FLUX.1 schnell cannot draw seamless pictures"),
        (("--deepcache", "2"), "--deepcache: FLUX.1 schnell has a transformer"),
        (("--guidance", "3"), "--guidance: FLUX.1 schnell takes no such scale"),
        (("--width", "72"), "width must be a multiple of 16, got 72"),
    ],
)
def test_options_of_other_architectures_are_refused(
    command: Command, option: tuple[str, str], words: str
) -> None:
    folder = str(tiny_transformers.flux_schnell().folder)
    outcome = command("a", "--model", folder, *SIZE, *option, "--dry-run")
    assert outcome.code and words in outcome.err


def test_unknown_and_missing_tensors_are_errors_with_the_files_own_names(tmp_path: Path) -> None:
    files, path = tiny_transformers.flux_dev(), tmp_path / "x.safetensors"
    tensors = load_file(files.single)
    save_file({**tensors, "mystery.weight": torch.zeros(1)}, path)
    with pytest.raises(MissingWeights, match=r'mystery.weight" of this file .* FLUX'):
        open_checkpoint(str(path))
    name = "model.diffusion_model.img_in.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(UnknownLayout, match=r"img_in.weight is missing"):
        open_checkpoint(str(path))
