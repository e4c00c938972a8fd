"""TAESD draws as diffusers' AutoencoderTiny, from every layout it is published in."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.cli.test_errors import refused
from tests.conftest import Command
from tests.support import tiny
from tests.support.loaded import loaded
from txt2img.errors import MissingWeights, Txt2imgError, UnknownLayout
from txt2img.images import image_file
from txt2img.models.configs import TinyConfig, VAEConfig
from txt2img.models.taesd import TinyVAE
from txt2img.system.device.device import Device
from txt2img.weights.layouts.taesd import vae_warnings
from txt2img.weights.layouts.vae import open_vae
from txt2img.weights.load import load, load_vae
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
State = dict[str, Tensor]


def peer(channels: int = 4, **settings: object) -> AutoencoderTiny:
    """diffusers' own, of random weights, with a level less than published: 4 pixels a cell."""
    torch.manual_seed(3)
    expected: dict[str, object] = {
        "latent_channels": channels,
        "encoder_block_out_channels": (16,) * 3,
        "decoder_block_out_channels": (16,) * 3,
        "num_encoder_blocks": (1, 2, 2),
        "num_decoder_blocks": (2, 2, 1),
    }
    return AutoencoderTiny(**expected | settings).eval()


@pytest.fixture(scope="module")
def other() -> AutoencoderTiny:
    return peer()


def as_folder(vae: AutoencoderTiny, root: Path) -> Path:
    vae.save_pretrained(root / "taesd")
    return root / "taesd"


def as_weights_of_a_folder(vae: AutoencoderTiny, root: Path) -> Path:
    return as_folder(vae, root) / "diffusion_pytorch_model.safetensors"


def as_diffusers_file(vae: AutoencoderTiny, root: Path) -> Path:
    save_file(vae.state_dict(), root / "taesd.safetensors")
    return root / "taesd.safetensors"


def side(vae: AutoencoderTiny, which: str) -> State:
    """One half's weights with bare numbers, as the original has them: its decoder clamps first."""
    more = 1 if which == "decoder" else 0
    halves = (n.removeprefix(f"{which}.layers.") for n in vae.state_dict() if n.startswith(which))
    named = {n: vae.state_dict()[f"{which}.layers.{n}"] for n in halves}
    return {f"{int((cut := n.split('.', 1))[0]) + more}.{cut[1]}": v for n, v in named.items()}


def as_decoder(vae: AutoencoderTiny, root: Path) -> Path:
    save_file(side(vae, "decoder"), root / "taesd_decoder.safetensors")
    return root / "taesd_decoder.safetensors"


LAYOUTS = [as_folder, as_weights_of_a_folder, as_diffusers_file, as_decoder]


def with_vae(path: Path) -> Model:
    return load(str(tiny.sd1().folder), CPU, vae_path=str(path))


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_decodes_as_diffusers(
    write: Callable[[AutoencoderTiny, Path], Path], other: AutoencoderTiny, tmp_path: Path
) -> None:
    model, x = with_vae(write(other, tmp_path)), 3 * torch.randn(1, 4, 5, 4)
    assert isinstance(model.vae, TinyVAE)
    with torch.no_grad():
        expected, got = other.decode(x).sample, model.vae.decode(x)
    assert got.shape == (1, 3, 20, 16)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5
    assert (model.vae.encoder is None) == (write is as_decoder)
    if model.vae.encoder is not None:
        with torch.no_grad():
            latent, back = other.encode(expected).latents, model.vae.encode(expected)
        assert float((back - latent).abs().max() / latent.abs().max()) < 1e-5


@pytest.mark.parametrize("write", [as_folder, as_decoder])
def test_those_of_16_channels_decode_too(
    write: Callable[[AutoencoderTiny, Path], Path], tmp_path: Path
) -> None:
    other, x = peer(16), torch.randn(1, 16, 5, 4)
    own = VAEConfig(latent_channels=16, channels=(32, 32, 32), scaling=0.3611, shift=0.1159)
    files = open_vae(str(write(other, tmp_path)), own)
    assert isinstance(files.config, TinyConfig)
    vae = loaded(partial(TinyVAE, files.config), files.component)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(x), other.decode(x).sample)


def test_the_published_shape_is_the_usual_one() -> None:
    with torch.device("meta"):
        ours, theirs = TinyVAE(TinyConfig()), AutoencoderTiny()
    assert ours.config.factor == 8
    spelt = {n.replace("layers.0.", "conv_in."): v.shape for n, v in theirs.state_dict().items()}
    assert {n: v.shape for n, v in ours.state_dict().items()} == spelt


