"""train hands its options to the training loop and shows what comes out of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.cli.options import completion
from txt2img.train import config, loop
from txt2img.train.config import TrainConfig
from txt2img.train.loop import Report


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configurations that reach the loop, which is replaced by one of three steps."""
    configs: list[TrainConfig] = []

    def fit(config: TrainConfig) -> Iterator[Report]:
        configs.append(config)
        for step in (1, 2, 3):
            sheet = Path("m/sheet.png") if step == 2 else None
            yield Report("unet", step, 3, 1 / step, 1e-3, 40.0, sheet)

    monkeypatch.setattr(loop, "fit", fit)
    return configs


def test_options_reach_the_loop(command: Command, folder: Path, seen: list[TrainConfig]) -> None:
    Path("pictures").mkdir()
    words = "--stage unet --steps 5 --batch-size 2 --lr 0.01 --size 64 --seed 3 --no-resume"
    more = "--sample-every 7 --save-every 8 --stop-after 9.5 --device cpu --dtype bf16"
    outcome = command("train", "pictures", "--out", "m", *words.split(), *more.split())
    assert outcome.code == 0, outcome.err
    assert outcome.out == "m\n"
    [config] = seen
    assert (config.data, config.out, config.stage) == (Path("pictures"), Path("m"), "unet")
    assert (config.size, config.seed, config.resume) == (64, 3, False)
    assert (config.sample_every, config.save_every, config.stop_after) == (7, 8, 9.5)
    assert "run it again to continue" in outcome.err.splitlines()[-1]  # nothing was saved as done
    assert (config.device, config.dtype) == ("cpu", "bf16")
    assert (config.unet_run.steps, config.unet_run.batch_size, config.unet_run.lr) == (5, 2, 0.01)


def test_progress_is_plain_without_a_terminal(
    command: Command, folder: Path, seen: list[TrainConfig]
) -> None:
    Path("pictures").mkdir()
    lines = command("train", "pictures", "--out", "m").err.splitlines()
    assert lines == [
        "unet 1/3 loss 1.0000  40.0 img/s",
        "unet 2/3 loss 0.5000  40.0 img/s  m/sheet.png",
        "unet 3/3 loss 0.3333  40.0 img/s",
    ]
    assert command("train", "pictures", "--out", "m", "-q").err == ""


def test_a_part_that_could_not_be_compiled_is_reported_once(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(_: TrainConfig) -> Iterator[Report]:
        for name, plain in (("vae", ""), ("unet", "no kernel")):
            for step in (1, 2):
                yield Report(name, step, 2, 1.0, 1e-3, 40.0, None, plain)

    monkeypatch.setattr(loop, "fit", fit)
    Path("pictures").mkdir()
    lines = command("train", "pictures", "--out", "m").err.splitlines()
    [line] = [line for line in lines if line.startswith("Warning")]
    assert line == "Warning: unet is not compiled, since compiling failed: no kernel"


def test_a_config_file_fills_what_options_leave_open(
    command: Command, folder: Path, seen: list[TrainConfig]
) -> None:
    Path("pictures").mkdir()
    Path("my.toml").write_text("size = 64\nseed = 9\n[unet_run]\nlr = 0.5\n")
    outcome = command("train", "pictures", "--out", "m", "--config", "my.toml", "--seed", "3")
    assert outcome.code == 0, outcome.err
    assert (seen[0].size, seen[0].seed, seen[0].unet_run.lr) == (64, 3, 0.5)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("--out m", 2, "txt2img train DATA --out FOLDER"),
        ("pictures", 2, "txt2img train DATA --out FOLDER"),
        ("nowhere --out m", 2, 'no data at "nowhere"'),
        (
            "pictures --out m --stage tea",
            2,
            'no stage "tea"; choose from vae, text, unet, decoder, alpha, distill, all',
        ),
        ("pictures --out m --steps 0", 2, "--steps must be at least 1, got 0"),
        ("pictures --out m --lr fast", 2, '--lr must be a number, got "fast"'),
        ("pictures --out m --config no.toml", 1, "no.toml"),
    ],
)
def test_an_impossible_option_is_one_line(
    command: Command, folder: Path, line: str, code: int, message: str
) -> None:
    Path("pictures").mkdir()
    outcome = command("train", *line.split())
    assert outcome.code == code
    assert outcome.err.startswith("Error: ") and outcome.err.count("\n") == 1
    assert message in outcome.err


def test_the_command_offers_every_stage_of_a_training() -> None:
    assert completion.STAGES == config.STAGES
    assert completion.ADAPTERS == config.ADAPTERS
    assert completion.stages("") == [*config.STAGES, "all"]
