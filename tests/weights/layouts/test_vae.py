"""Another VAE takes the place of the model's own, from every layout, or is refused in one line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support import tiny
from txt2img.errors import BadFile, MissingWeights, ModelNotFound, Txt2imgError, UnknownLayout
from txt2img.system.device.device import Device
from txt2img.weights.load import load
from txt2img.weights.model import Model
from txt2img.weights.registry.hashes import sha256

CPU = Device(torch.device("cpu"), torch.float32)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderKL:
    """A VAE of other weights, and wider, than the tiny model's."""
    torch.manual_seed(9)
    return small()


def small(**settings: object) -> AutoencoderKL:
    wanted: dict[str, object] = {
        "block_out_channels": (64, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 8,
    }
    return AutoencoderKL(**wanted | settings).eval()


def with_vae(path: Path) -> Model:
    return load(str(tiny.own()), CPU, vae_path=str(path))


def original(vae: AutoencoderKL) -> State:
    state = tiny.ldm_vae(vae.state_dict(), len(vae.config["block_out_channels"]))
    return {name: value.contiguous().clone() for name, value in state.items()}


def as_folder(vae: AutoencoderKL, root: Path) -> Path:
    vae.save_pretrained(root / "mine")
    return root / "mine"


def as_subfolder(vae: AutoencoderKL, root: Path) -> Path:
    vae.save_pretrained(root / "mine" / "vae")
    return root / "mine"


def as_weights_of_a_folder(vae: AutoencoderKL, root: Path) -> Path:
    return as_folder(vae, root) / "diffusion_pytorch_model.safetensors"


def as_file(vae: AutoencoderKL, root: Path) -> Path:
    bare = {n.removeprefix("first_stage_model."): v for n, v in original(vae).items()}
    save_file(
        bare | {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}, root / "mine"
    )
    return root / "mine"


def as_part_of_a_model(vae: AutoencoderKL, root: Path) -> Path:
    more = {"model.diffusion_model.input_blocks.0.0.bias": torch.ones(4)}
    save_file(original(vae) | more, root / "mine")
    return root / "mine"


def as_weights_alone(vae: AutoencoderKL, root: Path) -> Path:
    save_file(vae.state_dict(), root / "mine")
    return root / "mine"


ALONE = (as_file, as_part_of_a_model, as_weights_alone)


@pytest.mark.parametrize("write", [as_folder, as_subfolder, as_weights_of_a_folder, *ALONE])
def test_every_layout_decodes_as_diffusers(
    write: Callable[[AutoencoderKL, Path], Path], other: AutoencoderKL, tmp_path: Path
) -> None:
    model = with_vae(write(other, tmp_path))
    x = torch.randn(1, 8, 4, 4)
    # A folder says its scale; a single file does not, and the model's own is kept.
    latent = x / 0.5 + 0.25 if write in ALONE else x / 0.18215
    with torch.no_grad():
        wanted = other.decode(latent).sample
        got = model.vae.decode(x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5
    record = model.adapters.vae
    assert record is not None and record.name == "mine"
    [file] = [p for p in (tmp_path / "mine", *tmp_path.rglob("*.safetensors")) if p.is_file()]
    assert record.hash == sha256(file)[:10]
    assert model.hash == load(str(tiny.own()), CPU).hash


def test_a_folders_own_scale_is_kept(tmp_path: Path) -> None:
    model = with_vae(as_folder(small(scaling_factor=0.5, shift_factor=0.25), tmp_path))
    assert (model.vae.config.scaling, model.vae.config.shift) == (0.5, 0.25)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_folder_in_shards_decodes_as_diffusers(
    variant: str | None, other: AutoencoderKL, tmp_path: Path
) -> None:
    other.save_pretrained(tmp_path / "mine", max_shard_size="300KB", variant=variant)
    [index] = (tmp_path / "mine").glob("*.index*.json")
    shards = list(dict.fromkeys(json.loads(index.read_text())["weight_map"].values()))
    assert len(shards) > 1
    model, x = with_vae(tmp_path / "mine"), torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        wanted = other.decode(x / 0.18215).sample
        got = model.vae.decode(x)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5
    digests = "".join(sha256(tmp_path / "mine" / shard) for shard in shards)
    record = model.adapters.vae
    assert record is not None
    assert record.hash == hashlib.sha256(digests.encode()).hexdigest()[:10]


@pytest.mark.parametrize(
    "settings",
    [
        {"latent_channels": 4},
        {
            "block_out_channels": (32, 64, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
        },
    ],
)
@pytest.mark.parametrize("write", [as_folder, as_file])
def test_other_latents_are_refused(
    settings: dict[str, object], write: Callable[[AutoencoderKL, Path], Path], tmp_path: Path
) -> None:
    with pytest.raises(MissingWeights, match=r'"mine" makes latents of .* this model needs 8 '):
        with_vae(write(small(**settings), tmp_path))


def missing(state: State) -> None:
    del state["decoder.conv_out.bias"]


def extra(state: State) -> None:
    state["decoder.odd"] = torch.ones(1)


def nan(state: State) -> None:
    state["decoder.conv_out.bias"][0] = float("nan")


def narrow(state: State) -> None:
    state["decoder.conv_out.bias"] = torch.ones(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, '"decoder.conv_out.bias" missing'),
        (extra, '"decoder.odd" unknown'),
        (nan, "not finite"),
        (narrow, r"shape \(2,\)"),
        (dict.clear, "is no VAE"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(
    change: Callable[[State], object], message: str, other: AutoencoderKL, tmp_path: Path
) -> None:
    path = as_file(other, tmp_path)
    state = load_file(path)
    change(state)
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(Txt2imgError, match=message) as caught:
        with_vae(tmp_path / "bad.safetensors")
    assert "\n" not in str(caught.value)


def test_what_is_no_vae_is_refused(other: AutoencoderKL, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no VAE"):
        with_vae(tmp_path / "nowhere")
    with pytest.raises(UnknownLayout, match=r"no config\.json"):
        with_vae(tmp_path)
    file = as_folder(other, tmp_path) / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BadFile, match="truncated"):
        with_vae(tmp_path / "mine")
    file.unlink()
    with pytest.raises(MissingWeights, match=r"diffusion_pytorch_model\.safetensors is missing"):
        with_vae(tmp_path / "mine")


def test_a_sharded_folder_is_read_like_a_whole_one(other: AutoencoderKL, tmp_path: Path) -> None:
    whole = with_vae(as_folder(other, tmp_path))
    shards = tmp_path / "shards"
    other.save_pretrained(shards, max_shard_size="100KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    sharded = with_vae(shards)
    for name, value in whole.vae.state_dict().items():
        assert torch.equal(value, sharded.vae.state_dict()[name])
