"""Seeded damage of all that a command line reads: one line and an exit code, never "unexpected"."""

import errno
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.support import mutations, tiny
from tests.support.hub_server import Hub, serving
from txt2img.weights.tokenizer_files import read_tokenizer

FEW, MANY = range(6), range(6, 64)  # seeds of each kind, by default and in the slow tests
ERRORS = ("EACCES", "EIO", "ENOENT", "ELOOP", "EMFILE", "ESTALE", "ENAMETOOLONG", "EISDIR")
CONFIG = """
[defaults]
steps = 20
cfg = 5.0
quality = 90
sampler = "euler"
[profiles.fast]
lora = ["few-steps"]
quiet = true
[models]
mine = "~/mine.safetensors"
other = {id = "owner/model", revision = "main"}
[paths]
models = ["~/models"]
"""
PROMPTS = """red apple
blue bird --seed 7 --cfg 5
{"prompt": "a cat", "steps": 3, "seed": 1}
a [cat:dog:0.5] AND (owl:1.2) :0.5
"""
PARTS = (
    *("unet/config.json", "vae/config.json", "text_encoder/config.json", "model_index.json"),
    *("scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json", "txt2img.json"),
)


@pytest.fixture
def model(folder: Path) -> Path:
    """A small model of one's own, with every file that a folder may have."""
    place = Path(shutil.copytree(tiny.own(), folder / "model"))
    for part in PARTS:
        if not (place / part).exists():
            (place / part).write_text("{}")
    return place


def survive(command: Command, what: str, *line: str) -> int:
    """Run a command line; whatever it finds is said in short lines without control characters.

    Gives 1 if anything was found.
    """
    outcome = command(*line)
    assert outcome.code in range(6), f"{what}: {outcome.code}: {outcome.err}"
    assert "nexpected" not in outcome.err and "Traceback" not in outcome.err, (
        f"{what}: {outcome.err}"
    )
    assert not outcome.code or outcome.err.startswith(("Error: ", "Note: ")), (
        f"{what}: {outcome.err}"
    )
    for text in outcome.err.splitlines():
        assert text.isprintable() and len(text) < 2000, what
    return int(bool(outcome.code or outcome.err))


def config_mutants(command: Command, model: Path, seeds: range) -> int:
    found = 0
    for part, seed in itertools.product(PARTS, seeds):
        good = (model / part).read_bytes()
        (model / part).write_bytes(mutations.mutant(model / part, seed))
        found += survive(command, f"{part}, seed {seed}", "x", "-m", "model", "--dry-run", "-q")
        (model / part).write_bytes(good)
    return found


def tokenizer_json_mutants(command: Command, model: Path, seeds: range) -> int:
    """The same words in one tokenizer.json, as newer folders have it."""
    found = 0
    place = model / "tokenizer"
    made = read_tokenizer(place, 77, 2**20)
    for name in ("vocab.json", "merges.txt"):
        (place / name).unlink()
    content = {
        "added_tokens": [
            {"id": made.vocab[word], "content": word} for word in list(made.vocab)[-2:]
        ],
        "model": {"type": "BPE", "vocab": made.vocab, "merges": [list(m) for m in made.merges]},
    }
    for seed in seeds:
        changed = mutations.of_value(content, random.Random(seed))
        (place / "tokenizer.json").write_text(json.dumps(changed))
        found += survive(
            command, f"tokenizer.json, seed {seed}", "x", "-m", "model", "--dry-run", "-q"
        )
    return found


def listing_mutants(command: Command, model: Path, seeds: range) -> int:
    """What the Hub answers when it is asked for the files of a model."""
    found = 0
    files = {
        path.relative_to(model).as_posix(): path.read_bytes()
        for path in model.rglob("*")
        if path.is_file() and path.suffix != ".safetensors"
    }
    files |= {f"{part}/diffusion_pytorch_model.safetensors": b"x" * 64 for part in ("unet", "vae")}
    files["text_encoder/model.safetensors"] = b"x" * 64
    with serving(Hub(files)) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        info, tree = hub.info(), hub.tree({})
        for seed in seeds:
            chance = random.Random(seed)
            patch.setenv("HF_HOME", str(model.parent / f"hub-{seed}"))
            is_tree = chance.random() < 0.3
            answers = [info, mutations.of_value(tree, chance)] if is_tree else [None, tree]
            answers[0] = answers[0] or mutations.of_value(info, chance)
            patch.setattr(hub, "info", lambda answer=answers[0]: answer)
            patch.setattr(hub, "tree", lambda hashes, answer=answers[1]: answer)
            found += survive(command, f"listing, seed {seed}", "models", "pull", "a/m", "-q")
            shutil.rmtree(model.parent / f"hub-{seed}", ignore_errors=True)
    assert [path.name for path in model.parent.iterdir()] == ["model"]
    return found


def unreadable_mutants(command: Command, model: Path, seeds: range) -> int:
    """A file, or a folder, that the system does not give."""
    found = 0
    files = sorted(path for path in model.rglob("*"))
    lines = (
        ("x", "-m", "model", "--dry-run", "-q"),
        ("models", "list"),
        ("models", "show", "model"),
        ("models", "hash", "model"),
    )
    for seed in seeds:
        chance = random.Random(seed)
        path, code = chance.choice(files), getattr(errno, chance.choice(ERRORS))
        with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as variables:
            variables.setenv("TXT2IMG_MODELS", str(model.parent))
            for name in chance.sample(["open", "scandir", "stat", "listdir"], 2):
                patch.setattr(os, name, failing(getattr(os, name), path, code))
            what = f"{path.name}, {errno.errorcode[code]}, seed {seed}"
            found += survive(command, what, *chance.choice(lines))
    return found


def failing(call: Callable[..., object], path: Path, code: int) -> Callable[..., object]:
    """A function of `os` that fails for a path."""

    def guarded(place: object = ".", *rest: object, **more: object) -> object:
        if isinstance(place, str | os.PathLike) and os.path.abspath(place) == str(path):
            raise OSError(code, os.strerror(code), str(place))
        return call(place, *rest, **more)

    return guarded


def settings_mutants(command: Command, model: Path, seeds: range) -> int:
    found = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXT2IMG_CONFIG", "config.toml")
        for seed in seeds:
            Path("good.toml").write_text(CONFIG)
            Path("config.toml").write_bytes(mutations.mutant(Path("good.toml"), seed))
            line = ("x", "--dry-run", "-q", *(("--profile", "fast") if seed % 2 else ()))
            found += survive(command, f"config.toml, seed {seed}", *line)
    return found


def prompt_mutants(command: Command, model: Path, seeds: range) -> int:
    found = 0
    for seed in seeds:
        Path("good.txt").write_text(PROMPTS)
        Path("p.txt").write_bytes(mutations.mutant(Path("good.txt"), seed))
        line = ("--prompts", "p.txt", "-m", "model", "--seed", "1", "--dry-run", "-q")
        found += survive(command, f"prompts, seed {seed}", *line)
    return found


KINDS = {
    "configs and tokenizers": config_mutants,
    "tokenizer.json": tokenizer_json_mutants,
    "listings of the Hub": listing_mutants,
    "unreadable files": unreadable_mutants,
    "config.toml": settings_mutants,
    "prompt files": prompt_mutants,
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_line(command: Command, model: Path, kind: str) -> None:
    seeds = range(2) if kind == "configs and tokenizers" else FEW
    assert KINDS[kind](command, model, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_much_damage_is_one_line(command: Command, model: Path, kind: str) -> None:
    several = kind == "configs and tokenizers"
    assert KINDS[kind](command, model, range(2, 30) if several else MANY) > len(MANY) // 10
