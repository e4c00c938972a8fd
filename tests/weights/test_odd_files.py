"""Merged and pruned files, and those of other programs, work or are refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import Command
from tests.support import tiny, tiny_xl
from tests.support.adapters import ATTENTION, TEXT, Pairs, State, kohya, pairs, peft, write
from tests.weights.adapters.test_lora import put_on, states
from txt2img.errors import MissingWeights, Txt2imgError, UnknownLayout
from txt2img.pipeline.generate import generate
from txt2img.request.request import Request
from txt2img.system.device.device import Device
from txt2img.weights.adapters.file_layout import word_of
from txt2img.weights.adapters.textual_inversion import open_embedding
from txt2img.weights.checkpoint import summary
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
IDS = "text_model.embeddings.position_ids"
SD1_IDS, XL_IDS = (
    f"cond_stage_model.transformer.{IDS}",
    f"conditioner.embedders.0.transformer.{IDS}",
)
SMALL = Request("a cat", width=64, height=64, steps=1, seed=1)


def copied(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


def same(got: Model, wanted: Model) -> bool:
    """Whether two models have the same weights, bit for bit."""
    networks = ((got.network, wanted.network), (got.vae, wanted.vae), (got.text, wanted.text))
    return all(
        torch.equal(value, other.state_dict()[name])
        for mine, other in networks
        for name, value in mine.state_dict().items()
    )


def with_ids(dtype: torch.dtype, key: str) -> Callable[[State], object]:
    return lambda state: state.update({key: torch.arange(77)[None].to(dtype)})


def with_means(state: State) -> None:
    """EMA copies, as training leaves them: without dots in their names."""
    unet = "model.diffusion_model."
    for name in [n for n in state if n.startswith(unet)][:20]:
        flat = "model_ema.diffusion_model" + name.removeprefix(unet).replace(".", "")
        state[flat] = state[name].float() + 1
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def comfy_sd1(state: State) -> None:
    """The tensors that ComfyUI's text encoder has besides the published ones."""
    width = tiny.SD1.width
    state["cond_stage_model.transformer.text_projection.weight"] = torch.eye(width)
    state["cond_stage_model.logit_scale"] = torch.tensor(4.6)


def comfy_xl(state: State) -> None:
    first = "conditioner.embedders.0."
    state[f"{first}transformer.text_projection.weight"] = torch.eye(64)
    state |= {f"conditioner.embedders.{n}.logit_scale": torch.tensor(4.6) for n in (0, 1)}
    state["denoiser.sigmas"] = torch.rand(1000)


