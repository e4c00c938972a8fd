"""A diffusers folder's configs → its family; what they ask for and we cannot do is an error."""

from collections.abc import Mapping, Sequence
from math import isfinite

from txt2img.errors import BadFile, BadRequest, UnknownLayout
from txt2img.escape import shown
from txt2img.models.text import TextConfig
from txt2img.models.unet import UNetConfig
from txt2img.models.vae import VAEConfig
from txt2img.request import Defaults, Sampler, Schedule
from txt2img.weights.families import (
    SD15,
    SD21,
    Family,
    ProcessConfig,
    checked,
    schedule_for,
    special,
)

Config = Mapping[str, object]

PREDICTION_NAMES = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}
BETA_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}

# Choices of diffusers and transformers that leave no trace in the weights; what is not in the
# second column draws another picture, or none.
UNET_FIXED: Config = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
VAE_FIXED: Config = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
TEXT_FIXED: Config = {"layer_norm_eps": 1e-5}
NOISE_FIXED: Config = {"trained_betas": None, "use_flow_sigmas": False}
FLOW_FIXED: Config = {"shift": 1.0, "use_dynamic_shifting": False, "invert_sigmas": False}


def from_configs(configs: Mapping[str, Config]) -> Family:
    """The family of a diffusers folder, from its configs by component. Raises UnknownLayout.

    `txt2img`, an optional one, says what the model draws best with. Raises BadFile for nonsense.
    """
    network = _unet(configs["unet"])
    vae, text = _vae(configs["vae"]), _text(configs["text_encoder"])
    process, prediction = _noise(configs["scheduler"])
    known = [f.name for f in (SD15, SD21) if (f.network, f.text) == (network, text)]
    side = _whole(configs["unet"], "sample_size", 64, 1, 1024) * vae.factor
    defaults = _defaults(process, side, configs.get("txt2img", {}))
    name = known[0] if known else "latent diffusion"
    return checked(Family(name, network, vae, text, process, prediction, defaults))


