"""Models load from folders and files, or are refused in one line."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from tests.support import tiny
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadFile, BadRequest, MissingWeights, ModelNotFound, UnknownLayout
from txt2img.request import Sampler, Schedule
from txt2img.system.device.device import Device
from txt2img.weights.checkpoint import summary
from txt2img.weights.load import load

CPU = Device(torch.device("cpu"), torch.float32)
State = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the model with its own vocabulary, which tests may break."""
    copy = tmp_path / "model"
    shutil.copytree(tiny.own(), copy)
    yield copy


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path: Path, change: Callable[[State], object]) -> None:
    state = load_file(path)
    change(state)
    path.unlink()
    save_file({name: value.clone() for name, value in state.items()}, path)


def test_own_model_loads_with_all_its_settings() -> None:
    model = load(str(tiny.own()), CPU)
    family = model.family
    assert (model.name, family.name, family.prediction) == ("own", "latent diffusion", "v")
    assert family.process.zero_snr
    assert (family.vae.shift, family.vae.mid_attention, family.vae.quant_conv) == (
        0.25,
        False,
        False,
    )
    assert (family.texts[0].length, family.texts[0].vocab) == (32, 56)
    assert (family.network.heads, family.network.depth) == ((2, 4), (1, 2))
    assert (family.defaults.width, family.defaults.schedule) == (16, Schedule.TRAILING)
    assert model.text.tokenizer.chunks("red")[0][:3] == [54, 53, 55]
    cond = model.text.encode(["red"])
    assert model.network(torch.randn(1, 8, 8, 8), torch.tensor([9.0]), cond).shape == (1, 8, 8, 8)


def test_layouts_hold_the_same_weights() -> None:
    for build in (tiny.sd1, tiny.sd2):
        a, b = (load(str(path), CPU) for path in (build().folder, build().file))
        for mine, other in ((a.network, b.network), (a.vae, b.vae), (a.text, b.text)):
            state = other.state_dict()
            assert all(torch.equal(v, state[n]) for n, v in mine.state_dict().items())
        assert a.text.tokenizer.chunks("a cat!") == b.text.tokenizer.chunks("a cat!")


def test_text_encoder_without_prefix_loads(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    bare = {n.removeprefix("text_model."): v for n, v in load_file(path).items()}
    save_file(bare | {"embeddings.position_ids": torch.arange(32)[None]}, path)
    wanted = load(str(tiny.own()), CPU).text.encode(["red"]).tokens
    assert torch.equal(load(str(folder), CPU).text.encode(["red"]).tokens, wanted)


def test_old_vae_attention_names_load(tmp_path: Path) -> None:
    shutil.copytree(tiny.sd1().folder, tmp_path / "old", copy_function=os.link)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(state: State) -> None:
        for name in [n for n in state if ".attentions.0." in n]:
            old = name
            for new_name, old_name in names.items():
                old = old.replace(new_name, old_name)
            state[old] = state.pop(name)

    edit_weights(tmp_path / "old" / "vae" / "diffusion_pytorch_model.safetensors", age)
    ours = load(str(tmp_path / "old"), CPU).vae.state_dict()
    wanted = load(str(tiny.sd1().folder), CPU).vae.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in ours.items())


