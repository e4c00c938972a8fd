"""Training runs: they learn, they resume exactly, and what they leave behind loads."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

from tests.support.pictures_data import archive
from txt2img.errors import BadFile, MissingWeights
from txt2img.models.configs import TextConfig, UNetConfig, VAEConfig
from txt2img.pipeline.generate import generate
from txt2img.request.request import Request
from txt2img.system.device.device import choose
from txt2img.train.checkpoint import read_progress
from txt2img.train.config import STAGES, Run, TrainConfig
from txt2img.train.data import Pictures
from txt2img.train.loop import Report, fit, is_whole
from txt2img.train.stages import VAEStage
from txt2img.weights.load import load

TINY = TrainConfig(
    size=64,
    crop=32,
    device="cpu",
    dtype="float32",
    save_every=4,
    sample_every=1000,
    caption_dropout=0.1,
    vocab=600,
    vae=VAEConfig(
        latent_channels=4,
        channels=(16, 32, 32, 32),
        layers=1,
        groups=8,
        mid_attention=False,
        scaling=1.0,
    ),
    text=TextConfig(vocab=600, width=32, layers=2, heads=2, mlp=64, length=16),
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        channels=(32, 64),
        layers=1,
        attention=(True, True),
        depth=(1, 1),
        heads=(2, 4),
        cross_dim=32,
        linear_projection=True,
        groups=8,
    ),
    vae_run=Run(steps=8, batch_size=8, lr=2e-3, warmup=2),
    text_run=Run(steps=8, batch_size=8, lr=2e-3, warmup=2),
    unet_run=Run(steps=8, batch_size=8, lr=2e-3, warmup=2),
)


def tiny(folder: Path, **options: object) -> TrainConfig:
    data = folder / "data.zip"
    if not data.exists():
        archive(data)
    return replace(TINY, data=data, **{"out": folder / "model", **options})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model's folder, by file and name."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in folder.glob("*/*.safetensors")
        for name, tensor in load_file(path).items()
    }


def run(config: TrainConfig, steps: int | None = None) -> list[Report]:
    """The reports of a run, of `steps` steps if it is to stop there."""
    AcceleratorState._reset_state()  # another test's precision would be kept
    reports: Iterator[Report] = fit(config)
    return list(islice(reports, steps))


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    in_one_go = run(tiny(tmp_path, out=whole))
    first = run(tiny(tmp_path, out=parts), 6)  # within the VAE, 2 steps after a checkpoint
    second = run(tiny(tmp_path, out=parts), 10)  # within the text encoder
    third = run(tiny(tmp_path, out=parts), 10)  # within the U-Net
    fourth = run(tiny(tmp_path, out=parts))
    begun = [(part[0].stage, part[0].step) for part in (second, third, fourth)]
    assert begun == [("vae", 5), ("text", 5), ("unet", 5)]
    losses = {(r.stage, r.step): r.loss for r in first + second + third + fourth}
    assert losses == {(r.stage, r.step): r.loss for r in in_one_go}
    expected, got = weights(whole), weights(parts)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_what_it_leaves_is_a_model_that_draws(tmp_path: Path) -> None:
    config = tiny(tmp_path, prediction="eps", zero_snr=False)
    reports = run(config)
    assert reports[-1].sheet is not None and reports[-1].sheet.exists()
    model = load(str(config.out), choose("cpu"))
    assert model.checkpoint is not None and model.checkpoint.taught_words is not None
    assert model.checkpoint.taught_words.untaught(Request("red lighthouse")) == ["lighthouse"]
    assert model.family.prediction == "eps"
    [image] = generate(Request(prompt="red disc", steps=2, seed=1), model)
    assert image.size == (64, 64)


def test_a_flow_trains_too(tmp_path: Path) -> None:
    reports = run(tiny(tmp_path, prediction="flow"))
    assert all(torch.isfinite(torch.tensor(report.loss)) for report in reports)


def test_the_vae_lowers_its_loss(tmp_path: Path) -> None:
    config = tiny(tmp_path, stage="vae", vae_run=Run(steps=60, batch_size=8, lr=4e-3, warmup=5))
    losses = [report.loss for report in run(config)]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_the_text_encoder_learns_to_tell_captions_apart(tmp_path: Path) -> None:
    """Sixteen captions in a batch: by chance the loss is ln 16 = 2.8; half of it goes at least."""
    plan = Run(steps=80, batch_size=16, lr=4e-3, warmup=5, ema=0.9)
    config = tiny(tmp_path, text_run=plan)
    run(replace(config, stage="vae"))
    losses = [report.loss for report in run(replace(config, stage="text"))]
    assert losses[0] > 2.0
    assert losses[-1] < 1.4
    run(replace(config, stage="unet"))  # which learns on, and must not take it back
    assert spread(config) > 0.4


def spread(config: TrainConfig) -> float:
    """How far the captions' last states are from their mean, as part of their length."""
    text = load(str(config.out), choose("cpu")).text
    captions = [row.captions[0] for row in Pictures(config.data).rows]
    with torch.no_grad():
        states = text.encode(captions).tokens[:, -1]
    return float((states - states.mean(dim=0)).norm() / states.norm())


