"""The figures of a model: what is drawn for them, and what they say."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.train.test_loop import run, tiny
from txt2img.errors import BadFile
from txt2img.request import Defaults, Request, Sampler, Schedule
from txt2img.train.config import Run
from txt2img.train.data import Pictures
from txt2img.train.default_model import evaluate
from txt2img.train.default_model.classifier import SIDE, Caption
from txt2img.train.default_model.metrics import Copies
from txt2img.weights.model import AdapterState


def write_folder(folder: Path, backgrounds: list[str]) -> Pictures:
    """A data set of one transparent picture on these backgrounds."""
    Image.new("RGBA", (8, 8)).save(folder / "a.png")
    rows = [
        {"file_name": "a.png", "text": ["thing, 3d emoji", "thing"], "background": colour}
        for colour in backgrounds
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return Pictures(folder)


def test_only_pictures_on_white_are_compared(tmp_path: Path) -> None:
    captions, pixels = evaluate.known_pictures(write_folder(tmp_path, ["#FFFFFF", "#102030"]))
    assert captions == [Caption("thing, 3d emoji")]
    assert pixels.shape == (1, 3, SIDE, SIDE)
    assert pixels.min().item() == 1


def test_data_without_white_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="white background"):
        evaluate.known_pictures(write_folder(tmp_path, ["#000000"]))


def test_a_drawn_picture_is_scaled_for_the_comparison() -> None:
    pixels = evaluate.small(Image.new("RGB", (128, 128), (255, 0, 0)))
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels[:, 5, 5].tolist() == [1, -1, -1]


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """In place of a model one that draws white pictures; the requests that it has drawn."""
    defaults = Defaults(64, 64, 30, 7.5, Sampler.DDIM, Schedule.TRAILING)
    family = SimpleNamespace(defaults=defaults)
    model = SimpleNamespace(name="known", family=family, adapters=AdapterState(), refiner=None)
    done: list[Request] = []

    def draw(model: object, requests: list[Request], batch_size: int) -> Iterator[Image.Image]:
        done.extend(requests)
        return (Image.new("RGB", (64, 64), "white") for _ in requests)

    monkeypatch.setattr(evaluate, "load", lambda name, device: model)
    monkeypatch.setattr(evaluate, "draw", draw)
    monkeypatch.setattr(evaluate, "copies", lambda model, data: Copies(30.0, 1.0))
    monkeypatch.setattr(evaluate, "losses_of", lambda model, data: {50: 0.05})
    return done


def test_a_report_is_made_of_a_models_pictures(
    tmp_path: Path, painter: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    """A white picture, as the one training picture is: it is found."""
    data = tmp_path / "data"
    data.mkdir()
    write_folder(data, ["#ffffff", "#102030"])
    out, page = tmp_path / "report.json", tmp_path / "sheet.png"
    options = ["--data", str(data), "--seeds", "3,4", "--steps", "5", "--device", "cpu"]
    files = ["--out", str(out), "--sheet", str(page)]
    assert evaluate.main([*options, *files, "--classifier-steps", "0"]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    found = report["retrieval"]
    assert (found["concept_at_1"], found["pictures"]) == (1, 2)
    assert found["classified_concept_at_1"] is None
    assert report["vae"] == {"db": 30, "edges": 1}
    assert (report["cost"], report["scenes"]) == (None, {})
    assert (report["similarity"], report["answers"]) == (None, None)  # of its art nothing is known
    assert [(r.prompt, r.seed, r.steps, r.cfg) for r in painter] == [
        ("thing, 3d emoji", 3, 5, 7.5),
        ("thing, 3d emoji", 4, 5, 7.5),
    ]
    with Image.open(page) as image:
        assert image.width > 64


def test_scenes_that_were_not_taught_are_drawn_and_scored(
    tmp_path: Path, painter: list[Request]
) -> None:
    write_folder(tmp_path, ["#ffffff"])
    scenes = [
        {"kind": kind, "file_name": "a.png", "text": f"a {kind}", "background": ground}
        for kind, ground in (("ground", "#ffffff"), ("count", "#ffffff"), ("size", "#3b82f6"))
    ]
    (tmp_path / "heldout.jsonl").write_text("\n".join(map(json.dumps, scenes)))
    out = tmp_path / "report.json"
    options = [
        "--data",
        str(tmp_path),
        "--device",
        "cpu",
        "--classifier-steps",
        "2",
        "--out",
        str(out),
    ]
    assert evaluate.main(options) == 0
    report = json.loads(out.read_text())
    assert sorted(r.prompt for r in painter) == ["a count", "a ground", "a size", "thing, 3d emoji"]
    assert report["retrieval"]["classified_concept_at_1"] == 1
    assert report["classifier_accuracy"] == 1
    # white, with nothing on it: right about the one thing there is, but not one in number
    assert report["scenes"] == {"all": 0.3333, "count": 0, "ground": 1, "size": 0}
    # as they should be, the coloured one is right too; the one thing is as white as its ground
    assert report["true_scenes"] == {"all": 0.6667, "count": 0, "ground": 1, "size": 1}
    # one of three is as it should be, and two as the one picture that was taught
    new = report["novelty"]
    assert new["drawn_to_taught"] == 0
    assert 0 < new["true_to_taught"] == pytest.approx(new["drawn_to_true"], abs=2e-4)


def test_the_vae_is_measured_by_its_copies(tmp_path: Path) -> None:
    class Off:
        """Copies that are 0.1 too dark: 10 · log10(4 / 0.01) dB."""

        def parameters(self) -> Iterator[torch.Tensor]:
            return iter([torch.zeros(1)])

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels

        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            return latent - 0.1

    defaults = Defaults(64, 64, 30, 7.5, Sampler.DDIM, Schedule.TRAILING)
    model = SimpleNamespace(vae=Off(), family=SimpleNamespace(defaults=defaults))
    assert evaluate.copies(model, write_folder(tmp_path, ["#ffffff"])).db == pytest.approx(26.02)


def test_prompts_are_drawn_on_a_sheet_with_their_own_options(
    tmp_path: Path, painter: list[Request]
) -> None:
    page, lines = tmp_path / "sheet.png", tmp_path / "sheet.txt"
    lines.write_text("a cat\na dog --seed 7\n", encoding="utf-8")
    assert evaluate.main(["--prompts", str(lines), "--sheet", str(page), "--device", "cpu"]) == 0
    assert [(r.prompt, r.seed) for r in painter] == [("a cat", 0), ("a dog", 7)]
    with Image.open(page) as image:
        assert image.width > 128


def test_a_lora_is_drawn_with_as_it_says(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    run(config)
    distil = Run(steps=1, batch_size=2)
    run(replace(config, stage="distill", distill_run=distil, distill_steps=2, distill_rank=1))
    lora, out = config.out / "lora" / "few-steps.safetensors", tmp_path / "report.json"
    words = ["--model", str(config.out), "--data", str(config.data), "--device", "cpu"]
    few = ["--captions", "1", "--classifier-steps", "0", "--lora", str(lora), "--out", str(out)]
    assert evaluate.main([*words, *few]) == 0
    report = json.loads(out.read_text("utf-8"))
    assert (report["steps"], report["cfg"]) == (2, 1.0)
    assert report["losses"].keys() == {str(time) for time in evaluate.TIMES}
    assert all(0 < loss < 10 for loss in report["losses"].values())


@pytest.mark.parametrize(
    "options",
    [
        ["--seeds", "x"],
        ["--captions", "-1"],
        ["--columns", "0"],
        ["--scenes", "-1"],
        ["--prompts", "p.txt"],
        ["--prompts", "p.txt", "--sheet", "s.png"],
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--data", "nowhere.zip", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