def _unet(config: Config) -> UNetConfig:
    # 1. what nobody's weights could show
    _class(config, "unet", ("UNet2DConditionModel",))
    inputs = _whole(config, "in_channels", 4, 1, 64)
    outputs = _whole(config, "out_channels", 4, 1, 64)
    if inputs != outputs:
        raise UnknownLayout(special(inputs, outputs))
    if config.get("addition_embed_type") == "text_time":
        raise UnknownLayout("this is a Stable Diffusion XL model, which is not supported yet")
    _fixed(config, "unet", UNET_FIXED)
    # 2. the levels
    channels = _wholes(config, "block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    attention = _blocks(config, "down_block_types", down, (True, True, True, False))
    if attention != _blocks(config, "up_block_types", up, (False, True, True, True))[::-1]:
        raise UnknownLayout("unet: up_block_types do not mirror down_block_types")
    # 3. attention: what diffusers calls attention_head_dim is the number of heads, by an old slip
    heads = (
        "attention_head_dim" if config.get("num_attention_heads") is None else "num_attention_heads"
    )
    if len(attention) != levels:
        raise UnknownLayout(f"unet: {len(attention)} blocks for {levels} block_out_channels")
    return UNetConfig(
        in_channels=inputs,
        out_channels=outputs,
        channels=channels,
        layers=_same(config, "layers_per_block", 2, 16),
        attention=attention,
        depth=_each(config, "transformer_layers_per_block", 1, levels, 32),
        heads=_each(config, heads, 8, levels, 256),
        cross_dim=_same(config, "cross_attention_dim", 1280, 16384),
        linear_projection=_flag(config, "use_linear_projection", False),
        groups=_whole(config, "norm_num_groups", 32, 1, 1024),
    )


def _vae(config: Config) -> VAEConfig:
    _class(config, "vae", ("AutoencoderKL",))
    _fixed(config, "vae", VAE_FIXED)
    channels = _wholes(config, "block_out_channels", (64,))
    for key, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if len(_blocks(config, f"{key}_block_types", (kind, kind), (True,))) != len(channels):
            raise UnknownLayout(f"vae: not one {key}_block_type for each of block_out_channels")
    quant = _flag(config, "use_quant_conv", True)
    if quant != _flag(config, "use_post_quant_conv", True):
        raise UnknownLayout("vae: use_quant_conv and use_post_quant_conv differ")
    pixels = _whole(config, "in_channels", 3, 1, 16)
    if pixels != 3 or _whole(config, "out_channels", 3, 1, 16) != 3:
        raise UnknownLayout("vae: pictures have 3 channels; in_channels or out_channels differ")
    return VAEConfig(
        in_channels=pixels,
        latent_channels=_whole(config, "latent_channels", 4, 1, 64),
        channels=channels,
        layers=_whole(config, "layers_per_block", 1, 1, 16),
        groups=_whole(config, "norm_num_groups", 32, 1, 1024),
        mid_attention=_flag(config, "mid_block_add_attention", True),
        quant_conv=quant,
        scaling=_number(config, "scaling_factor", 0.18215),
        shift=0.0 if config.get("shift_factor") is None else _number(config, "shift_factor", 0.0),
    )


def _text(config: Config) -> TextConfig:
    if config.get("model_type", "clip_text_model") not in ("clip_text_model", "clip"):
        raise UnknownLayout(f"text_encoder: {shown(config['model_type'])} is not a CLIP text model")
    _fixed(config, "text_encoder", TEXT_FIXED)
    act = config.get("hidden_act", "quick_gelu")
    if act not in ("quick_gelu", "gelu"):
        raise UnknownLayout(f"text_encoder: hidden_act is {shown(act)}; allowed: quick_gelu, gelu")
    return TextConfig(
        vocab=_whole(config, "vocab_size", 49408, 3, 2**20),
        width=_whole(config, "hidden_size", 512, 1, 16384),
        layers=_whole(config, "num_hidden_layers", 12, 1, 128),
        heads=_whole(config, "num_attention_heads", 8, 1, 256),
        mlp=_whole(config, "intermediate_size", 2048, 1, 65536),
        length=_whole(config, "max_position_embeddings", 77, 3, 4096),
        act=str(act),
    )


def _noise(config: Config) -> tuple[ProcessConfig, str]:
    """The process and the prediction type of a scheduler's config."""
    n = _whole(config, "num_train_timesteps", 1000, 2, 100_000)
    if "FlowMatch" in str(config.get("_class_name")):
        _fixed(config, "scheduler", FLOW_FIXED)
        return ProcessConfig("flow", n=n), "flow"
    _fixed(config, "scheduler", NOISE_FIXED)
    table = _one_of(config, "beta_schedule", "linear", BETA_NAMES)
    kind = _one_of(config, "prediction_type", "epsilon", PREDICTION_NAMES)
    start, end = _number(config, "beta_start", 0.0001), _number(config, "beta_end", 0.02)
    if not 0.0 < start <= end < 1.0:
        raise BadFile(f"scheduler: betas from {start} to {end}; they must rise within 0 … 1")
    zero_snr = _flag(config, "rescale_betas_zero_snr", False)
    return ProcessConfig("diffusion", table, n, start, end, zero_snr), kind


def _defaults(process: ProcessConfig, side: int, config: Config) -> Defaults:
    """What a model draws best with: as txt2img.json says, else as its process suggests."""
    sampler = Sampler.EULER if process.kind == "flow" else Sampler.DPMPP_2M
    try:
        return Defaults(
            width=_whole(config, "width", side, 8, 8192),
            height=_whole(config, "height", side, 8, 8192),
            steps=_whole(config, "steps", 30, 1, 10_000),
            cfg=_number(config, "cfg", 7.5),
            sampler=Sampler.parse(str(config.get("sampler", sampler))),
            schedule=Schedule.parse(str(config.get("schedule", schedule_for(process)))),
        )
    except BadRequest as error:
        raise BadFile(f"txt2img.json: {error}") from error


def _class(config: Config, where: str, allowed: tuple[str, ...]) -> None:
    name = config.get("_class_name", allowed[0])
    if name not in allowed:
        raise UnknownLayout(
            f"{where}: {shown(name)} is not supported; allowed: {', '.join(allowed)}"
        )


def _fixed(config: Config, where: str, fixed: Config) -> None:
    for key, allowed in fixed.items():
        got = config.get(key, allowed)
        if got != allowed:
            raise UnknownLayout(
                f"{where}: {key} is {shown(got)}; only {shown(allowed)} is supported"
            )


def _whole(config: Config, key: str, default: int, low: int, high: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise BadFile(f"{key} is {shown(value)}; it must be a whole number in {low} … {high}")
    return value


def _number(config: Config, key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise BadFile(f"{key} is {shown(value)}; it must be a number")
    return float(value)


def _flag(config: Config, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise BadFile(f"{key} is {shown(value)}; it must be true or false")
    return value


def _one_of(config: Config, key: str, default: str, names: Mapping[str, str]) -> str:
    value = config.get(key, default)
    if not isinstance(value, str) or value not in names:
        raise UnknownLayout(f"{key} is {shown(value)}; supported: {', '.join(names)}")
    return names[value]


def _wholes(config: Config, key: str, default: Sequence[int]) -> tuple[int, ...]:
    """Channels of up to eight levels."""
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 8:
        raise BadFile(f"{key} is {shown(value)}; it must be a list of one to eight whole numbers")
    return tuple(_whole({key: item}, key, 0, 1, 16384) for item in value)


def _each(config: Config, key: str, default: int, levels: int, high: int) -> tuple[int, ...]:
    """One number a level, from one for all or a list."""
    value = config.get(key, default)
    values = list(value) if isinstance(value, list | tuple) else [value] * levels
    if len(values) != levels:
        raise UnknownLayout(f"{key} has {len(values)} entries for {levels} levels")
    return tuple(_whole({key: item}, key, 0, 1, high) for item in values)


def _same(config: Config, key: str, default: int, high: int) -> int:
    """One number, or a list that repeats it."""
    value = config.get(key, default)
    values = value if isinstance(value, list | tuple) else [value]
    if not values or any(item != values[0] for item in values):
        raise UnknownLayout(f"{key} is {shown(value)}; only the same for all levels is supported")
    return _whole({key: values[0]}, key, default, 1, high)


def _blocks(
    config: Config, key: str, kinds: tuple[str, str], default: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Which blocks are of the first of two kinds."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, list | tuple) or any(item not in kinds for item in value):
        raise UnknownLayout(
            f"{key} is {shown(value)}; supported: {', '.join(dict.fromkeys(kinds))}"
        )
    return tuple(item == kinds[0] for item in value)
