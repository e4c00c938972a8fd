"""A model as a diffusers folder: its tensors, configs and tokenizers."""

import json
from collections.abc import Mapping, Sequence

from txt2img.errors import UnknownLayout
from txt2img.models.configs import (
    Flux2Config,
    FluxConfig,
    NetworkConfig,
    Qwen3TextConfig,
    SD3Config,
    T5TextConfig,
    TextConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
    ZImageConfig,
)
from txt2img.models.control_configs import ControlNetConfig
from txt2img.models.text_tokenizer import TextTokenizer
from txt2img.models.tokenizer import BOS, EOS, PromptTokenizer, Tokenizer
from txt2img.weights.checkpoint import Checkpoint
from txt2img.weights.convert.original import Parts, language_model
from txt2img.weights.convert.target import Part
from txt2img.weights.families import Family, ProcessConfig
from txt2img.weights.layouts.components import STEM, Component, published_name
from txt2img.weights.layouts.diffusers_config import BETA_NAMES, MIDDLES, PREDICTION_NAMES

Json = dict[str, object]
# diffusers' and transformers' classes, by what they hold.
NETWORKS: dict[type, str] = {
    UNetConfig: "UNet2DConditionModel",
    FluxConfig: "FluxTransformer2DModel",
    Flux2Config: "Flux2Transformer2DModel",
    SD3Config: "SD3Transformer2DModel",
    ZImageConfig: "ZImageTransformer2DModel",
}
PIPELINES: dict[type, dict[int, str]] = {  # by the channels that they take besides the latent
    FluxConfig: {0: "FluxPipeline", 80: "FluxFillPipeline", 16: "FluxControlPipeline"},
    Flux2Config: {0: "Flux2KleinPipeline"},
    SD3Config: {0: "StableDiffusion3Pipeline"},
    ZImageConfig: {0: "ZImagePipeline"},
}
UNET_PURPOSES = {0: "", 5: "Inpaint", 4: "InstructPix2Pix"}
# The part of Qwen3's chat template that a prompt goes through, whose end diffusers' pipelines need.
CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>' + '\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- "
    "'<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false "
    "%}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


def folder_of(checkpoint: Checkpoint) -> tuple[dict[str, Parts], dict[str, bytes]]:
    """The weight files of a model's folder and its other files, by place. Raises UnknownLayout."""
    family = checkpoint.family
    network = family.network.component
    weights: dict[str, Parts] = {}
    others: dict[str, Json] = {
        f"{network}/config.json": network_config(family),
        "scheduler/scheduler_config.json": scheduler_config(family.process, family.prediction),
    }
    index: Json = {"_class_name": pipeline_class(family), network: _loads(family.network)}
    index["scheduler"] = ["diffusers", others["scheduler/scheduler_config.json"]["_class_name"]]
    if "vae" in checkpoint.components:
        others["vae/config.json"] = vae_config(family.vae)
        index["vae"] = ["diffusers", others["vae/config.json"]["_class_name"]]
    for name in {network, "vae"} & checkpoint.components.keys():
        weights[f"{name}/{STEM}.safetensors"] = _parts(checkpoint.components[name])
    files: dict[str, bytes] = {}
    texts = zip(family.texts, checkpoint.tokenizers.items(), strict=True)
    for config, (name, tokenizer) in texts:
        part = checkpoint.components[name]
        weights[f"{name}/model.safetensors"] = _text_parts(config, part)
        others[f"{name}/config.json"] = (config_json := text_config(config))
        index[name] = ["transformers", _first(config_json["architectures"])]
        home = name.replace("text_encoder", "tokenizer")
        files |= {f"{home}/{file}": text for file, text in tokenizer_files(tokenizer).items()}
        index[home] = ["transformers", _tokenizer_class(tokenizer)]
    if isinstance(family.network, UNetConfig):
        index |= _unet_index(family)
    others["model_index.json"] = index
    return weights, files | {place: _text(content) for place, content in others.items()}


def _unet_index(family: Family) -> Json:
    """What a pipeline of a U-Net asks of model_index.json besides."""
    if family.network.sizes:
        return {"force_zeros_for_empty_prompt": family.zero_empty_negative}
    nothing = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    return {**nothing, "requires_safety_checker": False}


def pipeline_class(family: Family) -> str:
    """diffusers' pipeline of a family. Raises UnknownLayout."""
    network = family.network
    if isinstance(network, UNetConfig):
        purpose = UNET_PURPOSES.get(network.extra_channels)
        size = "XL" if network.sizes else ""
        found = None if purpose is None else f"StableDiffusion{size}{purpose}Pipeline"
    else:
        found = PIPELINES[type(network)].get(network.extra_channels)
    if found is None:
        raise UnknownLayout(f"diffusers has no pipeline of {family.name} that could be written")
    return found


