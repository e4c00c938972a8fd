"""Configs and tokenizer files decide pixels: records, --resume and verify see them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command
from txt2img.errors import BadFile
from txt2img.images import image_file
from txt2img.weights.checkpoint import open_checkpoint

Change = Callable[[Path], None]
SMALL = ("-W", "64", "-H", "64", "--steps", "2", "--seed", "1", "-q")


def edit(part: str, **values: object) -> Change:
    """Change values of a model's config."""

    def change(folder: Path) -> None:
        path = folder / part
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def swap_merges(folder: Path) -> None:
    """Let the tokenizer join letters in another order."""
    path = folder / "tokenizer" / "merges.txt"
    head, first, *others = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *others, first]) + "\n", encoding="utf-8")


CHANGES: dict[str, Change] = {
    "prediction": edit("scheduler/scheduler_config.json", prediction_type="v_prediction"),
    "betas": edit("scheduler/scheduler_config.json", beta_end=0.013),
    "scaling": edit("vae/config.json", scaling_factor=0.2),
    "activation": edit("text_encoder/config.json", hidden_act="gelu"),
    "groups": edit("unet/config.json", norm_num_groups=16),
    "merges": swap_merges,
    "padding": edit("tokenizer/special_tokens_map.json", pad_token="!"),
}


@pytest.fixture
def model(sd1_folder: Path, folder: Path) -> Path:
    """A copy of a tiny model that may be changed."""
    return Path(shutil.copytree(sd1_folder, folder / "mine"))


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_pixels_is_in_the_hash_of_the_configuration(
    model: Path, change: str
) -> None:
    before = open_checkpoint(str(model)).config_hash()
    CHANGES[change](model)
    assert open_checkpoint(str(model)).config_hash() != before


def test_what_decides_no_pixels_is_not(model: Path) -> None:
    before = open_checkpoint(str(model)).config_hash()
    edit("unet/config.json", _diffusers_version="0.99.0")(model)
    edit("scheduler/scheduler_config.json", steps_offset=0)(model)
    assert open_checkpoint(str(model)).config_hash() == before


def test_the_hash_is_that_of_earlier_versions(sd1_folder: Path) -> None:
    """Records keep it: another value would make --resume draw finished pictures again."""
    assert open_checkpoint(str(sd1_folder)).config_hash() == "4bf8b329"


def test_resume_and_verify_see_a_changed_config(command: Command, model: Path) -> None:
    line = ("a cat", "-m", "mine", "--resume", "-o", "art/{prompt}.png", *SMALL)
    assert command(*line).out == "art/a-cat.png\n"
    assert command(*line).out == ""
    same = command("verify", "art/a-cat.png", "-m", "mine")
    assert (same.code, same.out) == (0, "art/a-cat.png: identical\n")
    CHANGES["betas"](model)
    changed = command("verify", "art/a-cat.png", "-m", "mine")
    assert changed.code == 1
    assert "the model's configs and tokenizers" in changed.out
    assert command(*line, "--dry-run").out.startswith("art/a-cat-2.png\t")
    assert command(*line).out == "art/a-cat-2.png\n"
    again = command("replay", "art/a-cat.png", "-m", "mine", "-o", "new.png", "--dry-run")
    assert "other configs or tokenizer files" in again.err


def test_records_without_a_configuration_still_resume_and_verify(
    command: Command, model: Path
) -> None:
    line = ("a cat", "-m", "mine", "--resume", "-o", "art/{prompt}.png", *SMALL)
    assert command(*line).code == 0
    path = Path("art/a-cat.png")
    texts = image_file.read(path).texts
    record = json.loads(texts["txt2img"])
    assert len(record["model"].pop("config")) == 8
    chunks = PngInfo()
    for key, text in (texts | {"txt2img": json.dumps(record)}).items():
        chunks.add_itxt(key, text)
    with Image.open(path) as image:
        image.load()
        image.save(path, pnginfo=chunks)
    assert command(*line).out == ""
    assert command("verify", str(path), "-m", "mine").code == 0


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("merges.txt", "", "cut short: 0 merges"),
        ("merges.txt", "#version: 0.2\n", "cut short: 0 merges"),
        ("merges.txt", None, "cut short"),
        ("vocab.json", "{}", "lacks"),
        ("vocab.json", "", "broken JSON"),
        ("vocab.json", None, "broken JSON"),
    ],
)
def test_a_cut_tokenizer_is_refused(model: Path, name: str, content: str | None, says: str) -> None:
    path = model / "tokenizer" / name
    text = path.read_text(encoding="utf-8")
    # Cut at the end of a line: each of the others is a whole merge.
    half = text[: text.index("\n", len(text) // 2) + 1] if name == "merges.txt" else text[:9000]
    path.write_text(half if content is None else content, encoding="utf-8")
    with pytest.raises(BadFile, match=says):
        open_checkpoint(str(model))


@pytest.mark.parametrize("value", [0, -0.18, 1e-30, 1e30])
def test_a_scaling_factor_that_no_latent_has_is_refused_at_load(model: Path, value: float) -> None:
    edit("vae/config.json", scaling_factor=value)(model)
    with pytest.raises(BadFile, match="scaling_factor is"):
        open_checkpoint(str(model))
