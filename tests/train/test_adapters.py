"""LoRAs, embeddings and ControlNets are trained for every U-Net, and load in diffusers too."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import ControlNetModel, DDIMScheduler
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.conftest import Command
from tests.support import tiny, tiny_transformers, tiny_xl
from tests.support.pictures_data import archive, picture
from tests.train.test_loop import run
from tests.train.test_loop import tiny as small_run
from tests.weights.adapters.test_lora_xl import pipeline
from txt2img.errors import BadFile, BadRequest
from txt2img.request import Request
from txt2img.request.adapters import Embedding
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import choose
from txt2img.train.adapter_stage import AdapterStage
from txt2img.train.config import Run, TrainConfig
from txt2img.train.control import ControlStage
from txt2img.train.data import Pictures
from txt2img.train.lora import LoraStage
from txt2img.train.samples import process_of
from txt2img.train.textual_inversion import InversionStage
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.load import load

FEW = Run(steps=6, batch_size=4, lr=1e-2, warmup=1, ema=0.5)
MODELS = {"sd1": tiny.sd1, "sd2": tiny.sd2, "xl": tiny_xl.base}


def config(folder: Path, kind: str, base: Path, **options: object) -> TrainConfig:
    """A short training of an adapter for a tiny model."""
    return TrainConfig(
        data=archive(folder / "data.zip"),
        out=folder / "training",
        stage=kind,
        base=str(base),
        adapter=folder / "my-word.safetensors",
        size=64,
        device="cpu",
        dtype="float32",
        save_every=3,
        sample_every=1000,
        lora_rank=3,
        vectors=2,
        control="canny:50,100",
        **{f"{kind}_run": FEW, **options},
    )


def stage_of(settings: TrainConfig) -> AdapterStage:
    """The stage of a configuration, before its first step."""
    AcceleratorState._reset_state()
    kinds: dict[str, type[AdapterStage]] = {"lora": LoraStage, "embedding": InversionStage}
    kinds["control"] = ControlStage
    torch.manual_seed(0)
    return kinds[settings.stage](settings, Accelerator(cpu=True))


def written(settings: TrainConfig) -> Path:
    """The file of weights that a training leaves."""
    if settings.stage == "control":
        return settings.out / "diffusion_pytorch_model.safetensors"
    assert settings.adapter is not None
    return settings.adapter


def scatter(learner: nn.Module) -> None:
    """Random values of half precision, so that a file holds them exactly."""
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(0.1).half())


@pytest.mark.parametrize("family", MODELS)
def test_diffusers_reads_the_lora_as_the_network_that_was_trained(
    family: str, tmp_path: Path
) -> None:
    folder = MODELS[family]().folder
    stage = stage_of(config(tmp_path, "lora", folder, lora_alpha=6.0))
    scatter(stage.learner)
    stage.export()
    x, time = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0])
    cond = stage.cond(["red disc", "blue bar"])
    added = {"text_embeds": cond.pooled, "time_ids": cond.size_ids} if family == "xl" else None
    theirs = pipeline("xl" if family == "xl" else "sd2")
    theirs.register_modules(unet=deepcopy(MODELS[family]().unet))
    with torch.no_grad():
        plain = theirs.unet(x, time, cond.tokens, added_cond_kwargs=added).sample
        theirs.load_lora_weights(tmp_path, weight_name="my-word.safetensors")
        wanted = theirs.unet(x, time, cond.tokens, added_cond_kwargs=added).sample
        got = stage.network(x, time, cond)
    assert (wanted - plain).abs().max() > 0.1 * wanted.abs().max()
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("family", MODELS)
def test_an_embeddings_file_says_what_was_trained(family: str, tmp_path: Path) -> None:
    folder = MODELS[family]().folder
    stage = stage_of(config(tmp_path, "embedding", folder))
    scatter(stage.learner)
    stage.export()
    prompts = ["red my-word disc", "my-word"]
    wanted = stage.cond(prompts)
    model = load(str(folder), choose("cpu", "float32"))
    model.adapters.paths = AdapterPaths(embeddings={"my-word": tmp_path / "my-word.safetensors"})
    request = resolve_adapters(model, Request(prompts[0], embeddings=(Embedding("my-word"),)))
    plain = model.text.encode(prompts).tokens
    apply_adapters(model, request)
    with torch.no_grad():
        got = model.text.encode(prompts).tokens
    assert not torch.allclose(got, plain, atol=1e-3)
    assert torch.equal(got, wanted.tokens)


@pytest.mark.parametrize("family", MODELS)
def test_a_controlnet_begins_without_a_trace_and_diffusers_reads_what_it_becomes(
    family: str, tmp_path: Path
) -> None:
    stage = stage_of(config(tmp_path, "control", MODELS[family]().folder))
    assert isinstance(stage, ControlStage)
    x, time = torch.randn(2, 4, 16, 16), torch.tensor([500.0, 20.0])
    cond, control = stage.cond(["red disc", "blue bar"]), stage.control
    [hints] = stage.row_inputs([0, 1])
    assert hints.shape == (2, 3, 64, 64) and set(hints.flatten().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        features = control.embed_hint(hints)
        none = tuple(control(x, time, cond, features))
        assert not any(one.any() for one in (features, *none))
        plain = stage.network(x, time, cond)
        assert torch.equal(stage.network(x, time, replace(cond, residuals=none)), plain)
    base = stage.network.state_dict()
    shared = [name for name in control.state_dict() if not name.startswith("controlnet_")]
    assert len(shared) > 50 and all(
        torch.equal(control.state_dict()[name], base[name].float()) for name in shared
    )
    scatter(control)
    stage.export()
    theirs = ControlNetModel.from_pretrained(stage.config.out)
    added = {"text_embeds": cond.pooled, "time_ids": cond.size_ids} if family == "xl" else None
    with torch.no_grad():
        downs, middle = theirs(
            x, time, cond.tokens, hints, added_cond_kwargs=added, return_dict=False
        )
        got = control(x, time, cond, control.embed_hint(hints))
    for ours, wanted in zip(got, [*downs, middle], strict=True):
        assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_controlnet_lowers_the_loss_and_draws_by_its_folder(
    command: Command, folder: Path
) -> None:
    settings = config(folder, "control", tiny.sd1().folder, caption_dropout=1.0)
    stage = stage_of(settings)
    held = [stage.batch(1000 + n) for n in range(4)]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(stage.learner(*batch)) for batch in held)

    before, optimizer = loss(), torch.optim.Adam(stage.learner.parameters(), 3e-3)
    for step in range(30):
        stage.learner(*stage.batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss() < 0.9 * before
    stage.export()
    picture("red", "disc", 64).save("red.png")
    small = ("-W", "64", "-H", "64", "--steps", "1", "--seed", "1", "-q")
    given = ("--control", f"{settings.out}:red.png", "--preprocess", settings.control)
    drawn = command("x", "-m", settings.base, *given, *small, "-o", "x.png")
    assert (drawn.code, drawn.out) == (0, "x.png\n"), drawn.err


@pytest.mark.parametrize("kind", ["lora", "embedding", "control"])
@pytest.mark.parametrize("family", MODELS)
def test_the_gradient_is_that_of_the_loss(kind: str, family: str, tmp_path: Path) -> None:
    stage = stage_of(config(tmp_path, kind, MODELS[family]().folder, min_snr=5.0))
    scatter(stage.learner)
    batch = stage.batch(0)
    stage.learner(*batch).backward()
    parameters = list(stage.learner.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in parameters)
    assert all(p.grad is None for p in (*stage.network.parameters(), *stage.vae.parameters()))
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
    step, losses = 1e-3, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=sign * step)
            losses.append(float(stage.learner(*batch)))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("kind", ["lora", "embedding", "control"])
def test_it_learns_and_a_stopped_run_goes_on_as_if_it_had_not(kind: str, tmp_path: Path) -> None:
    settings = config(tmp_path, kind, tiny.sd1().folder)
    whole = run(settings)
    wanted = load_file(written(settings))
    assert whole[-1].sheet is not None and whole[-1].sheet.exists()
    parts = replace(settings, out=tmp_path / "parts")
    run(parts, 4)  # one step after a checkpoint
    later = run(parts)
    assert [report.step for report in later] == [4, 5, 6]
    assert [report.loss for report in later] == [report.loss for report in whole[3:]]
    got = load_file(written(parts))
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_lora_lowers_the_loss(tmp_path: Path) -> None:
    settings = config(tmp_path, "lora", tiny.sd1().folder, caption_dropout=0.0)
    stage = stage_of(settings)
    held = [stage.batch(1000 + n) for n in range(8)]

    def loss() -> float:
        with torch.no_grad():
            return sum(float(stage.learner(*batch)) for batch in held)

    before, optimizer = loss(), torch.optim.Adam(stage.learner.parameters(), 1e-2)
    for step in range(40):
        stage.learner(*stage.batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss() < 0.9 * before


@pytest.mark.parametrize("table", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("zero_snr", [True, False])
def test_the_trained_process_is_the_written_one(table: str, zero_snr: bool, tmp_path: Path) -> None:
    settings = small_run(tmp_path, betas=table, zero_snr=zero_snr)
    settings = replace(
        settings, **{f"{n}_run": Run(steps=1, batch_size=2) for n in ("vae", "text", "unet")}
    )
    run(settings)
    written = load(str(settings.out), choose("cpu")).family.process.build()
    trained = process_of(settings)
    assert written.ratios == pytest.approx(trained.ratios, rel=1e-12)
    theirs = DDIMScheduler.from_pretrained(settings.out / "scheduler").alphas_cumprod.double()
    alphas = torch.tensor([1 / (1 + ratio**2) for ratio in written.ratios], dtype=torch.float64)
    assert torch.allclose(alphas, theirs, atol=2e-6)


def test_captions_beside_pictures_are_read(tmp_path: Path) -> None:
    for name, end in (("red", ".txt"), ("blue", ".caption")):
        picture(name, "disc", 32).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}{end}").write_text(f"a {name}\ndisc\n")
    rows = Pictures(tmp_path).rows
    assert [(row.layers[0].file, row.captions) for row in rows] == [
        ("blue.png", ("a blue disc",)),
        ("red.png", ("a red disc",)),
    ]
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    with pytest.raises(BadFile, match=r'"x.jpg" has no caption; write x.txt'):
        Pictures(tmp_path)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (lambda: tiny.inpaint().folder, "takes a picture and a mask; train on its plain model"),
        (lambda: tiny_transformers.flux_dev().folder, "is no U-Net"),
    ],
)
def test_a_model_that_cannot_be_taught_is_refused(
    folder: Callable[[], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match=message):
        stage_of(config(tmp_path, "lora", folder()))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data.zip --lora x.bin", "name a .safetensors file"),
        ("data.zip --lora a.safetensors --embedding b.safetensors", "give one of them"),
        ("data.zip --lora no/x.safetensors", "no folder"),
        ("data.zip --lora x.safetensors --rank 0", "at least 1"),
        ("data.zip --lora x.safetensors --control canny", "give one of them"),
        ("data.zip --control canny", "--out FOLDER"),
        ("data.zip --out o --control cany", "did you mean canny?"),
        ("data.zip --out o --control depth:x", "maps that OpenCV makes"),
        ("data.zip --out o --stage control", "needs a preprocessor; name it with --control"),
        ("data.zip --lora x.safetensors --caption-dropout 2", "0 to 1"),
        ("data.zip --lora x.safetensors --model nowhere", "nowhere"),
    ],
)
def test_a_mistake_is_one_line(command: Command, folder: Path, line: str, message: str) -> None:
    AcceleratorState._reset_state()  # another test's precision would be kept
    archive(folder / "data.zip")
    outcome = command("train", *line.split())
    assert outcome.code in (1, 2)
    assert message in outcome.err and outcome.err.count("\n") == 1


def test_the_command_trains_a_lora_that_draws(command: Command, folder: Path) -> None:
    AcceleratorState._reset_state()
    archive(folder / "data.zip")
    model, line = str(tiny.sd1().folder), "--steps 2 --size 64 --device cpu --dtype float32 -q"
    trained = command("train", "data.zip", "--lora", "x.safetensors", "-m", model, *line.split())
    assert (trained.code, trained.out) == (0, "x.safetensors\n")
    assert "trigger     red disc" in command("info", "x.safetensors").out
    small = ("-W", "64", "-H", "64", "--steps", "1", "--seed", "1", "-q")
    drawn = command("red disc", "-m", model, "--lora", "x.safetensors", *small, "-o", "x.png")
    assert (drawn.code, drawn.out) == (0, "x.png\n")