ODD: dict[str, tuple[Callable[[], tiny.Tiny | tiny_xl.TinyXL], Callable[[State], object]]] = {
    **{
        f"sd1 position ids {dtype}": (tiny.sd1, with_ids(dtype, SD1_IDS))
        for dtype in (torch.float16, torch.float32, torch.int32, torch.uint8)
    },
    "sd1 no position ids": (tiny.sd1, lambda state: state.pop(SD1_IDS)),
    "xl position ids float16": (tiny_xl.base, with_ids(torch.float16, XL_IDS)),
    "sd1 means": (tiny.sd1, with_means),
    "xl means": (tiny_xl.base, with_means),
    "sd1 by ComfyUI": (tiny.sd1, comfy_sd1),
    "xl by ComfyUI": (tiny_xl.base, comfy_xl),
    "sd1 dreambooth": (
        tiny.sd1,
        lambda state: state.update({"embedding_manager.embedder.x": torch.ones(3)}),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_leftovers_of_merges_and_programs_change_nothing(name: str, tmp_path: Path) -> None:
    build, change = ODD[name]
    state = copied(load_file(build().file))
    change(state)
    # ComfyUI keeps its graph in the metadata; quotes and signs of all kinds are in it.
    said = {"prompt": json.dumps({"3": {"inputs": {"text": 'a "cat" ☃'}}}), "workflow": "{}"}
    odd = write(tmp_path / "odd.safetensors", state, said)
    assert same(load(str(odd), CPU), load(str(build().file), CPU))


def test_components_of_a_merge_may_have_different_dtypes(tmp_path: Path) -> None:
    """An XL merge with a VAE baked in: bf16 U-Net, fp16 VAE, one encoder in float32."""
    state = load_file(tiny_xl.base().file)
    kinds = {"model.diffusion_model.": torch.bfloat16, "first_stage_model.": torch.float16}
    for name, value in state.items():
        kind = next((k for start, k in kinds.items() if name.startswith(start)), torch.float32)
        if value.is_floating_point():
            state[name] = value.to(kind)
    path = write(tmp_path / "merge.safetensors", state)
    model, wanted = load(str(path), CPU), load(str(tiny_xl.base().file), CPU)
    assert summary(str(path)).dtypes == ("BF16", "F16", "F32")
    network = wanted.network.state_dict()
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, network[name].bfloat16().float())
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, wanted.vae.state_dict()[name].half().float())


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint without its VAE, and a VAE of the published scale of 8 pixels a cell."""
    root = tmp_path_factory.mktemp("pruned")
    state = load_file(tiny.sd1().file)
    kept = {name: value for name, value in state.items() if "first_stage_model" not in name}
    torch.manual_seed(3)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
    )
    whole = {name: value for name, value in tiny.ldm_vae(vae.state_dict(), 4).items()}
    return write(root / "pruned.safetensors", kept), write(root / "vae.safetensors", whole)


def test_a_model_without_a_vae_says_so_and_takes_one(
    pruned: tuple[Path, Path], command: Command
) -> None:
    file, vae = map(str, pruned)
    small = ("-W", "64", "-H", "64", "--steps", "1", "--seed", "1")
    for more in ((), ("--dry-run",)):
        outcome = command("-m", file, *small, *more, "a cat")
        assert outcome.code != 0 and not outcome.out
        assert outcome.err.count("Error: ") == 1
        assert "contains no VAE" in outcome.err and "with --vae" in outcome.err
    assert "a VAE, given with --vae" in command("info", file).out
    outcome = command("-m", file, "--vae", vae, *small, "a cat")
    assert outcome.code == 0 and Path(outcome.out.strip()).exists()


def test_latents_of_a_model_without_a_vae_are_those_of_the_whole_one(
    pruned: tuple[Path, Path],
) -> None:
    model = load(str(pruned[0]), CPU, vae_path=str(pruned[1]))
    wanted = load(str(tiny.sd1().file), CPU)
    assert all(
        torch.equal(value, wanted.network.state_dict()[name])
        for name, value in model.network.state_dict().items()
    )
    [image] = generate(SMALL, model)
    assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (tiny.sd1, "a Stable Diffusion model without its text encoder: use its U-Net with --unet"),
        (tiny_xl.base, "a Stable Diffusion XL model without its text encoders"),
    ],
)
def test_a_model_without_its_text_encoder_says_what_it_is(
    build: Callable[[], tiny.Tiny | tiny_xl.TinyXL], words: str, tmp_path: Path
) -> None:
    starts = ("cond_stage_model.", "conditioner.")
    state = {n: v for n, v in load_file(build().file).items() if not n.startswith(starts)}
    with pytest.raises(UnknownLayout, match=words) as caught:
        load(str(write(tmp_path / "pruned.safetensors", state)), CPU)
    assert "\n" not in str(caught.value)


def unet_pairs(which: str = ATTENTION) -> Pairs:
    torch.manual_seed(1)
    return pairs(tiny.sd1().unet, which)


def text_pairs() -> Pairs:
    torch.manual_seed(2)
    return {f"text_model.{name}": pair for name, pair in pairs(tiny.sd1().text, TEXT).items()}


def comfy(unet: Pairs, text: Pairs) -> State:
    """As ComfyUI saves one: its own prefixes, names of the original layout."""
    named = tiny.ldm_unet({f"{name}.weight": name for name in unet}, 2, 2)  # type: ignore[dict-item]
    flat = {str(ours): name.removesuffix(".weight") for name, ours in named.items()}
    made: State = {}
    for ours, name in flat.items():
        stem = f"diffusion_model.{name.removeprefix('model.diffusion_model.')}"
        made |= {f"{stem}.lora_down.weight": unet[ours][0], f"{stem}.lora_up.weight": unet[ours][1]}
    for name, (down, up) in text.items():
        stem = f"text_encoders.clip_l.transformer.{name}"
        made |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
    return made


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: kohya(text_pairs(), "lora_te_"), lambda: kohya(text_pairs(), "lora_te1_")),
        (
            lambda: kohya(unet_pairs(), alpha=None),
            lambda: kohya(unet_pairs(), alpha=4.0),  # the rank: without alpha the scale is 1
        ),
        (
            lambda: kohya(unet_pairs(), "lycoris_"),
            lambda: kohya(unet_pairs()),
        ),
        (
            lambda: comfy(unet_pairs(), text_pairs()),
            lambda: peft(unet_pairs()) | peft(text_pairs(), "text_encoder."),
        ),
        (
            lambda: peft(unet_pairs(), "diffusion_model."),
            lambda: peft(unet_pairs()),
        ),
    ],
    ids=["text encoder only", "no alpha", "lycoris_", "ComfyUI", "diffusion_model."],
)
def test_a_lora_with_other_names_is_the_same_lora(
    make: Callable[[], State], wanted: Callable[[], State], model: Model, tmp_path: Path
) -> None:
    notes = put_on(model, write(tmp_path / "plain.safetensors", wanted()))
    expected = states(model)
    notes = put_on(model, write(tmp_path / "odd.safetensors", make()))
    count, of = notes[-1].removeprefix("LoRA odd: applied ").split(" of ")
    assert count == of and int(count) > 0
    assert all(torch.equal(value, expected[name]) for name, value in states(model).items())


def lora(*names: str, width: int = 32, ends: tuple[str, str] = ("lora_A", "lora_B")) -> State:
    """A file of small pairs for layers of those names."""
    return {
        f"{name}.{end}.weight": torch.ones(2, width) if end == ends[0] else torch.ones(32, 2)
        for name in names
        for end in ends
    }


KOHYA = ("lora_down", "lora_up")
ATTN2 = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
FOREIGN: dict[str, tuple[State, str]] = {
    "FLUX of diffusers": (
        lora("transformer.single_transformer_blocks.0.attn.to_q"),
        "applied 0 of 1; it is made for FLUX, not for latent diffusion",
    ),
    "FLUX of kohya": (
        lora("lora_unet_double_blocks_0_img_attn_proj", ends=KOHYA),
        "it is made for FLUX",
    ),
    "FLUX of ComfyUI": (
        lora("diffusion_model.double_blocks.0.img_attn.proj"),
        "it is made for FLUX",
    ),
    "SD 3": (
        lora("transformer.transformer_blocks.0.attn.to_q"),
        "it is made for Stable Diffusion 3",
    ),
    "SD 3 of kohya": (
        lora("lora_unet_joint_blocks_0_x_block_attn_qkv", ends=KOHYA),
        "it is made for Stable Diffusion 3",
    ),
    "XL": (
        lora(ATTN2, width=2048, ends=KOHYA),
        r"does not fit a layer of shape \(64, 32\); it was made for Stable Diffusion XL",
    ),
    "SD 2": (lora(ATTN2, width=1024, ends=KOHYA), "it was made for Stable Diffusion 2"),
    "a whole model": ({"model.x": torch.ones(2)}, "it is no LoRA, or one for another kind"),
    "peft's early OFT": (
        {"unet.conv_out.oft_r": torch.zeros(2, 2, 2)},
        "is an OFT of peft from before 0.15",
    ),
    "a BOFT of more factors": (
        {"unet.conv_out.boft_R": torch.zeros(2, 2, 2, 2), "unet.conv_out.boft_s": torch.ones(4, 1)},
        "is a BOFT of peft with 2 butterfly factors; only 1 is supported",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_an_adapter_that_does_not_apply_says_what_it_is_for(
    name: str, model: Model, tmp_path: Path
) -> None:
    state, words = FOREIGN[name]
    before = states(model)
    with pytest.raises(Txt2imgError, match=words) as caught:
        put_on(model, write(tmp_path / "odd.safetensors", state))
    assert "\n" not in str(caught.value) and "odd.safetensors" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_embeddings_of_other_programs_are_read(model: Model, tmp_path: Path) -> None:
    vectors = torch.randn(3, 32)
    for name in ("emb_params", "*", "string_to_param.*", "clip_l", "<cat>"):
        path = write(tmp_path / "cat.safetensors", {name: vectors})
        [read] = open_embedding(path, model.text.encoders).read()
        assert torch.equal(read, vectors)
        assert word_of(path) == ("<cat>" if name == "<cat>" else "cat")


@pytest.mark.parametrize(
    "names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")], ids=str
)
def test_xls_embeddings_have_two_tensors_of_either_naming(
    names: tuple[str, str], tmp_path: Path
) -> None:
    model = load(str(tiny_xl.base().folder), CPU)
    parts: list[Tensor] = [torch.randn(2, 64), torch.randn(2, 128)]
    path = write(tmp_path / "cat.safetensors", dict(zip(names, parts, strict=True)))
    assert all(map(torch.equal, open_embedding(path, model.text.encoders).read(), parts))
    with pytest.raises(UnknownLayout, match="one tensor of vectors is needed"):
        open_embedding(path, load(str(tiny.sd1().folder), CPU).text.encoders)
    with pytest.raises(MissingWeights, match="vectors of width 64 and 128"):
        turned = dict(zip(names, parts[::-1], strict=True))
        open_embedding(write(tmp_path / "turned.safetensors", turned), model.text.encoders)
