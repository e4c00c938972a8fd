"""LoRAs, learnt words and VAEs from the command line into pictures, and out of them again."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Command, Outcome
from txt2img.images import image_file
from txt2img.images.output import parse
from txt2img.images.record import Origin
from txt2img.images.resume import items
from txt2img.pipeline.batch import BatchSettings, Finished, batches, filled_requests, run
from txt2img.request import Request, Sampler
from txt2img.request.adapters import Lora
from txt2img.request.resolve import AdapterPaths
from txt2img.weights.apply_adapters import apply_adapters
from txt2img.weights.model import Model, origin

SMALL = Request("a", width=64, height=64, steps=1, sampler=Sampler.EULER, seed=1)


def bytes_of(outcome: Outcome) -> bytes:
    """The picture that a successful command drew."""
    assert outcome.code == 0, outcome.err
    return Path(outcome.out.strip()).read_bytes()


@pytest.fixture
def files(folder: Path) -> Path:
    """A folder of two LoRAs, a word and a VAE for the tiny model."""
    import torch

    from tests.support import tiny
    from tests.support.adapters import ATTENTION, kohya, pairs, write

    (folder / "files").mkdir()
    for seed, name in enumerate(("style", "other")):
        torch.manual_seed(seed)
        write(folder / "files" / f"{name}.safetensors", kohya(pairs(tiny.sd1().unet, ATTENTION)))
    write(folder / "files" / "blob.safetensors", {"emb_params": torch.randn(2, 32)})
    vae = {name: 0.9 * value for name, value in tiny.sd1().vae.state_dict().items()}
    write(folder / "files" / "soft.safetensors", tiny.ldm_vae(vae, 3))
    return folder / "files"


def test_a_lora_is_drawn_with_recorded_and_repeated(
    draw: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bytes_of(draw("a", "--seed", "1", "-o", "plain"))
    outcome = draw("a", "--seed", "1", "-o", "x", "--lora", "files/style.safetensors:0.5")
    first = bytes_of(outcome)
    assert outcome.err == ""  # all of it applied, which --verbose says
    verbose = draw(
        "a", "--seed", "1", "-o", "v", "--lora", "files/style.safetensors:0.5", "--verbose"
    )
    assert "LoRA style: applied 48 of 48\n" in verbose.err
    assert first != plain
    found = image_file.read(Path("x.png"))
    assert found.request is not None and found.request.loras[0].unet == 0.5
    digits = found.request.loras[0].hash
    assert found.texts["parameters"].startswith("a <lora:style:0.5>\nSteps: 2")
    assert f'Lora hashes: "style: {digits}", Version' in found.texts["parameters"]
    assert str(files) not in str(found.texts)
    monkeypatch.setenv("TXT2IMG_LORAS", str(files))
    assert bytes_of(draw("<lora:style:0.5> a", "--seed", "1", "-o", "y")) == first
    monkeypatch.delenv("TXT2IMG_LORAS")
    assert bytes_of(draw("--params-from", "x.png", "--lora-dir", "files", "-o", "z")) == first
    refused = draw("--params-from", "x.png")
    assert refused.code == 1
    assert refused.err == (
        'Error: no LoRA "style"; give its file with --lora or its folder with --lora-dir\n'
    )


def test_strengths_of_a_lora_are_swept(draw: Command, files: Path) -> None:
    found = ("--lora-dir", "files", "--sweep", "lora=none,style:0.5,other", "-o", "swept/")
    outcome = draw("a", "--seed", "1", *found)
    assert outcome.code == 0, outcome.err
    pictures = [Path(line) for line in outcome.out.split()][:3]
    assert [path.name for path in pictures] == [
        *("a-1-none.png", "a-1-style-0.5.png", "a-1-other-1.png")
    ]
    assert len({path.read_bytes() for path in pictures}) == 3
    worn = [request.loras for path in pictures if (request := image_file.read(path).request)]
    assert [[(lora.name, lora.unet) for lora in loras] for loras in worn] == [
        [],
        [("style", 0.5)],
        [("other", 1.0)],
    ]
    missing = draw("a", "--seed", "1", "--sweep", "lora=none,nothing", "-o", "none/")
    assert (missing.code, missing.out) == (1, "")
    assert missing.err.startswith('Error: no LoRA "nothing"')


def test_words_and_a_vae_are_drawn_with_recorded_and_repeated(draw: Command, files: Path) -> None:
    options = ("--embedding-dir", "files", "--vae", "files/soft.safetensors")
    first = bytes_of(draw("a blob", "--seed", "1", "-o", "x", *options))
    found = image_file.read(Path("x.png"))
    assert found.request is not None and found.request.vae is not None
    [word] = found.request.embeddings
    assert (word.token, found.request.vae.name) == ("blob", "soft.safetensors")
    text = found.texts["parameters"]
    assert f"VAE hash: {found.request.vae.hash}, VAE: soft.safetensors, RNG" in text
    assert f'TI hashes: "blob: {word.hash}", Version' in text
    by_file = ("--embedding", "files/blob.safetensors", "--vae", "files/soft.safetensors")
    assert bytes_of(draw("--params-from", "x.png", "-o", "y", *by_file)) == first
    refused = draw("--params-from", "x.png", *options[:2])
    assert refused.err == (
        'Error: the request names a VAE, "soft.safetensors"; give its file with --vae, or '
        "--vae none\n"
    )
    assert (
        bytes_of(draw("--params-from", "x.png", "-o", "z", *options[:2], "--vae", "none")) != first
    )


def test_files_are_found_by_name_where_models_are(
    draw: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--embedding", "files/blob.safetensors", "--lora", "files/style.safetensors:0.5")
    by_path = bytes_of(
        draw("a blob", "--seed", "1", "-o", "x", *where, "--vae", "files/soft.safetensors")
    )
    monkeypatch.setenv("TXT2IMG_MODELS", str(files))
    names = ("--embedding", "blob", "--lora", "style:0.5", "--vae", "soft")
    assert bytes_of(draw("a blob", "--seed", "1", "-o", "y", *names)) == by_path
    tagged = draw("a blob <lora:style:0.5>", "--seed", "1", "-o", "z", *names[:2], *names[4:])
    assert bytes_of(tagged) == by_path
    config = files.parent / "config.toml"
    config.write_text('[models]\nmine = "./files/style.safetensors"\n')
    monkeypatch.setenv("TXT2IMG_CONFIG", str(config))
    monkeypatch.delenv("TXT2IMG_MODELS")
    record = image_file.read(Path(draw("a", "--seed", "1", "--lora", "mine:2").out.strip()))
    assert record.request is not None and record.request.loras[0].name == "mine"


def test_a_weight_that_is_no_number_is_told(draw: Command, files: Path) -> None:
    outcome = draw("a", "--lora", "files/style.safetensors:x")
    assert outcome.code == 2 and "write files/style.safetensors:0.8" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora", "nowhere.safetensors"), '--lora: no file "nowhere.safetensors"'),
        (("--embedding", "nowhere.safetensors:<x>"), "--embedding: no file"),
        (("--vae", "nowhere"), '--vae: no file "nowhere", and no name that txt2img models list'),
        (("--unet", "nowhere"), "--unet: no file"),
        (("--text-encoder", "nowhere"), "--text-encoder: no file"),
        (("--preview-vae", "nowhere", "--dry-run"), "--preview-vae: no file"),
    ],
)
def test_files_that_are_not_there_are_refused_before_the_model_loads(
    options: tuple[str, ...], message: str, draw: Command, files: Path
) -> None:
    outcome = draw("a", *options)
    assert (outcome.code, outcome.out) == (1, "")  # as for a model that is not there
    assert message in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--lora-dir", "--embedding-dir"])
def test_folders_that_are_not_there_are_refused(option: str, draw: Command, files: Path) -> None:
    outcome = draw("a", option, "nowhere")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f'Error: {option}: no folder "nowhere"\n'
    Path("file").touch()
    outcome = draw("a", option, "file")
    assert (outcome.code, outcome.out) == (2, "")
    assert f'{option}: "file" is not a folder' in outcome.err


def drawn(model: Model, requests: list[Request], batch_size: int) -> list[Finished]:
    """What is finished when all are drawn, into the current folder."""
    target = parse("{index}.png", several=True)
    planned = items(filled_requests(requests, model), target, origin(model))
    events = run(planned, model, BatchSettings(target, batch_size))
    return [event for event in events if isinstance(event, Finished)]


def test_requests_with_different_loras_do_not_disturb_each_other(
    sd1_model: Model, files: Path
) -> None:
    sd1_model.adapters.paths = AdapterPaths(lora_folders=(files,))
    prompts = ["a", "a <lora:style:1>", "b <lora:style:1>", "a <lora:other:1>", "a", "b"]
    prompts += ["a <lora:style:0.5> <lora:other:1>"]
    try:
        requests = [replace(SMALL, prompt=prompt) for prompt in prompts]
        planned = items(
            filled_requests(requests, sd1_model), parse("x.png", several=True), Origin()
        )
        sizes = [len(batch) for batch in batches(planned, 4)]
        assert sizes == [1, 2, 1, 2, 1]
        together = drawn(sd1_model, requests, 4)
        pictures = [done.path.read_bytes() for done in together]
        assert len(set(pictures)) == 6 and pictures[0] == pictures[4]
        for request, picture in reversed(list(zip(requests, pictures, strict=True))):
            [alone] = drawn(sd1_model, [request], 1)
            assert alone.path.read_bytes() == picture
        assert together[1].request.loras == (
            Lora("style", 1, 1, together[2].request.loras[0].hash),
        )
    finally:
        apply_adapters(sd1_model, Request(""))
        sd1_model.adapters.paths = AdapterPaths()
