"""A diffusers folder's configs → its family; what they ask for and we cannot do is an error."""

from collections.abc import Mapping

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.configs import Depth, TextConfig, UNetConfig, VAEConfig
from txt2img.request import Defaults, Sampler
from txt2img.system.text import shown
from txt2img.weights.distilled import by_scheduler, said, told
from txt2img.weights.families import (
    SD15,
    SDXL,
    Family,
    ProcessConfig,
    checked,
    named,
    schedule_for,
    told_apart,
)
from txt2img.weights.formats.json_values import (
    Config,
    blocks,
    check_class,
    check_fixed,
    flag,
    number,
    one_each,
    one_for_all,
    one_of,
    whole,
    wholes,
)

TEXTS = ("text_encoder", "text_encoder_2")

PREDICTION_NAMES = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}
BETA_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}

# Choices of diffusers and transformers that leave no trace in the weights; what is not in the
# second column draws another picture, or none.
UNET_FIXED: Config = {
    "act_fn": "silu",
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
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
MIDDLES = {"UNetMidBlock2DCrossAttn": "full", "UNetMidBlock2D": "residual", "None": "none"}
VAE_FIXED: Config = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
TEXT_FIXED: Config = {"layer_norm_eps": 1e-5}
NOISE_FIXED: Config = {"trained_betas": None, "use_flow_sigmas": False}
FLOW_FIXED: Config = {"shift": 1.0, "use_dynamic_shifting": False, "invert_sigmas": False}


def from_configs(configs: Mapping[str, Config], name: str = "") -> Family:
    """The family of a diffusers folder, from its configs by component. Raises UnknownLayout.

    `txt2img`, an optional one, says what the model draws best with, else the scheduler's and the
    folder's `name` may. Raises BadFile for nonsense.
    """
    big = configs["unet"].get("addition_embed_type") is not None  # an XL model
    found = [name for name in TEXTS if name in configs]
    texts = [_text(configs[name], big, big and name == found[-1]) for name in found]
    network = unet_config(configs["unet"], texts[-1].projection)
    vae = vae_config(configs["vae"])
    process, prediction = _noise(configs["scheduler"])
    side = whole(configs["unet"], "sample_size", 64, 1, 1024) * vae.factor
    usual = by_scheduler(_usual(process, side, big), configs["scheduler"], name)
    usual = told(usual) if network.scale_width else usual
    return checked(
        Family(
            name=named(network),
            network=network,
            vae=vae,
            text=texts[0],
            process=process,
            prediction=prediction,
            defaults=said(configs.get("txt2img", {}), usual, "txt2img.json"),
            text_2=texts[1] if texts[1:] else None,
            silent=big
            and flag(
                configs.get("model_index", {}), "force_zeros_for_empty_prompt", bool(texts[1:])
            ),
        )
    )


def unet_config(config: Config, pooled: int) -> UNetConfig:
    """A U-Net's shape from its config. UnknownLayout, BadFile."""
    # 1. what nobody's weights could show
    check_class(config, "unet", ("UNet2DConditionModel",))
    inputs = whole(config, "in_channels", 4, 1, 64)
    outputs = whole(config, "out_channels", 4, 1, 64)
    check_fixed(config, "unet", UNET_FIXED)
    # 2. the levels
    channels = wholes(config, "block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    attention = blocks(config, "down_block_types", down, (True, True, True, False))
    if attention != blocks(config, "up_block_types", up, (False, True, True, True))[::-1]:
        raise UnknownLayout("unet: up_block_types do not mirror down_block_types")
    # 3. attention: what diffusers calls attention_head_dim is the number of heads, by an old slip
    heads = (
        "attention_head_dim" if config.get("num_attention_heads") is None else "num_attention_heads"
    )
    if len(attention) != levels:
        raise UnknownLayout(f"unet: {len(attention)} blocks for {levels} block_out_channels")
    layers = one_for_all(config, "layers_per_block", 2, 16)
    size_width, sizes = _sizes(config, pooled)
    return UNetConfig(
        in_channels=inputs,
        out_channels=outputs,
        channels=channels,
        layers=layers,
        attention=attention,
        depth=_depths(config, "transformer_layers_per_block", attention, layers),
        up_depth=_up_depths(config, attention, layers + 1),
        middle=_middle(config),
        heads=one_each(config, heads, 8, levels, 256),
        cross_dim=one_for_all(config, "cross_attention_dim", 1280, 16384),
        linear_projection=flag(config, "use_linear_projection", False),
        groups=whole(config, "norm_num_groups", 32, 1, 1024),
        pooled=pooled,
        sizes=sizes,
        size_width=size_width,
        scale_width=_told_scale(config),
    )


def _sizes(config: Config, pooled: int) -> tuple[int, int]:
    """How wide each number is that an XL network is told with the time, and how many there are."""
    if config.get("addition_embed_type") is None:
        return 256, 0
    one_of(config, "addition_embed_type", "", {"text_time": ""})
    width = whole(config, "addition_time_embed_dim", 256, 2, 4096)
    told = whole(config, "projection_class_embeddings_input_dim", 2816, 1, 65536)
    return width, (told - pooled) // width


def _told_scale(config: Config) -> int:
    """In how many features an LCM is told how strongly it is guided; 0 for other networks."""
    told = config.get("time_cond_proj_dim") is not None
    return whole(config, "time_cond_proj_dim", 256, 4, 4096) if told else 0


def _middle(config: Config) -> str:
    """What the U-Net's smallest map goes through."""
    kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    return one_of({"mid_block_type": str(kind)}, "mid_block_type", "", MIDDLES)


def _depths(config: Config, key: str, attention: tuple[bool, ...], count: int) -> tuple[Depth, ...]:
    """Transformer blocks by level, widest first: one number, or one for each of `count`."""
    value = config.get(key, 1)
    values = list(value) if isinstance(value, list | tuple) else [value] * len(attention)
    if len(values) != len(attention):
        raise UnknownLayout(f"{key} has {len(values)} entries for {len(attention)} levels")
    depths: list[Depth] = []
    for item in values:
        each = item if isinstance(item, list | tuple) else [item] * count
        if len(each) != count:
            raise UnknownLayout(f"{key} has {shown(item)} for {count} transformers of a level")
        several = tuple(whole({key: n}, key, 0, 0, 32) for n in each)
        depths.append(several[0] if len(set(several)) == 1 else several)
    return told_apart(depths, attention)


def _up_depths(config: Config, attention: tuple[bool, ...], count: int) -> tuple[Depth, ...] | None:
    """The same on the way up, which diffusers tells from the smallest map on; None if alike."""
    key = "reverse_transformer_layers_per_block"
    value = config.get(key)
    if value is None:
        return None
    value = value[::-1] if isinstance(value, list | tuple) else value
    up = _depths({key: value}, key, attention, count)
    return None if up == _depths(config, key[8:], attention, count - 1) else up


def vae_config(config: Config) -> VAEConfig:
    check_class(config, "vae", ("AutoencoderKL",))
    check_fixed(config, "vae", VAE_FIXED)
    channels = wholes(config, "block_out_channels", (64,))
    for key, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if len(blocks(config, f"{key}_block_types", (kind, kind), (True,))) != len(channels):
            raise UnknownLayout(f"vae: not one {key}_block_type for each of block_out_channels")
    quant = flag(config, "use_quant_conv", True)
    if quant != flag(config, "use_post_quant_conv", True):
        raise UnknownLayout("vae: use_quant_conv and use_post_quant_conv differ")
    pixels = whole(config, "in_channels", 3, 1, 16)
    if pixels != 3 or whole(config, "out_channels", 3, 1, 16) != 3:
        raise UnknownLayout("vae: pictures have 3 channels; in_channels or out_channels differ")
    return VAEConfig(
        in_channels=pixels,
        latent_channels=whole(config, "latent_channels", 4, 1, 64),
        channels=channels,
        layers=whole(config, "layers_per_block", 1, 1, 16),
        groups=whole(config, "norm_num_groups", 32, 1, 1024),
        mid_attention=flag(config, "mid_block_add_attention", True),
        quant_conv=quant,
        scaling=number(config, "scaling_factor", 0.18215),
        shift=0.0 if config.get("shift_factor") is None else number(config, "shift_factor", 0.0),
    )


def _text(config: Config, penultimate: bool, projected: bool) -> TextConfig:
    if config.get("model_type", "clip_text_model") not in ("clip_text_model", "clip"):
        raise UnknownLayout(f"text_encoder: {shown(config['model_type'])} is not a CLIP text model")
    check_fixed(config, "text_encoder", TEXT_FIXED)
    act = config.get("hidden_act", "quick_gelu")
    if act not in ("quick_gelu", "gelu"):
        raise UnknownLayout(f"text_encoder: hidden_act is {shown(act)}; allowed: quick_gelu, gelu")
    width = whole(config, "hidden_size", 512, 1, 16384)
    heads = whole(config, "num_attention_heads", 8, 1, 256)
    if width % heads:
        raise UnknownLayout(f"text_encoder: hidden_size {width} is no multiple of {heads} heads")
    return TextConfig(
        vocab=whole(config, "vocab_size", 49408, 3, 2**20),
        width=width,
        layers=whole(config, "num_hidden_layers", 12, 1, 128),
        heads=heads,
        mlp=whole(config, "intermediate_size", 2048, 1, 65536),
        length=whole(config, "max_position_embeddings", 77, 3, 4096),
        act=str(act),
        penultimate=penultimate,
        projection=whole(config, "projection_dim", 512, 1, 16384) if projected else 0,
    )


def _noise(config: Config) -> tuple[ProcessConfig, str]:
    """The process and the prediction type of a scheduler's config."""
    n = whole(config, "num_train_timesteps", 1000, 2, 100_000)
    if "FlowMatch" in str(config.get("_class_name")):
        check_fixed(config, "scheduler", FLOW_FIXED)
        return ProcessConfig("flow", n=n), "flow"
    check_fixed(config, "scheduler", NOISE_FIXED)
    table = one_of(config, "beta_schedule", "linear", BETA_NAMES)
    kind = one_of(config, "prediction_type", "epsilon", PREDICTION_NAMES)
    start, end = number(config, "beta_start", 0.0001), number(config, "beta_end", 0.02)
    if not 0.0 < start <= end < 1.0:
        raise BadFile(f"scheduler: betas from {start} to {end}; they must rise within 0 … 1")
    zero_snr = flag(config, "rescale_betas_zero_snr", False)
    return ProcessConfig("diffusion", table, n, start, end, zero_snr), kind


def _usual(process: ProcessConfig, side: int, big: bool) -> Defaults:
    """What suits a process, a side in pixels and a size of model."""
    sampler = Sampler.EULER if process.kind == "flow" else Sampler.DPMPP_2M
    cfg = (SDXL if big else SD15).defaults.cfg
    return Defaults(side, side, 30, cfg, sampler, schedule_for(process))
