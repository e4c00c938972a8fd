"""What a LoRA, an embedding, a VAE is, and whether it fits a model, by its header alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import Command
from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.weights.families import SD15, SDXL
from txt2img.weights.file_summary import check_embedding, check_lora, check_vae, summarise

TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def lora(path: Path, width: int, metadata: dict[str, str] | None = None, rank: int = 4) -> Path:
    state = {
        f"{TO_K}.lora_down.weight": torch.zeros(rank, width),
        f"{TO_K}.lora_up.weight": torch.zeros(8, rank),
        f"{TO_K}.alpha": torch.tensor(2.0),
        f"{TEXT}.lora_down.weight": torch.zeros(rank, 768),
        f"{TEXT}.lora_up.weight": torch.zeros(8, rank),
    }
    save_file(state, path, metadata)
    return path


def vae(path: Path, channels: int) -> Path:
    save_file({"decoder.conv_in.weight": torch.zeros(8, channels, 3, 3)}, path)
    return path


def test_a_lora_is_told_by_its_tensors_and_metadata(tmp_path: Path) -> None:
    tags = {"10_ink": {"ink style": 12, "cat": 3}, "more": {"ink style": 1}}
    metadata = {"modelspec.title": "Ink", "ss_tag_frequency": json.dumps(tags)}
    file = summarise(lora(tmp_path / "ink.safetensors", 768, metadata))
    assert file is not None
    assert (file.kind, file.base, file.title) == ("LoRA", "Stable Diffusion 1", "Ink")
    assert file.words == ("ink style", "cat")
    assert file.details["rank"] == "4" and file.details["method"] == "LoRA"
    assert file.details["layers"] == "2 (network and text encoder)"


@pytest.mark.parametrize("tags", ["[1]", "{", '{"a": [1]}', '{"a": {"b": "c"}}', "[" * 9999])
def test_hostile_metadata_gives_no_words(tmp_path: Path, tags: str) -> None:
    file = summarise(lora(tmp_path / "x.safetensors", 768, {"ss_tag_frequency": tags}))
    assert file is not None and file.words == ()


def test_methods_are_told_by_their_roles(tmp_path: Path) -> None:
    names = {"hada_w1_a": "LoHa", "lokr_w1": "LoKr", "oft_blocks": "OFT", "dora_scale": "DoRA"}
    for role, method in names.items():
        path = tmp_path / f"{role}.safetensors"
        save_file({f"{TO_K}.{role}": torch.zeros(2, 2)}, path)
        file = summarise(path)
        assert file is not None and file.details["method"] == method


def test_an_embedding_has_a_word_and_vectors(tmp_path: Path) -> None:
    cases = {
        "Stable Diffusion 1": {"<ink>": torch.zeros(3, 768)},
        "Stable Diffusion XL": {"clip_l": torch.zeros(3, 768), "clip_g": torch.zeros(3, 1280)},
    }
    for base, state in cases.items():
        save_file(state, tmp_path / "x.safetensors")
        file = summarise(tmp_path / "x.safetensors")
        assert file is not None and (file.kind, file.base) == ("embedding", base)
        assert file.details["vectors"] == 3
        assert file.details["word"] == ("<ink>" if len(state) == 1 else "x")


def test_vaes_and_control_networks_are_told(tmp_path: Path) -> None:
    file = summarise(vae(tmp_path / "v.safetensors", 16))
    assert file is not None and file.kind == "VAE" and "FLUX.1" in file.base
    save_file({"1.weight": torch.zeros(64, 4, 3, 3)}, tmp_path / "taesdxl_decoder.safetensors")
    tiny = summarise(tmp_path / "taesdxl_decoder.safetensors")
    assert tiny is not None and tiny.base == "SDXL" and "TAESD" in str(tiny.details["method"])
    control = {
        "controlnet_cond_embedding.conv_in.weight": torch.zeros(1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(8, 768),
    }
    save_file(control, tmp_path / "diffusion_pytorch_model.safetensors")
    net = summarise(tmp_path)  # the folder of a single network
    assert net is not None and (net.kind, net.base) == ("ControlNet", "Stable Diffusion 1")


def test_a_lora_for_another_family_is_refused_by_its_header(tmp_path: Path) -> None:
    one = lora(tmp_path / "one.safetensors", 768)
    check_lora(one, SD15, "mine")
    with pytest.raises(UnknownLayout, match=r"made for Stable Diffusion 1; the model is .*XL"):
        check_lora(one, SDXL, "mine")
    with pytest.raises(UnknownLayout, match=r"made for Stable Diffusion 1; give --model"):
        check_lora(one, SDXL, "default")
    flux = tmp_path / "flux.safetensors"
    key = "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight"
    save_file({key: torch.zeros(4, 64)}, flux)
    with pytest.raises(UnknownLayout, match=r"made for FLUX; the model is"):
        check_lora(flux, SD15, "mine")
    with pytest.raises(UnknownLayout, match=r"is a VAE, no LoRA; give it with --vae"):
        check_lora(vae(tmp_path / "v.safetensors", 4), SD15, "mine")


def test_embeddings_and_vaes_of_another_width_are_refused(tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 1024)}, tmp_path / "e.safetensors")
    with pytest.raises(MissingWeights, match="vectors of width 768"):
        check_embedding(tmp_path / "e.safetensors", SD15)
    with pytest.raises((MissingWeights, UnknownLayout)):
        check_vae(str(vae(tmp_path / "v.safetensors", 16)), SD15)


def test_a_dry_run_and_a_run_refuse_what_does_not_fit(command: Command, folder: Path) -> None:
    lora(folder / "ink.safetensors", 768)
    for more in (["--dry-run"], []):
        done = command("red apple", "--lora", "ink.safetensors", "-o", "o/", *more)
        assert done.code == 1 and "made for Stable Diffusion 1; give --model" in done.err
    assert not (folder / "o").exists()
    tagged = command("red apple <lora:ink:1>", "--lora-dir", ".", "--dry-run", "-o", "o/")
    assert tagged.code == 1 and "give --model" in tagged.err


def test_info_tells_a_lora_without_torch(folder: Path) -> None:
    lora(folder / "ink.safetensors", 768, {"modelspec.trigger_phrase": "ink, wash"})
    code = "import sys; from txt2img.cli import app; app.run(['info', 'ink.safetensors'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert done.stdout.startswith("ink.safetensors: a LoRA\n")
    assert "made for    Stable Diffusion 1" in done.stdout and "ink, wash" in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    "line",
    [
        ["--model", "nothing"],
        ["--model", "text.safetensors"],
        ["--lora", "ink.safetensors"],
        ["--lora", "nothing"],
        ["--vae", "ink.safetensors"],
    ],
)
def test_a_cheap_mistake_is_told_without_torch(line: list[str], folder: Path) -> None:
    lora(folder / "ink.safetensors", 768)
    (folder / "text.safetensors").write_text("no weights")
    code = "import sys; from txt2img.cli import app; code = app.run(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(code, 'torch' in sys.modules)", "red apple", *line],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert done.stdout == "1 False\n" and done.stderr.startswith("Error: ")
