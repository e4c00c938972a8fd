"""txt2img models: list, show, path and hash, and what shells complete."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_process import environment
from tests.conftest import Command


@pytest.fixture
def lora(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models with one file, which is no model."""
    for name in ("DATA", "CONFIG", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(folder / name))
    monkeypatch.setenv("TXT2IMG_MODELS", str(folder / "own"))
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = folder / "own/style.safetensors"
    path.parent.mkdir()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    return path


def test_list_prints_every_model(lora: Path, command: Command) -> None:
    rows = [json.loads(line) for line in command("models", "list", "--json").out.splitlines()]
    assert [(row["name"], bool(row["family"])) for row in rows] == [
        ("default", True),
        ("style", False),
        ("few-steps", False),
    ]
    assert rows[1]["path"] == str(lora) and rows[1]["size"] == lora.stat().st_size


def test_the_list_has_the_names_of_config_toml_as_other_commands_find_them(
    lora: Path, command: Command, folder: Path
) -> None:
    other = folder / "other.safetensors"
    shutil.copy(lora, other)
    config = folder / "CONFIG" / "txt2img" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[models]\nstyle = "{other}"\nmine = "{lora}"\ngone = "/no/file"\n')
    rows = [json.loads(line) for line in command("models", "list", "--json").out.splitlines()]
    paths = {row["name"]: row["path"] for row in rows}
    assert len(paths) == len(rows)
    assert (paths["style"], paths["mine"]) == (str(other), str(lora)) and "gone" not in paths
    assert command("models", "path", "style").out == f"{other}\n"


def test_other_weights_are_listed_by_their_kind(lora: Path, command: Command) -> None:
    import torch
    from safetensors.torch import save_file

    from tests.support import tiny
    from txt2img.weights.file_kind import NAME_IN_FOLDER, kind_of

    unet, text = tiny.sd1().unet.state_dict(), tiny.bare(tiny.sd1().text)
    kinds = {
        "a": ("LoRA", {"lora_unet_conv_out.lora_up.weight": torch.ones(2, 2)}),
        "b": ("LoRA", {"lora_unet_conv_out.oft_blocks": torch.ones(2, 2, 2)}),
        "c": ("embedding", {"emb_params": torch.ones(2, 32)}),
        "d": ("embedding", {"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 64)}),
        "e": ("VAE", tiny.ldm_vae(tiny.sd1().vae.state_dict(), 3)),
        "f": ("VAE", dict(tiny.sd1().vae.state_dict())),
        "g": ("U-Net", dict(unet)),
        "h": ("U-Net", tiny.ldm_unet(unet, 2, 2)),
        "i": ("text encoder", text),
        "j": ("text encoder", tiny.open_clip(text)),
    }
    for name, (_, state) in kinds.items():
        whole = {key: value.clone().contiguous() for key, value in state.items()}
        save_file(whole, lora.parent / f"{name}.safetensors")
    (lora.parent / "x.safetensors").write_bytes(b"broken")
    net = lora.parent / "net"
    net.mkdir()
    save_file({"controlnet_blocks.0.bias": torch.ones(2)}, net / NAME_IN_FOLDER)
    (net / "config.json").write_text("{}")
    outcome = command("models", "list", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {row["name"]: row["kind"] for row in map(json.loads, outcome.out.splitlines())}
    wanted = {name: kind for name, (kind, _) in kinds.items()} | {
        "net/diffusion_pytorch_model": "ControlNet"
    }
    assert kind_of(net) == "ControlNet"  # as config.toml may name it
    assert rows == {"default": "model", **wanted, "style": "", "x": "", "few-steps": "LoRA"}


def test_hashes_are_those_of_other_programs(lora: Path, command: Command) -> None:
    content = lora.read_bytes()
    whole, rest = hashlib.sha256(content).hexdigest(), hashlib.sha256(content[-4:]).hexdigest()
    outcome = command("models", "hash", "style")
    assert outcome.out.split("\t") == [whole[:10], rest[:12], whole, "style\n"]
    assert outcome.err == ""
    assert command("models", "hash", "style").out == outcome.out  # from the cache


def test_path_and_show(lora: Path, command: Command) -> None:
    assert command("models", "path", "style").out == f"{lora}\n"
    shown = json.loads(command("models", "show", "default", "--json").out)
    assert shown["layout"] == "diffusers" and Path(shown["path"]).is_dir()
    assert command("models", "show", "nope").code == 1
    assert command("models", "shwo", "nope").code == 2


def test_a_prompt_may_be_called_models(command: Command) -> None:
    outcome = command("generate", "models", "--dry-run", "--seed", "1")
    assert outcome.code == 0 and outcome.out.endswith("models\n")


PROTOCOLS = {
    "bash": {"COMP_WORDS": "txt2img a --sampler he", "COMP_CWORD": "3"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "txt2img a --sampler he"},
    "fish": {
        "_TYPER_COMPLETE_ARGS": "txt2img a --sampler he",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    },
    "powershell": {
        "_TYPER_COMPLETE_ARGS": "txt2img a --sampler he",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "he",
    },
}


@pytest.mark.parametrize("shell", PROTOCOLS)
def test_every_shell_asks_in_its_own_way(
    command: Command, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    monkeypatch.setenv("_TXT2IMG_COMPLETE", f"complete_{shell}")
    for name, value in PROTOCOLS[shell].items():
        monkeypatch.setenv(name, value)
    outcome = command()
    assert outcome.code == 0 and outcome.out.count("heun") == 1 and "euler" not in outcome.out


COMPLETED = "\n".join(
    f"complete --do-complete '{line}'"
    for line in ("txt2img a --sampler he", "txt2img models pa", "txt2img a --params-from pict")
)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes_words_and_files(folder: Path) -> None:
    program = folder / "bin" / "txt2img"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m txt2img "$@"\n')
    program.chmod(0o700)
    (folder / "picture.png").touch()
    env = environment(PATH=f"{program.parent}:{os.environ['PATH']}", HOME=str(folder))
    source = "env _TXT2IMG_COMPLETE=source_fish txt2img | source"
    done = subprocess.run(
        ["fish", "-c", f"{source}\n{COMPLETED}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    words = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert words == ["heun", "path", "picture.png"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("txt2img a --model sty", {"style"}),
        ("txt2img a --lora sty", {"style"}),
        ("txt2img a --vae sty", {"style"}),
        ("txt2img a --sampler he", {"heun"}),
        ("txt2img a --dtype ", {"float32", "bf16", "fp16"}),
        ("txt2img models pull sdxl-", {"sdxl-turbo", "sdxl-refiner"}),
        ("txt2img models pa", {"path"}),
        ("txt2img models show sty", {"style"}),
        ("txt2img generate a --profile f", set()),
    ],
)
def test_shells_are_offered_words_without_torch(
    lora: Path, monkeypatch: pytest.MonkeyPatch, line: str, offered: set[str]
) -> None:
    monkeypatch.setenv("TXT2IMG_CONFIG", "broken" if "profile" in line else "")
    code = (
        "import sys; from txt2img.cli import app; app.run([]); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    asked = {
        "_TXT2IMG_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
        "PYTHONPATH": str(Path(__file__).parent.parent.parent.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == offered
    assert done.stderr == "False\n"
