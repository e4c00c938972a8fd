"""Read a diffusers folder's configs into a family; what is not supported is an error."""

from collections.abc import Mapping
from dataclasses import replace

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.configs import FLUX2_VAE, Depth, TextConfig, UNetConfig, VAEConfig
from txt2img.request import Defaults, Sampler
from txt2img.system.text import shown
from txt2img.weights.distilled import for_lcm, from_file, from_scheduler
from txt2img.weights.families import (
    SD15,
    SDXL,
    Family,
    ProcessConfig,
    check_family,
    default_schedule,
    family_name,
    normalise_depths,
)
from txt2img.weights.formats.json_values import (
    Config,
    block_kinds,
    check_class,
    check_fixed,
    choice,
    flag,
    int_list,
    integer,
    number,
    per_level,
    same_for_all,
)

SMALL, SMALL_STRENGTH = 256, 0.2  # pixels a side; how much its second pass draws anew
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

PREDICTION_NAMES = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}
BETA_NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}

# Settings of diffusers and transformers that leave no trace in the weights, and the only supported
# value of each.
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
SCALING_MIN, SCALING_MAX = 1e-4, 1e4  # published ones are 0.13 to 1.6
FLUX2_VAE_CLASS = "AutoencoderKLFlux2"
VAE_FIXED: Config = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
TEXT_FIXED: Config = {"layer_norm_eps": 1e-5}
NOISE_FIXED: Config = {"trained_betas": None, "use_flow_sigmas": False}
FLOW_FIXED: Config = {"shift": 1.0, "use_dynamic_shifting": False, "invert_sigmas": False}


def from_configs(configs: Mapping[str, Config], name: str = "") -> Family:
    """The family of a diffusers folder, from its configs by component.

    Defaults come from the optional config `txt2img`, else from the scheduler's, else from the
    folder's `name`. Raises UnknownLayout, BadFile.
    """
    xl = configs["unet"].get("addition_embed_type") is not None
    encoders = [name for name in TEXT_ENCODERS if name in configs]
    texts = [text_config(configs[name], xl, xl and name == encoders[-1]) for name in encoders]
    network = unet_config(configs["unet"], texts[-1].projection)
    vae = vae_config(configs["vae"])
    process, prediction = _noise(configs["scheduler"])
    side = integer(configs["unet"], "sample_size", 64, 1, 1024) * vae.factor
    defaults = from_scheduler(_defaults(process, side, xl), configs["scheduler"], name)
    defaults = for_lcm(defaults) if network.scale_width else defaults
    return check_family(
        Family(
            name=family_name(network),
            network=network,
            vae=vae,
            process=process,
            prediction=prediction,
            defaults=from_file(configs.get("txt2img", {}), defaults, "txt2img.json"),
            texts=tuple(texts),
            zero_empty_negative=xl
            and flag(
                configs.get("model_index", {}), "force_zeros_for_empty_prompt", bool(texts[1:])
            ),
        )
    )


def unet_config(config: Config, pooled: int) -> UNetConfig:
    """A U-Net's config from diffusers'. Raises UnknownLayout, BadFile."""
    # 1. Settings without trace in the weights.
    check_class(config, "unet", ("UNet2DConditionModel",))
    inputs = integer(config, "in_channels", 4, 1, 64)
    outputs = integer(config, "out_channels", 4, 1, 64)
    check_fixed(config, "unet", UNET_FIXED)
    # 2. Levels.
    channels = int_list(config, "block_out_channels", (320, 640, 1280, 1280))
    levels = len(channels)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    attention = block_kinds(config, "down_block_types", down, (True, True, True, False))
    if attention != block_kinds(config, "up_block_types", up, (False, True, True, True))[::-1]:
        raise UnknownLayout("unet: up_block_types do not mirror down_block_types")
    # 3. Attention. diffusers' attention_head_dim is the number of heads, by an old mistake.
    heads = (
        "attention_head_dim" if config.get("num_attention_heads") is None else "num_attention_heads"
    )
    if len(attention) != levels:
        raise UnknownLayout(f"unet: {len(attention)} blocks for {levels} block_out_channels")
    layers = same_for_all(config, "layers_per_block", 2, 16)
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
        heads=per_level(config, heads, 8, levels, 256),
        cross_dim=same_for_all(config, "cross_attention_dim", 1280, 16384),
        linear_projection=flag(config, "use_linear_projection", False),
        groups=integer(config, "norm_num_groups", 32, 1, 1024),
        pooled=pooled,
        sizes=sizes,
        size_width=size_width,
        scale_width=_scale_width(config),
    )