def network_config(family: Family) -> Json:
    """The config.json of a family's network."""
    network, side = family.network, family.defaults.width // family.vae.factor
    if isinstance(network, UNetConfig):
        fields = _unet(network, side)
    elif isinstance(network, FluxConfig | Flux2Config):
        fields = _flux(network)
    elif isinstance(network, SD3Config):
        fields = _sd3(network, side)
    else:
        assert isinstance(network, ZImageConfig)
        fields = _z_image(network)
    return {"_class_name": NETWORKS[type(network)], **fields}


def _flux(network: FluxConfig | Flux2Config) -> Json:
    """FLUX's config; FLUX.1's counts the features of patches."""
    patch = 4 if isinstance(network, FluxConfig) else 1
    fields: Json = {
        "patch_size": 1,
        "in_channels": patch * network.in_channels,
        "out_channels": patch * network.out_channels,
        "num_layers": network.double_blocks,
        "num_single_layers": network.single_blocks,
        "attention_head_dim": network.head_dim,
        "num_attention_heads": network.heads,
        "joint_attention_dim": network.cross_dim,
        "guidance_embeds": network.embeds_guidance,
        "axes_dims_rope": network.axes,
    }
    return fields | ({"pooled_projection_dim": network.pooled} if patch > 1 else {})


def _sd3(network: SD3Config, side: int) -> Json:
    return {
        "sample_size": side,
        "patch_size": 2,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "num_layers": network.layers,
        "attention_head_dim": network.head_dim,
        "num_attention_heads": network.heads,
        "joint_attention_dim": network.cross_dim,
        "caption_projection_dim": network.width,
        "pooled_projection_dim": network.pooled,
        "pos_embed_max_size": network.positions,
        "dual_attention_layers": network.dual_layers,
        "qk_norm": "rms_norm" if network.qk_norm else None,
    }


def _z_image(network: ZImageConfig) -> Json:
    return {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": network.in_channels,
        "dim": network.width,
        "n_layers": network.layers,
        "n_refiner_layers": network.refiner_layers,
        "n_heads": network.heads,
        "n_kv_heads": network.heads,
        "cap_feat_dim": network.cross_dim,
        "axes_dims": network.axes,
    }


def _unet(network: UNetConfig, side: int) -> Json:
    """A U-Net's config; diffusers lists depths on the way up from the last level on."""
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in network.attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in network.attention[::-1]]
    middle = next(name for name, kind in MIDDLES.items() if kind == network.middle)
    fields: Json = {
        "sample_size": side,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "block_out_channels": network.channels,
        "layers_per_block": network.layers,
        "down_block_types": down,
        "up_block_types": up,
        "mid_block_type": None if middle == "None" else middle,
        "attention_head_dim": network.heads,
        "cross_attention_dim": network.cross_dim,
        "transformer_layers_per_block": network.depth,
        "use_linear_projection": network.linear_projection,
        "norm_num_groups": network.groups,
    }
    if network.up_depth is not None:
        fields["reverse_transformer_layers_per_block"] = network.up_depth[::-1]
    if network.sizes:
        fields |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": network.size_width,
            "projection_class_embeddings_input_dim": network.pooled
            + network.sizes * network.size_width,
        }
    if network.scale_width:
        fields["time_cond_proj_dim"] = network.scale_width
    return fields


def controlnet_config(config: ControlNetConfig) -> Json:
    """The config.json of a ControlNet."""
    unused = {"sample_size", "out_channels", "up_block_types", "time_cond_proj_dim"}
    unused |= {"reverse_transformer_layers_per_block"}
    fields = {name: value for name, value in _unet(config.unet, 0).items() if name not in unused}
    return {
        "_class_name": "ControlNetModel",
        **fields,
        "conditioning_channels": config.hint_channels,
        "conditioning_embedding_out_channels": config.hint,
        "controlnet_conditioning_channel_order": "bgr" if config.is_bgr else "rgb",
        "global_pool_conditions": config.global_pool,
    }


def vae_config(vae: VAEConfig) -> Json:
    """The config.json of a VAE."""
    levels = len(vae.channels)
    fields: Json = {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": vae.map_channels,
        "block_out_channels": vae.channels,
        "layers_per_block": vae.layers,
        "norm_num_groups": vae.groups,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": vae.mid_attention,
        "use_quant_conv": vae.quant_conv,
        "use_post_quant_conv": vae.quant_conv,
    }
    if vae.patch == 1:
        return fields | {"scaling_factor": vae.scaling, "shift_factor": vae.shift or None}
    fields |= {"_class_name": "AutoencoderKLFlux2", "patch_size": [vae.patch] * 2}
    fields["batch_norm_eps"] = vae.norm_eps
    if vae.decoder_channels is not None:
        fields["decoder_block_out_channels"] = vae.decoder_channels
    return fields