def test_a_picture_drawn_with_it_says_so(
    draw: Command, other: AutoencoderTiny, folder: Path
) -> None:
    path = as_decoder(other, folder)
    outcome = draw("x", "-q", "--seed", "1", "--vae", str(path), "-o", "x.png")
    assert (outcome.code, outcome.out) == (0, "x.png\n")
    request = image_file.read(Path("x.png")).request
    assert request is not None and request.vae is not None
    assert request.vae.name == "taesd_decoder.safetensors"
    assert draw("x", "-q", "--seed", "1", "-o", "own.png").code == 0
    assert (
        image_file.read(Path("own.png")).pixels_sha256
        != image_file.read(Path("x.png")).pixels_sha256
    )


def test_it_replaces_a_models_vae(other: AutoencoderTiny, tmp_path: Path) -> None:
    model = load(str(tiny.sd1().folder), CPU)
    vae = load_vae(str(as_decoder(other, tmp_path)), model)
    assert isinstance(vae, TinyVAE) and not isinstance(model.vae, TinyVAE)
    assert model.adapters.vae is None


@pytest.mark.parametrize(
    ("name", "scaling", "doubted"),
    [
        ("taesd_decoder.safetensors", 0.18215, False),
        ("taesdxl_decoder.safetensors", 0.13025, False),
        ("taesdxl_decoder.safetensors", 0.18215, True),
        ("taesd", 0.13025, True),
        ("mine.safetensors", 0.13025, False),
        ("taesdxl", 1.0, False),
        ("taef1_decoder.safetensors", 0.3611, False),
        ("taesd3_decoder.safetensors", 1.5305, False),
        ("taesd3_decoder.safetensors", 0.3611, True),
        ("TAEF1", 1.5305, True),
        ("taesd", 0.3611, True),
    ],
)
def test_a_name_of_another_familys_latents_is_warned_of(
    name: str, scaling: float, doubted: bool
) -> None:
    lines = vae_warnings(name, VAEConfig(scaling=scaling))
    assert len(lines) == doubted and all("seems made for" in line for line in lines)


def test_the_warning_is_shown(draw: Command, other: AutoencoderTiny, folder: Path) -> None:
    path = as_decoder(other, folder).rename("taesdxl_decoder.safetensors")
    for options in (("--vae",), ("--save-steps", "--preview-vae")):
        outcome = draw("x", "--seed", "1", *options, str(path), "-o", "x.png", "--overwrite")
        assert "seems made for SDXL; this model's latents are SD 1 and SD 2's" in outcome.err


def test_it_is_no_model(command: Command, other: AutoencoderTiny, folder: Path) -> None:
    for write in (as_decoder, as_diffusers_file):
        refused(command("x", "-m", str(write(other, folder))), 1, "(TAESD): use it with --vae")


def encoder_alone(state: State) -> None:
    state.clear()
    state.update(side(peer(), "encoder"))


def of_other_latents(state: State) -> None:
    state.clear()
    state.update(side(peer(16), "decoder"))


def without_blocks(state: State) -> None:
    for name in [name for name in state if "conv." in name]:
        del state[name]


def without_a_layer(state: State) -> None:
    del state["5.weight" if "5.weight" in state else "6.weight"]


def with_nan(state: State) -> None:
    state["1.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (encoder_alone, "is the encoder of a TAESD"),
        (of_other_latents, "16 channels, 4 pixels a cell; this model needs 4"),
        (without_blocks, "no residual block"),
        (without_a_layer, '"6.weight" missing'),
        (with_nan, "not finite"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    change: Callable[[State], object], message: str, other: AutoencoderTiny, tmp_path: Path
) -> None:
    path = as_decoder(other, tmp_path)
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(Txt2imgError, match=message) as caught:
        with_vae(path)
    assert isinstance(caught.value, UnknownLayout | MissingWeights)
    assert "\n" not in str(caught.value)


def test_a_config_that_asks_for_more_is_refused(other: AutoencoderTiny, tmp_path: Path) -> None:
    path = as_folder(other, tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"act_fn": "gelu"}))
    with pytest.raises(UnknownLayout, match='act_fn is "gelu"; only "relu"'):
        with_vae(path.parent)