def test_half_precision_variant_and_shards_load(folder: Path) -> None:
    unet, vae = folder / "unet", folder / "vae"
    state = load_file(unet / "diffusion_pytorch_model.safetensors")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(state)
    table = {}
    for shard, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: state[name] for name in part}, unet / shard)
        table |= dict.fromkeys(part, shard)
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    whole = load_file(vae / "diffusion_pytorch_model.safetensors")
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    half = {name: value.half() for name, value in whole.items()}
    save_file(half, vae / "diffusion_pytorch_model.fp16.safetensors")
    model = load(str(folder), CPU)
    assert torch.equal(model.network.conv_in.weight, state["conv_in.weight"])
    assert model.vae.decoder.conv_in.weight.dtype == torch.float32
    edit(index, weight_map=table | {names[0]: "../../../x.safetensors"})
    with pytest.raises(BadFile, match="plain name"):
        load(str(folder), CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_cast(dtype: torch.dtype) -> None:
    model = load(str(tiny.own()), Device(torch.device("cpu"), dtype))
    for network in (model.network, model.vae, model.text):
        assert {parameter.dtype for parameter in network.parameters()} == {dtype}
    x, time = torch.randn(1, 8, 8, 8).to(dtype), torch.tensor([9.0])
    assert model.network(x, time, Cond(model.text.encode(["red"]).tokens)).dtype == dtype


def test_prediction_can_be_overridden() -> None:
    assert load(str(tiny.sd1().file), CPU, prediction="v").family.prediction == "v"
    assert load(str(tiny.own()), CPU, prediction="eps").family.prediction == "eps"
    with pytest.raises(BadRequest, match="eps, v"):
        load(str(tiny.own()), CPU, prediction="x0")


def test_defaults_come_from_the_folder(folder: Path) -> None:
    (folder / "txt2img.json").write_text('{"steps": 12, "cfg": 4, "sampler": "euler", "width": 64}')
    defaults = load(str(folder), CPU).family.defaults
    assert (defaults.steps, defaults.cfg, defaults.sampler) == (12, 4.0, Sampler.EULER)
    assert (defaults.width, defaults.height) == (64, 16)
    for wrong in ('{"steps": "many"}', '{"sampler": "magic"}', '{"cfg": true}', "[]"):
        (folder / "txt2img.json").write_text(wrong)
        with pytest.raises(BadFile):
            load(str(folder), CPU)


def test_flow_model_loads(folder: Path) -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    family = load(str(folder), CPU).family
    assert (family.process.kind, family.prediction) == ("flow", "flow")
    assert (family.defaults.sampler, family.defaults.schedule) == (Sampler.EULER, Schedule.FLOW)


def test_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    shutil.copytree(tiny.sd1().folder, tmp_path / "new", copy_function=os.link)
    place = tmp_path / "new" / "tokenizer"
    made = CLIPTokenizer.from_pretrained(place)
    shutil.rmtree(place)
    made.save_pretrained(place)
    assert (place / "tokenizer.json").is_file()
    (place / "vocab.json").unlink(missing_ok=True)
    ours = load(str(tmp_path / "new"), CPU).text.tokenizer.chunks("a Café, 3d")
    assert ours == load(str(tiny.sd1().folder), CPU).text.tokenizer.chunks("a Café, 3d")


def test_shipped_tokenizer_is_clips() -> None:
    ids = load(str(tiny.sd1().file), CPU).text.tokenizer.chunks("a photo of a cat")[0]
    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[7:]) == {49407}
    assert set(load(str(tiny.sd2().file), CPU).text.tokenizer.chunks("a cat")[0][4:]) == {0}


def test_summary_reads_no_weights(folder: Path) -> None:
    model, found = load(str(folder), CPU), summary(str(folder))
    count = sum(p.numel() for n in (model.network, model.vae, model.text) for p in n.parameters())
    assert (found.parameters, found.size, found.dtypes) == (count, 4 * count, ("F32",))
    assert (found.name, found.layout, found.hash) == ("model", "diffusers", model.hash)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    edit_weights(path, lambda state: state["decoder.conv_in.bias"].fill_(torch.nan))
    assert summary(str(folder)).hash != found.hash


def test_hash_of_a_single_file_is_its_sha256() -> None:
    import hashlib

    digest = hashlib.sha256(tiny.sd1().file.read_bytes()).hexdigest()
    assert load(str(tiny.sd1().file), CPU).hash == digest[:10]


@pytest.mark.parametrize("name", ["", "stabilityai/none", "none.safetensors", "a\0b", "x" * 5000])
def test_a_missing_model_is_not_downloaded(name: str) -> None:
    with pytest.raises(ModelNotFound, match=r"unasked|models pull ID fetches|no file or folder"):
        load(name, CPU)


def scale(name: str, factor: float) -> Callable[[State], object]:
    return lambda state: state[name].mul_(factor)