def _sizes(config: Config, pooled: int) -> tuple[int, int]:
    """The width of each size embedding of SDXL, and how many there are."""
    if config.get("addition_embed_type") is None:
        return 256, 0
    choice(config, "addition_embed_type", "", {"text_time": ""})
    width = integer(config, "addition_time_embed_dim", 256, 2, 4096)
    added = integer(config, "projection_class_embeddings_input_dim", 2816, 1, 65536)
    return width, (added - pooled) // width


def _scale_width(config: Config) -> int:
    """The width of an LCM's embedding of the guidance scale; 0 for other networks."""
    lcm = config.get("time_cond_proj_dim") is not None
    return integer(config, "time_cond_proj_dim", 256, 4, 4096) if lcm else 0


def _middle(config: Config) -> str:
    """The kind of middle block."""
    kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    return choice({"mid_block_type": str(kind)}, "mid_block_type", "", MIDDLES)


def _depths(config: Config, key: str, attention: tuple[bool, ...], count: int) -> tuple[Depth, ...]:
    """Transformer depths by level: one number, or one for each of `count` transformers."""
    value = config.get(key, 1)
    values = list(value) if isinstance(value, list | tuple) else [value] * len(attention)
    if len(values) != len(attention):
        raise UnknownLayout(f"{key} has {len(values)} entries for {len(attention)} levels")
    depths: list[Depth] = []
    for item in values:
        each = item if isinstance(item, list | tuple) else [item] * count
        if len(each) != count:
            raise UnknownLayout(f"{key} has {shown(item)} for {count} transformers of a level")
        level = tuple(integer({key: n}, key, 0, 0, 32) for n in each)
        depths.append(level[0] if len(set(level)) == 1 else level)
    return normalise_depths(depths, attention)


def _up_depths(config: Config, attention: tuple[bool, ...], count: int) -> tuple[Depth, ...] | None:
    """Depths of the up blocks, which diffusers lists from the last level on; None if equal."""
    key = "reverse_transformer_layers_per_block"
    value = config.get(key)
    if value is None:
        return None
    value = value[::-1] if isinstance(value, list | tuple) else value
    up = _depths({key: value}, key, attention, count)
    return None if up == _depths(config, key[8:], attention, count - 1) else up


def vae_config(config: Config) -> VAEConfig:
    """A VAE's config from diffusers'. Raises UnknownLayout, BadFile."""
    check_class(config, "vae", ("AutoencoderKL", FLUX2_VAE_CLASS))
    check_fixed(config, "vae", VAE_FIXED)
    channels = int_list(config, "block_out_channels", (64,))
    for key, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if len(block_kinds(config, f"{key}_block_types", (kind, kind), (True,))) != len(channels):
            raise UnknownLayout(f"vae: not one {key}_block_type for each of block_out_channels")
    quant = flag(config, "use_quant_conv", True)
    if quant != flag(config, "use_post_quant_conv", True):
        raise UnknownLayout("vae: use_quant_conv and use_post_quant_conv differ")
    pixels = integer(config, "in_channels", 3, 1, 16)
    if pixels != 3 or integer(config, "out_channels", 3, 1, 16) != 3:
        raise UnknownLayout("vae: pictures have 3 channels; in_channels or out_channels differ")
    scaling = number(config, "scaling_factor", 0.18215)
    if not SCALING_MIN <= scaling <= SCALING_MAX:  # latents are divided by it, after the last step
        raise BadFile(
            f"vae: scaling_factor is {scaling:g}; it must be in {SCALING_MIN:g} … {SCALING_MAX:g}"
        )
    vae = VAEConfig(
        in_channels=pixels,
        latent_channels=integer(config, "latent_channels", 4, 1, 64),
        channels=channels,
        layers=integer(config, "layers_per_block", 1, 1, 16),
        groups=integer(config, "norm_num_groups", 32, 1, 1024),
        mid_attention=flag(config, "mid_block_add_attention", True),
        quant_conv=quant,
        scaling=scaling,
        shift=0.0 if config.get("shift_factor") is None else number(config, "shift_factor", 0.0),
    )
    return _flux2_vae(config, vae) if config.get("_class_name") == FLUX2_VAE_CLASS else vae


