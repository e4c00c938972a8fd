"""What is seen of a picture while it comes into being: files, animations, the terminal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image, ImageChops

from tests.cli.test_errors import nothing_in, refused
from tests.conftest import Command
from tests.images.test_animation import milliseconds
from txt2img.cli import live_preview
from txt2img.errors import BadOutput, Rejected
from txt2img.images import animation, image_file
from txt2img.models.latent_preview import colours
from txt2img.pipeline import batch, preview
from txt2img.pipeline.decode import to_image
from txt2img.pipeline.preview import Previewer
from txt2img.request.fields import Tile
from txt2img.system.device.memory import MemoryState

if TYPE_CHECKING:
    from txt2img.weights.model import Model

LINE = ("x", "-q", "--seed", "1")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def step_of(path: Path) -> object:
    return json.loads(image_file.read(path).texts[animation.STEP_KEY])["step"]


def alike(first: Path, second: Path) -> bool:
    """Whether no pixel of two pictures differs by more than rounding."""
    with Image.open(first) as one, Image.open(second) as other:
        differences = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
        return max(high for _, high in differences.getextrema()) <= 1


def test_previews_change_nothing_of_the_picture(draw: Command, folder: Path) -> None:
    draw(*LINE, "-o", "plain.png")
    outcome = draw(
        *(
            *LINE,
            "-o",
            "seen.png",
            "--save-steps",
            "--animate",
            "webp",
            "--preview-file",
            "now.png",
        ),
    )
    assert (outcome.code, outcome.out, outcome.err) == (0, "seen.png\n", "")
    assert Path("plain.png").read_bytes() == Path("seen.png").read_bytes()
    wanted = ["now.png", "plain.png", "seen-step-001.png", "seen-step-002.png"]
    assert names(folder) == [*wanted, "seen.png", "seen.webp"]
    assert [step_of(Path(name)) for name in wanted[2:]] == [1, 2]
    for name in wanted:
        with Image.open(name) as image:
            assert image.size == (64, 64)
    with Image.open("seen.webp") as image:
        assert image.size == (64, 64)
    assert milliseconds(Path("seen.webp")) == 2 * 250 + animation.LAST_SHOWN
    with Image.open("now.png") as last, Image.open("seen.png") as picture:
        assert last.tobytes() == picture.convert("RGB").tobytes()


def test_a_resumed_batch_takes_no_step_for_a_picture(draw: Command, folder: Path) -> None:
    line = (*LINE, "--count", "2", "-o", "new/", "--save-steps", "--animate", "png")
    assert draw(*line).out.split() == ["new/x-1.png", "new/x-2.png"]
    before = names(folder)
    assert len(before) == 1 + 2 * (1 + 2 + 1)
    again = draw(*line, "--resume")
    assert (again.code, again.out) == (0, "")
    Path("new/x-1.png").unlink()
    assert draw(*line, "--resume").out == "new/x-1.png\n"
    assert names(folder) == before  # the old steps were replaced, none were numbered


def test_each_of_several_pictures_has_its_own_animation(draw: Command, folder: Path) -> None:
    line = (*LINE[1:], "--count", "2", "--batch-size", "2", "-o", "new/")
    assert draw("x", *line, "--animate", "gif").code == 0
    Path("moving").mkdir()
    assert draw("y", *line, "--animate", "moving/all.webp").code == 0
    assert names(folder) == [
        *("moving", "moving/y-1.webp", "moving/y-2.webp"),
        *("new", "new/x-1.gif", "new/x-1.png", "new/x-2.gif", "new/x-2.png"),
        *("new/y-1.png", "new/y-2.png"),
    ]


def test_one_picture_has_the_animation_that_was_named(draw: Command, folder: Path) -> None:
    draw(*LINE, "-o", "x.png", "--animate", "way.webp", "--preview-every", "2")
    # The second step, and the picture.
    assert milliseconds(Path("way.webp")) == 250 + animation.LAST_SHOWN
    assert names(folder) == ["way.webp", "x.png"]


def test_a_picture_on_standard_output_has_nothing_beside_it(draw: Command, folder: Path) -> None:
    refused(draw(*LINE, "-o", "-", "--save-steps"), 2, "name it with -o")
    refused(draw(*LINE, "-o", "-", "--animate", "webp"), 2, "name it with -o")
    assert nothing_in(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preview", "nicely"), "choose from auto, kitty"),
        (("--animate", "x.mp4"), "name a file or a kind: webp, gif, png"),
        (("--preview-file", "x.jpg"), "must be a .png file"),
        (("--preview-file", "nowhere/x.png"), 'no folder "nowhere"'),
        (("--preview-file", "./o.png", "-o", "o.png"), "the same file"),
        (("--preview-every", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    draw: Command, folder: Path, options: tuple[str, ...], message: str
) -> None:
    refused(draw(*LINE, *options), 2, message)
    assert nothing_in(folder)


def test_no_picture_is_lost_to_a_preview(draw: Command, folder: Path) -> None:
    assert draw(*LINE, "-o", "mine.png").code == 0
    before = Path("mine.png").read_bytes()
    refused(draw(*LINE, "--preview-file", "mine.png"), 1, "exists; add --overwrite")
    refused(draw(*LINE, "--animate", "mine.png"), 1, "exists; add --overwrite")
    assert Path("mine.png").read_bytes() == before
    assert draw(*LINE, "--preview-file", "p.png", "-o", "1.png").code == 0
    assert draw(*LINE, "--preview-file", "p.png", "-o", "2.png").code == 0  # its own is replaced


def test_a_full_disk_costs_steps_but_no_picture(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise BadOutput("cannot write: no space left")

    monkeypatch.setattr(animation, "write", full)
    outcome = draw(*LINE, "-o", "a.png", "--preview-file", "now.png")
    assert (outcome.code, outcome.out) == (0, "a.png\n")
    assert outcome.err == "No more previews: cannot write: no space left\n"
    outcome = draw(*LINE, "-o", "b.png", "--save-steps")
    assert (outcome.code, outcome.out) == (1, "b.png\n")
    assert outcome.err == "Error: cannot write: no space left\n"
    assert names(folder) == ["a.png", "b.png"]


def test_a_picture_drawn_again_has_the_steps_of_its_last_try(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = batch.decode, []

    def decode(*given: object) -> object:
        tries.append(1)
        if len(tries) == 1:
            raise Rejected("no")
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "decode", decode)
    line = (*LINE, "-o", "x.png", "--save-steps", "--retries", "1", "--animate", "webp")
    assert draw(*line).code == 0
    assert names(folder) == ["x-step-001.png", "x-step-002.png", "x.png", "x.webp"]
    drawn = image_file.read(Path("x.png")).request
    said = json.loads(image_file.read(Path("x-step-001.png")).texts[animation.STEP_KEY])
    assert drawn and said["request"]["seed"] == drawn.seed != 1
    assert milliseconds(Path("x.webp")) == 2 * 250 + animation.LAST_SHOWN


def test_info_says_which_step_a_file_is(draw: Command, command: Command, folder: Path) -> None:
    draw(*LINE, "-o", "x.png", "--save-steps", "--animate", "webp")
    record = json.loads(command("info", "--json", "x-step-002.png").out)
    assert record["txt2img-step"]["step"] == 2
    assert record["request"] == "" and record["txt2img"] == ""
    assert json.loads(command("info", "--json", "x.webp").out)["txt2img-step"]["animation"] == 2


def test_the_steps_seen_are_those_of_the_sampler(
    draw: Command, monkeypatch: pytest.MonkeyPatch, sd1_model: "Model"
) -> None:
    looked: list[torch.Tensor] = []
    real = Previewer.images

    def images(self: Previewer, x0: torch.Tensor, *rest: Tile | None) -> list[Image.Image]:
        looked.append(x0)
        return real(self, x0, *rest)

    monkeypatch.setattr(Previewer, "images", images)
    assert draw(*LINE, "-o", "x.png", "--save-steps").code == 0
    own = colours(sd1_model.vae, sd1_model.family.vae)
    with Image.open("x-step-002.png") as image:
        small = to_image(own.of(looked[1])[0])
        assert image.tobytes() == live_preview.resized(small, (64, 64)).tobytes()


def test_the_own_vae_previews_as_the_picture_will_be(draw: Command, folder: Path) -> None:
    # The last step's clean picture is the picture.
    line = (*LINE, "-o", "x.png", "--save-steps", "--preview-vae", "own", "--sampler", "euler")
    assert draw(*line).code == 0
    assert alike(Path("x-step-002.png"), Path("x.png"))


def test_a_tiny_vae_previews(draw: Command, folder: Path) -> None:
    from tests.models.test_taesd import as_decoder, peer

    tiny = peer()
    path = as_decoder(tiny, folder)
    assert draw(*LINE, "-o", "a.png", "--save-steps", "--preview-vae", str(path)).code == 0
    assert draw(*LINE, "-o", "b.png", "--vae", str(path)).code == 0
    assert alike(Path("a-step-002.png"), Path("b.png"))
    assert draw(*LINE, "-o", "c.png", "--save-steps", "--vae", str(path)).code == 0
    assert alike(Path("c-step-001.png"), Path("a-step-001.png"))  # a tiny VAE previews itself
    assert image_file.read(Path("a.png")).request.vae is None  # type: ignore[union-attr]


def test_previews_are_coarse_once_memory_is_short(
    sd1_model: "Model", monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    model = replace(sd1_model, memory=MemoryState())
    made = Previewer(model, vae := model.vae)
    made._colours = colours(vae, model.family.vae)
    monkeypatch.setattr(vae, "decode", short)
    [picture] = made.images(torch.randn(1, 4, 5, 6))
    assert picture.size == (6, 5)
    assert model.memory.pop_warnings() == [preview.SHORT]


def test_what_is_no_number_is_still_a_picture(sd1_model: "Model") -> None:
    x0 = torch.full((1, 4, 2, 2), float("nan"))
    [picture] = Previewer(sd1_model).images(x0)
    assert picture.size == (2, 2)


def test_an_animation_is_not_taken_for_a_picture_of_its_kind(draw: Command, folder: Path) -> None:
    line = (*LINE, "--count", "2", "--format", "webp", "--animate", "webp", "-o", "new/")
    assert draw(*line).out.split() == ["new/x-1.webp", "new/x-2.webp"]
    before = names(folder)
    assert before[1:] == [
        *("new/x-1-steps.webp", "new/x-1.webp", "new/x-2-steps.webp", "new/x-2.webp"),
    ]
    assert draw(*line, "--resume").out == ""
    assert names(folder) == before
