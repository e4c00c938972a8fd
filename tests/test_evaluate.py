"""The judge: pictures that are known are found, others are not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from txt2img.errors import BadFile
from txt2img.request import Defaults, Sampler, Schedule
from txt2img.train import evaluate
from txt2img.train.data import Pictures
from txt2img.train.evaluate import Caption, blurred, judge, nearest, share, sheet

STYLES = ("3d emoji", "flat emoji")


def gallery(count: int = 8) -> tuple[list[Caption], Tensor]:
    """Pictures that differ, two styles a concept: captions and (2 · count, 3, 32, 32)."""
    captions = [Caption(f"thing {n}, {style}") for n in range(count) for style in STYLES]
    rough = torch.randn(len(captions), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return captions, torch.nn.functional.interpolate(rough, scale_factor=8.0).clamp(-1, 1)


def test_a_caption_is_a_concept_and_a_style() -> None:
    caption = Caption("ear of corn, 3d emoji")
    assert (caption.concept, caption.style) == ("ear of corn", "3d emoji")
    assert (Caption("a cat").concept, Caption("a cat").style) == ("a cat", "")


def test_known_pictures_are_all_found() -> None:
    captions, pixels = gallery()
    verdicts = judge(captions, range(len(captions)), pixels, captions, pixels)
    assert all(v.concept and v.style and v.concept_in_5 for v in verdicts)
    assert max(v.rmse for v in verdicts) < 1e-3


def test_noise_and_a_small_shift_are_forgiven() -> None:
    captions, pixels = gallery()
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    drawn = pixels.roll(1, dims=3) + 0.5 * noise
    verdicts = judge(captions, [0] * len(captions), drawn, captions, pixels)
    assert share([v.style for v in verdicts]) == 1


def test_shuffled_pictures_are_not_found() -> None:
    captions, pixels = gallery()
    verdicts = judge(captions, [0] * len(captions), pixels.roll(4, dims=0), captions, pixels)
    assert share([v.concept for v in verdicts]) == 0


def test_another_style_of_the_same_thing_counts_as_the_concept_only() -> None:
    captions, pixels = gallery()
    swapped = pixels.view(-1, 2, *pixels.shape[1:]).flip(1).reshape(pixels.shape)
    verdicts = judge(captions, [0] * len(captions), swapped, captions, pixels)
    assert all(v.concept and not v.style for v in verdicts)
    assert verdicts[0].nearest == "thing 0, flat emoji"


def test_nearest_gives_the_rmse_of_fewer_pictures_than_asked_for() -> None:
    places, rmse = nearest(torch.zeros(1, 4), torch.tensor([[2.0] * 4, [1.0] * 4]))
    assert places.tolist() == [[1, 0]]
    assert rmse.tolist() == [[1.0, 2.0]]


def test_blur_keeps_plain_pictures_and_spreads_a_point() -> None:
    plain = torch.full((1, 3, 9, 9), 0.5)
    assert torch.allclose(blurred(plain), plain)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    spread = blurred(point)
    assert spread.sum().item() == pytest.approx(1)
    assert spread[0, 0, 4, 5].item() == pytest.approx(0.2420 * 0.3989, rel=0.02)  # the normal curve


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
    captions, pixels = evaluate.taught(write_folder(tmp_path, ["#FFFFFF", "#102030"]))
    assert captions == [Caption("thing, 3d emoji")]
    assert pixels.shape == (1, 3, evaluate.SIDE, evaluate.SIDE)
    assert pixels.min().item() == 1


def test_data_without_white_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="white background"):
        evaluate.taught(write_folder(tmp_path, ["#000000"]))


def test_a_drawn_picture_is_scaled_for_the_comparison() -> None:
    pixels = evaluate.to_pixels(Image.new("RGB", (128, 128), (255, 0, 0)))
    assert pixels.shape == (3, evaluate.SIDE, evaluate.SIDE)
    assert pixels[:, 5, 5].tolist() == [1, -1, -1]


def test_a_sheet_has_a_cell_a_picture_and_room_for_the_longest_label() -> None:
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue")]
    small = sheet(images, ["a", "b", "c"], columns=2)
    tall = sheet(images, ["a", "a label of very many words that need lines", "c"], columns=2)
    assert small.width == tall.width > 2 * 64
    assert tall.height > small.height > 2 * 64
    colours = {colour for _, colour in small.getcolors(1 << 16)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours


def test_a_report_is_made_of_a_models_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The drawing itself is replaced by a white picture, as the one training picture is."""
    defaults = Defaults(64, 64, 30, 7.5, Sampler.DDIM, Schedule.TRAILING)
    model = SimpleNamespace(name="known", family=SimpleNamespace(defaults=defaults))
    drawn = []

    def draw(model, requests, batch_size):
        drawn.extend(requests)
        return (Image.new("RGB", (64, 64), "white") for _ in requests)

    data = tmp_path / "data"
    data.mkdir()
    write_folder(data, ["#ffffff", "#102030"])
    monkeypatch.setattr(evaluate, "load", lambda name, device: model)
    monkeypatch.setattr(evaluate, "draw", draw)
    out, page = tmp_path / "report.json", tmp_path / "sheet.png"
    options = ["--data", str(data), "--seeds", "3,4", "--steps", "5", "--device", "cpu"]
    assert evaluate.main([*options, "--out", str(out), "--sheet", str(page)]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert (report["concept_at_1"], report["pictures"], report["gallery"]) == (1, 2, 1)
    assert [(r.prompt, r.seed, r.steps, r.cfg) for r in drawn] == [
        ("thing, 3d emoji", 3, 5, 7.5),
        ("thing, 3d emoji", 4, 5, 7.5),
    ]
    with Image.open(page) as image:
        assert image.width > 64


def test_prompts_are_drawn_on_a_sheet_with_their_own_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Defaults(64, 64, 30, 7.5, Sampler.DDIM, Schedule.TRAILING)
    model = SimpleNamespace(name="known", family=SimpleNamespace(defaults=defaults))
    drawn = []

    def draw(model, requests, batch_size):
        drawn.extend(requests)
        return (Image.new("RGB", (64, 64), "red") for _ in requests)

    monkeypatch.setattr(evaluate, "load", lambda name, device: model)
    monkeypatch.setattr(evaluate, "draw", draw)
    page, lines = tmp_path / "sheet.png", tmp_path / "sheet.txt"
    lines.write_text("a cat\na dog --seed 7\n", encoding="utf-8")
    assert evaluate.main(["--prompts", str(lines), "--sheet", str(page), "--device", "cpu"]) == 0
    assert [(r.prompt, r.seed) for r in drawn] == [("a cat", 0), ("a dog", 7)]
    with Image.open(page) as image:
        assert image.width > 128


@pytest.mark.parametrize(
    "options",
    [
        ["--seeds", "x"],
        ["--captions", "0"],
        ["--columns", "0"],
        ["--prompts", "p.txt"],
        ["--prompts", "p.txt", "--sheet", "s.png"],
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--data", "nowhere.zip", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