def _flux2_vae(config: Config, vae: VAEConfig) -> VAEConfig:
    """The config of FLUX.2's VAE, with patches and a batch norm. Raises UnknownLayout, BadFile."""
    if list(int_list(config, "patch_size", (2, 2))) != [2, 2]:
        raise UnknownLayout(
            f"vae: patch_size is {shown(config['patch_size'])}; only [2, 2] is supported"
        )
    decoder = vae.channels
    if config.get("decoder_block_out_channels") is not None:
        decoder = int_list(config, "decoder_block_out_channels", vae.channels)
    if len(decoder) != len(vae.channels):
        raise UnknownLayout("vae: the decoder has not as many levels as the encoder")
    eps = number(config, "batch_norm_eps", FLUX2_VAE.norm_eps)
    if not 0 < eps < 1:
        raise BadFile(f"vae: batch_norm_eps is {eps:g}; it must be between 0 and 1")
    return replace(
        vae,
        latent_channels=integer(config, "latent_channels", 32, 1, 64) * FLUX2_VAE.patch**2,
        scaling=1.0,
        patch=FLUX2_VAE.patch,
        norm_eps=eps,
        decoder_channels=None if decoder == vae.channels else decoder,
    )


def text_config(config: Config, penultimate: bool, projected: bool) -> TextConfig:
    """A CLIP text model's config from transformers'. Raises UnknownLayout, BadFile."""
    if config.get("model_type", "clip_text_model") not in ("clip_text_model", "clip"):
        raise UnknownLayout(f"text_encoder: {shown(config['model_type'])} is not a CLIP text model")
    check_fixed(config, "text_encoder", TEXT_FIXED)
    act = config.get("hidden_act", "quick_gelu")
    if act not in ("quick_gelu", "gelu"):
        raise UnknownLayout(f"text_encoder: hidden_act is {shown(act)}; allowed: quick_gelu, gelu")
    width = integer(config, "hidden_size", 512, 1, 16384)
    heads = integer(config, "num_attention_heads", 8, 1, 256)
    if width % heads:
        raise UnknownLayout(f"text_encoder: hidden_size {width} is no multiple of {heads} heads")
    return TextConfig(
        vocab=integer(config, "vocab_size", 49408, 3, 2**20),
        width=width,
        layers=integer(config, "num_hidden_layers", 12, 1, 128),
        heads=heads,
        mlp=integer(config, "intermediate_size", 2048, 1, 65536),
        length=integer(config, "max_position_embeddings", 77, 3, 4096),
        act=str(act),
        penultimate=penultimate,
        projection=integer(config, "projection_dim", 512, 1, 16384) if projected else 0,
    )


def _noise(config: Config) -> tuple[ProcessConfig, str]:
    """The noising process and prediction type of a scheduler's config."""
    n = integer(config, "num_train_timesteps", 1000, 2, 100_000)
    if "FlowMatch" in str(config.get("_class_name")):
        check_fixed(config, "scheduler", FLOW_FIXED)
        return ProcessConfig("flow", n=n), "flow"
    check_fixed(config, "scheduler", NOISE_FIXED)
    table = choice(config, "beta_schedule", "linear", BETA_NAMES)
    kind = choice(config, "prediction_type", "epsilon", PREDICTION_NAMES)
    start, end = number(config, "beta_start", 0.0001), number(config, "beta_end", 0.02)
    if not 0.0 < start <= end < 1.0:
        raise BadFile(f"scheduler: betas from {start} to {end}; they must rise within 0 … 1")
    zero_snr = flag(config, "rescale_betas_zero_snr", False)
    return ProcessConfig("diffusion", table, n, start, end, zero_snr), kind


def _defaults(process: ProcessConfig, side: int, xl: bool) -> Defaults:
    """The defaults of a process, a side in pixels and a size of model."""
    sampler = Sampler.EULER if process.kind == "flow" else Sampler.DPMPP_2M
    cfg = (SDXL if xl else SD15).defaults.cfg
    # Drawn larger than it knows, a small model loses the whole where much is drawn anew.
    schedule = default_schedule(process)
    defaults = Defaults(side, side, 30, cfg, sampler, schedule)
    return replace(defaults, hires_strength=SMALL_STRENGTH) if side <= SMALL else defaults