def test_a_text_encoder_can_learn_from_nothing_with_the_unet(tmp_path: Path) -> None:
    config = tiny(tmp_path, text_run=Run(steps=0))
    assert [report.stage for report in run(config)] == ["vae"] * 8 + ["unet"] * 8
    load(str(config.out), choose("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "zeros", "an error"])
def test_a_unet_that_would_learn_wrongly_compiled_runs_as_it_is(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gradient: torch.Tensor) -> None:
        raise AssertionError("no kernel")

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *batch: torch.Tensor) -> torch.Tensor:
            """The loss; the gradient of it is none, or cannot be had."""
            loss: torch.Tensor = self.module(*batch)
            if fault == "an error":
                loss.register_hook(fail)
            return loss.detach() + 0 * loss if fault == "zeros" else loss

    before = tiny(tmp_path, out=tmp_path / "usual")
    run(replace(before, unet_run=Run(steps=0)))
    shutil.copytree(before.out, tmp_path / "wished")
    run(before)
    monkeypatch.setattr(torch, "compile", Compiled)
    reports = run(replace(before, out=tmp_path / "wished", compile=True))
    told = {"none": "", "zeros": "its gradient is not the true one", "an error": "no kernel"}
    assert {(report.stage, report.plain) for report in reports} == {("unet", told[fault])}
    usual, wished = (weights(tmp_path / name) for name in ("usual", "wished"))
    assert all(torch.equal(usual[name], wished[name]) for name in usual)


@pytest.mark.slow
def test_what_is_done_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that goes on with the last part must not paint and encode for all before it."""
    config = tiny(tmp_path)
    run(config)

    monkeypatch.setattr(VAEStage, "batch", lambda *_: pytest.fail("the VAE is done"))
    assert run(config) == []
    assert {report.stage for report in run(replace(config, unet_run=Run(steps=99)))} == {"unet"}


def test_a_unet_without_a_vae_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="--stage"):
        run(tiny(tmp_path, stage="unet"))


def test_a_copy_of_a_model_can_be_taught_on(tmp_path: Path) -> None:
    """With its folder but no state, training begins from its weights, not from nothing."""
    first = tiny(tmp_path, vae_run=Run(steps=60, batch_size=8, lr=4e-3, warmup=5), stage="vae")
    losses = [report.loss for report in run(first)]
    shutil.rmtree(first.out / "state")
    again = [r.loss for r in run(replace(first, vae_run=Run(steps=4, batch_size=8, lr=1e-5)))]
    assert sum(again) / 4 < 0.75 * sum(losses[:4]) / 4


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, stage="vae")
    run(config)
    wider = replace(config, vae=replace(config.vae, channels=(16, 32, 32, 64)))
    with pytest.raises(MissingWeights, match="another shape"):
        run(wider)


@pytest.mark.slow
def test_calls_that_stop_by_the_clock_add_up_to_the_same_run(tmp_path: Path) -> None:
    few = {f"{stage}_run": Run(steps=2, batch_size=4, warmup=1) for stage in STAGES}
    small: dict[str, object] = {"noised_samples": 4, "sample_prompts": ("red disc",), **few}
    run(tiny(tmp_path, out=tmp_path / "whole", **small))
    config = tiny(tmp_path, out=tmp_path / "parts", stop_after=1e-6, **small)
    calls = 0
    while not is_whole(config):
        assert len(run(config)) == 1  # a step is always done, or a short call would never end
        calls += 1
    assert calls == 2 * len(STAGES)
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert run(config) == []


def test_a_sheet_that_cannot_be_drawn_costs_no_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("another device")

    monkeypatch.setattr(VAEStage, "draw", broken)
    config = tiny(tmp_path, stage="vae", sample_every=4)
    with pytest.raises(RuntimeError, match="another device"):
        run(config)
    assert read_progress(tmp_path / "model" / "state" / "vae.safetensors")[0] == 4


def test_a_piece_ends_the_call_and_the_next_one_goes_on(tmp_path: Path) -> None:
    plan = Run(steps=8, piece_steps=3, batch_size=2, lr=1e-3, final_lr=1e-5, warmup=1, flat=0.3)
    config = tiny(tmp_path, stage="vae", vae_run=plan)
    calls = [run(config) for _ in range(3)]
    assert [[report.step for report in call] for call in calls] == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert all(call[-1].sheet is not None for call in calls)
    assert calls[0][-1].lr < calls[0][1].lr == calls[1][1].lr
    assert is_whole(config)


@pytest.mark.slow
def test_muon_resumes_exactly(tmp_path: Path) -> None:
    plan = Run(steps=8, batch_size=8, lr=2e-3, warmup=2, optimizer="muon")
    whole, parts = (tiny(tmp_path, out=tmp_path / name, unet_run=plan) for name in ("a", "b"))
    run(whole)
    run(replace(parts, unet_run=Run(steps=0)))
    run(parts, 6)
    run(parts)
    expected, got = weights(whole.out), weights(parts.out)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_stage_ends_with_its_minutes_at_its_lowest_rate(tmp_path: Path) -> None:
    plan = Run(steps=10**6, minutes=0.01, batch_size=2, lr=1e-3, final_lr=1e-5, warmup=1)
    config = tiny(tmp_path, stage="vae", vae_run=plan)
    reports = run(config)
    assert 1 < len(reports) < 10**6
    assert reports[-1].sheet is not None
    assert is_whole(config)
    assert run(config) == []


@pytest.mark.slow
def test_the_decoder_learns_alone_from_resampled_latents(tmp_path: Path) -> None:
    config = tiny(
        tmp_path, noised_samples=8, decoder_run=Run(steps=12, batch_size=4, lr=1e-3, warmup=1)
    )
    run(replace(config, decoder_run=Run(steps=0)))
    before = weights(config.out)
    reports = run(config)
    assert {report.stage for report in reports} == {"decoder"}
    losses = [report.loss for report in reports]
    assert sum(losses[-4:]) < sum(losses[:4])
    changed = {name for name, value in weights(config.out).items() if name in before
               and not torch.equal(value, before[name])}  # fmt: skip
    assert changed
    assert all(name.startswith(("vae/decoder.", "vae/post_quant_conv.")) for name in changed)


@pytest.mark.slow
def test_a_decoder_is_shipped_between_before_and_after_its_lesson(tmp_path: Path) -> None:
    plan = Run(steps=3, batch_size=4, lr=1e-2, warmup=1)
    config = tiny(tmp_path, noised_samples=4, decoder_run=plan, channels_last=True)
    run(replace(config, decoder_run=Run(steps=0)))
    before = weights(config.out)
    for steps in (3, 5):  # it goes on, and what was before stays the same
        run(replace(config, decoder_run=replace(plan, steps=steps)))
        taught = load_file(config.out / "state" / "decoder.safetensors")
        found = weights(config.out)
        for name in (name for name in taught if name.startswith("mean.")):
            place = name.replace("mean.", "vae/")
            was, now = before[place].float(), taught[name]
            assert (now - was).abs().max() > 5e-3
            assert torch.allclose(found[place].float(), was + 0.3 * (now - was), atol=1e-3)
    row = load_file(config.out / "state" / "untaught.safetensors")["untaught"]
    run(replace(config, stage="decoder", resume=False))  # from before all lessons
    assert torch.equal(load_file(config.out / "state" / "untaught.safetensors")["untaught"], row)


@pytest.mark.slow
def test_what_learns_from_the_unet_begins_anew_when_that_has_learnt_on(tmp_path: Path) -> None:
    few = Run(steps=2, batch_size=4, warmup=1)
    runs = {"vae_run": few, "text_run": few, "decoder_run": few, "distill_run": few}
    config = tiny(tmp_path, noised_samples=4, unet_run=few, **runs)
    run(config)
    assert run(config) == []
    further = replace(config, unet_run=replace(few, steps=3))
    assert not is_whole(further)
    assert [(report.stage, report.step) for report in run(further)] == [
        ("unet", 3),
        ("decoder", 1),
        ("decoder", 2),
        ("distill", 1),
        ("distill", 2),
    ]
    assert is_whole(further)


def test_a_decoder_without_a_unet_is_told_what_to_do(tmp_path: Path) -> None:
    run(tiny(tmp_path, stage="vae"))
    with pytest.raises(BadFile, match="--stage unet"):
        run(tiny(tmp_path, stage="decoder", decoder_run=Run(steps=2)))


@pytest.mark.slow
def test_sixteen_pictures_are_learnt_until_they_can_be_told_apart(tmp_path: Path) -> None:
    """A few minutes on two cores: each caption's drawing is nearest to its own picture."""
    config = tiny(
        tmp_path,
        vae_run=Run(steps=2000, batch_size=16, lr=4e-3, ema=0.99),
        text_run=Run(steps=100, batch_size=16, lr=2e-3, ema=0.9),
        unet_run=Run(steps=1500, batch_size=16, lr=2e-3, ema=0.99),
        save_every=1000,
        caption_dropout=0.1,
    )
    reports = [report for report in run(config) if report.stage == "unet"]
    losses = [report.loss for report in reports]
    assert sum(losses[-100:]) < 0.35 * sum(losses[:100])
    model, pictures = load(str(config.out), choose("cpu")), Pictures(config.data)
    known = torch.stack([pictures.pixels(row, 64) for row in range(16)])
    right = 0
    for row in range(16):
        request = Request(prompt=pictures.rows[row].captions[0], steps=20, cfg=2.0, seed=row)
        [image] = generate(request, model)
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = data.view(64, 64, 3).permute(2, 0, 1).float() / 127.5 - 1.0
        right += int((known - pixels).square().mean(dim=(1, 2, 3)).argmin().item() == row)
    assert right >= 14