UNET, VAE = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"
TEXT = "text_encoder/model"
BROKEN: list[tuple[str, Callable[[State], object], str]] = [
    (UNET, lambda s: s.pop("conv_in.weight"), 'unet: "conv_in.weight" missing'),
    (VAE, lambda s: s.pop("decoder.conv_out.bias"), 'vae: "decoder.conv_out.bias" missing'),
    (TEXT, lambda s: s.pop("text_model.final_layer_norm.bias"), "final_layer_norm.bias"),
    (UNET, lambda s: s.update(extra=torch.zeros(1)), 'unet: "extra" unknown'),
    (TEXT, lambda s: s.update(extra=torch.zeros(1)), 'text_encoder: "extra" unknown'),
    (UNET, lambda s: s.update({"conv_in.bias": torch.zeros(31)}), r"\(31,\); \(32,\) is needed"),
    (UNET, scale("conv_in.weight", float("nan")), '"conv_in.weight" contains values that are not'),
    (VAE, scale("encoder.conv_in.bias", float("inf")), "not finite"),
    (UNET, lambda s: s.update({"conv_in.bias": torch.zeros(32).long()}), "I64"),
]


@pytest.mark.parametrize(("stem", "change", "words"), BROKEN)
def test_broken_weights_are_one_line(
    folder: Path, stem: str, change: Callable[[State], object], words: str
) -> None:
    edit_weights(folder / f"{stem}.safetensors", change)
    with pytest.raises(MissingWeights, match=words) as caught:
        load(str(folder), CPU)
    assert "\n" not in str(caught.value)


def with_few_words(path: Path) -> State:
    """A single file's tensors, but for most of the token embedding: less to write."""
    state = load_file(path)
    words = next(name for name in state if "token_embedding" in name)
    return state | {words: state[words][:9].clone()}


def test_single_file_names_tensors_in_its_own_layout(tmp_path: Path) -> None:
    model = tiny.sd1()
    whole = with_few_words(model.file)
    path = tmp_path / "a.safetensors"
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    for change, words in (
        (lambda s: s.pop(name), f'unet: "{name}" missing'),
        (lambda s: s.update({f"{name}2": torch.zeros(1)}), f'unet: "{name}2" unknown'),
        (lambda s: s.update({"first_stage_model.x": torch.zeros(1)}), '"first_stage_model.x"'),
        (lambda s: s.update({"something.else": torch.zeros(1)}), '"something.else"'),
    ):
        state = dict(whole)
        change(state)
        save_file(state, path)
        with pytest.raises(MissingWeights, match=words.replace(".", r"\.")):
            load(str(path), CPU)