def text_config(text: TextEncoderConfig) -> Json:
    """The config.json of a text encoder."""
    if isinstance(text, T5TextConfig):
        return _t5(text)
    if isinstance(text, Qwen3TextConfig):
        return _qwen3(text)
    assert isinstance(text, TextConfig)
    kind = "CLIPTextModelWithProjection" if text.projection else "CLIPTextModel"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": text.vocab,
        "hidden_size": text.width,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.length,
        "hidden_act": text.act,
        "layer_norm_eps": 1e-5,
        "projection_dim": text.projection or text.width,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def _t5(text: T5TextConfig) -> Json:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": text.vocab,
        "d_model": text.width,
        "d_kv": text.head_width,
        "d_ff": text.mlp,
        "num_layers": text.layers,
        "num_heads": text.heads,
        "relative_attention_num_buckets": text.buckets,
        "relative_attention_max_distance": text.max_distance,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def _qwen3(text: Qwen3TextConfig) -> Json:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": text.vocab,
        "hidden_size": text.hidden,
        "intermediate_size": text.mlp,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_width,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": text.theta,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }


def scheduler_config(process: ProcessConfig, prediction: str) -> Json:
    """The config of a scheduler that has a model's noise."""
    if process.kind == "flow":
        fields: Json = {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": process.n,
        }
        if isinstance(process.shift, str):
            shifts = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}
            return fields | {"use_dynamic_shifting": True, "max_image_seq_len": 4096, **shifts}
        return fields | {"shift": 1.0 if process.shift is None else process.shift}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": process.n,
        "beta_schedule": _key(BETA_NAMES, process.betas),
        "beta_start": process.start,
        "beta_end": process.end,
        "prediction_type": _key(PREDICTION_NAMES, prediction),
        "rescale_betas_zero_snr": process.zero_snr,
        "timestep_spacing": "trailing" if process.zero_snr else "leading",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }


def tokenizer_files(tokenizer: PromptTokenizer) -> dict[str, bytes]:
    """The files of a tokenizer's folder."""
    kind = _tokenizer_class(tokenizer)
    if isinstance(tokenizer, TextTokenizer):
        names = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHAT}
        special_tokens: Json = {**names} if tokenizer.reads_chat else {"pad_token": "<pad>"}
        special_tokens |= (
            {} if tokenizer.reads_chat else {"eos_token": "</s>", "unk_token": "<unk>"}
        )
        config: Json = {
            "tokenizer_class": kind,
            "model_max_length": tokenizer.length,
            **special_tokens,
        }
        return {
            "tokenizer.json": tokenizer.serialized().encode(),
            "tokenizer_config.json": _text(config),
        }
    assert isinstance(tokenizer, Tokenizer)
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in tokenizer.merges)]
    special: Json = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS}
    special["pad_token"] = tokenizer.pad
    return {
        "vocab.json": json.dumps(tokenizer.vocab, ensure_ascii=False).encode(),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        "special_tokens_map.json": _text(special),
        "tokenizer_config.json": _text(
            {"tokenizer_class": kind, "model_max_length": tokenizer.length, **special}
        ),
    }


def _tokenizer_class(tokenizer: PromptTokenizer) -> str:
    if isinstance(tokenizer, TextTokenizer):
        return "Qwen2TokenizerFast" if tokenizer.reads_chat else "T5TokenizerFast"
    return "CLIPTokenizer"


def _text_parts(config: TextEncoderConfig, part: Component) -> Parts:
    """A text encoder's tensors by transformers' names."""
    if not isinstance(config, TextConfig):
        return {name: Part(name, (ref,)) for name, ref in language_model(part).items()}
    names = {name: published_name(name) for name in part.tensors}
    full = {
        n: o if o.startswith("text_projection") else f"text_model.{o}" for n, o in names.items()
    }
    return {full[name]: Part(full[name], (ref,)) for name, ref in part.tensors.items()}


def _parts(part: Component) -> Parts:
    rows = part.tensors.items()
    return {name: Part(name, (ref,)) for name, ref in rows if not name.startswith("alpha.")}


def _loads(network: NetworkConfig) -> Sequence[str]:
    return ["diffusers", NETWORKS[type(network)]]


def _first(values: object) -> object:
    assert isinstance(values, list)
    return values[0]


def _key(table: Mapping[str, str], value: str) -> str:
    return next(key for key, own in table.items() if own == value)


def _text(content: Json) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