def test_open_clip_names_unknown_tensors(tmp_path: Path) -> None:
    state = with_few_words(tiny.sd2().file)
    name = "cond_stage_model.model.transformer.resblocks.0.extra.weight"
    save_file(state | {name: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(MissingWeights, match=r"resblocks\.0\.extra"):
        load(str(tmp_path / "a.safetensors"), CPU)


def test_truncated_file_is_one_line(tmp_path: Path) -> None:
    content = tiny.sd1().file.read_bytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(content[:500_000])
    with pytest.raises(BadFile, match=r"truncated.*download"):
        load(str(path), CPU)


def test_folder_of_pickles_is_refused(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(MissingWeights, match="is missing"):
        load(str(folder), CPU)
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnknownLayout, match=r"pickled.*convert"):
        load(str(folder), CPU)


CONFIGS: list[tuple[str, dict[str, object], str]] = [
    ("unet", {"act_fn": "gelu"}, "act_fn"),
    ("unet", {"in_channels": 9}, "9 channels in, 8 out"),
    ("unet", {"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
    ("unet", {"addition_embed_type": "image"}, "text_time"),
    ("unet", {"mid_block_type": "Other"}, "mid_block_type"),
    ("unet", {"transformer_layers_per_block": [1, [1, 2]]}, "transformers of a level"),
    ("unet", {"transformer_layers_per_block": [0, 1]}, "at least 1"),
    ("unet", {"reverse_transformer_layers_per_block": [1]}, "entries"),
    ("unet", {"time_cond_proj_dim": 10**9}, "time_cond_proj_dim"),
    ("unet", {"time_cond_proj_dim": "256"}, "time_cond_proj_dim"),
    ("unet", {"block_out_channels": [-32, 64]}, "-32"),
    ("unet", {"block_out_channels": "32"}, "block_out_channels"),
    ("unet", {"layers_per_block": -1}, "layers_per_block"),
    ("vae", {"latent_channels": 10**9}, "latent_channels"),
    ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
    ("unet", {"_class_name": "os.system"}, "os.system"),
    ("unet", {"block_out_channels": [10**9, 10**9]}, "16384"),
    ("unet", {"block_out_channels": [32, 33]}, "33 channels"),
    ("unet", {"layers_per_block": 10**12}, "layers_per_block"),
    ("unet", {"layers_per_block": [1, 2]}, "the same for all levels"),
    ("unet", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "AttnDownBlock2D"),
    ("unet", {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}, "mirror"),
    ("unet", {"attention_head_dim": [2]}, "attention_head_dim"),
    ("unet", {"attention_head_dim": True}, "attention_head_dim"),
    ("unet", {"cross_attention_dim": 64}, "width 64"),
    ("vae", {"latent_channels": 4}, "4 channels"),
    ("vae", {"latents_mean": [0.0]}, "latents_mean"),
    ("vae", {"scaling_factor": "big"}, "scaling_factor"),
    ("vae", {"use_quant_conv": True}, "use_post_quant_conv"),
    ("vae", {"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    ("text_encoder", {"hidden_act": "relu"}, "hidden_act"),
    ("text_encoder", {"num_attention_heads": 5}, "no multiple of 5 heads"),
    ("text_encoder", {"model_type": "t5"}, "t5"),
    ("text_encoder", {"num_hidden_layers": -1}, "num_hidden_layers"),
    ("text_encoder", {"vocab_size": 10**9}, "vocab_size"),
    ("scheduler/scheduler_config", {"prediction_type": "sample"}, "prediction_type"),
    ("scheduler/scheduler_config", {"beta_schedule": "magic"}, "beta_schedule"),
    ("scheduler/scheduler_config", {"beta_end": 2.0}, "betas"),
    ("scheduler/scheduler_config", {"trained_betas": [0.1]}, "trained_betas"),
    ("scheduler/scheduler_config", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
    ("model_index", {"_class_name": "StableDiffusion3Pipeline"}, "3Pipeline"),
    ("model_index", {"text_encoder": ["my_code", "MyModel"]}, "MyModel"),
    ("model_index", {"text_encoder_2": ["my_code", "MyModel"]}, "text_encoder_2"),
    ("tokenizer/vocab", {"new": 3}, "same id"),
    ("tokenizer/vocab", {"new": 56}, "56 rows"),
    ("tokenizer/vocab", {"new": "3"}, "new"),
    ("tokenizer/special_tokens_map", {"pad_token": "none"}, "pad_token"),
]


@pytest.mark.parametrize(("name", "values", "words"), CONFIGS)
def test_unusable_config_is_named(
    folder: Path, name: str, values: dict[str, object], words: str
) -> None:
    plain = folder / f"{name}.json"
    edit(plain if plain.is_file() else folder / name / "config.json", **values)
    with pytest.raises(BadFile, match=words) as caught:
        load(str(folder), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer/merges.txt", b"\xff\xfe", "UTF-8"),
        ("tokenizer/merges.txt", b"a b c\n", "two words"),
        ("tokenizer/merges.txt", b"a " + b"b" * 5_000_000, "not in its vocabulary"),
        ("tokenizer/vocab.json", b"{}", "lacks"),
        ("unet/config.json", b'{"a": ', "broken JSON"),
    ],
)
def test_damaged_text_file_is_named(folder: Path, name: str, content: bytes, words: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(BadFile, match=words) as caught:
        load(str(folder), CPU)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_missing_config_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingWeights, match=name):
        load(str(folder), CPU)


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match="no unet/"):
        load(str(tmp_path), CPU)


def test_a_config_of_more_than_the_file_holds_is_refused_at_once(folder: Path) -> None:
    config = json.loads((folder / "unet/config.json").read_text())
    config["transformer_layers_per_block"] = 32
    (folder / "unet/config.json").unlink()
    (folder / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(MissingWeights, match=r"unet: a config of \d+ transformer blocks for"):
        load(str(folder), CPU)
