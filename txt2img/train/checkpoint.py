"""Checkpoints: the model as a diffusers folder, and the state that a run resumes from."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from txt2img.errors import MissingWeights
from txt2img.models.clip import TextEncoder
from txt2img.models.tokenizer import BOS, EOS, Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.train.config import BETAS, TrainConfig
from txt2img.train.ema import EMA
from txt2img.train.optimizers import moments_of, restore_moments
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats import tensors as reading
from txt2img.weights.formats.safetensors_file import write
from txt2img.weights.layouts.components import ALPHA, ALPHA_FILE
from txt2img.weights.layouts.diffusers_config import BETA_NAMES

TIMES = 1000
TEXT_FILE = "model.safetensors"
NETWORK_FILE = "diffusion_pytorch_model.safetensors"
LORA_FILE = "few-steps.safetensors"
SAVED_DTYPE = torch.float16  # loads into any other dtype


def save_state(
    path: Path,
    step: int,
    spent: float,
    module: nn.Module,
    mean: EMA,
    optimizers: Sequence[torch.optim.Optimizer],
    source: str = "",
) -> None:
    """Save everything that a stage resumes from after `step` steps in `spent` seconds.

    `source` identifies the networks of earlier stages that it is trained from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {
        f"{kind}.{name}": moment
        for name, moments in moments_of(module, optimizers).items()
        for kind, moment in moments.items()
    }
    for name, parameter in module.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"mean.{name}"] = mean.mean[name]
    write(tensors, path, {"step": str(step), "seconds": str(spent), "source": source})


def read_progress(path: Path, source: str = "") -> tuple[int, float]:
    """Steps and seconds of a saved state; 0 and 0 without a file, or for another source."""
    if not path.exists():
        return 0, 0.0
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if metadata.get("source", "") != source:
        return 0, 0.0
    return int(metadata["step"]), float(metadata.get("seconds", 0.0))


@torch.no_grad()
def load_state(
    path: Path,
    module: nn.Module,
    mean: EMA,
    optimizers: Sequence[torch.optim.Optimizer],
    source: str = "",
) -> tuple[int, float]:
    """Restore a saved state; returns its steps and seconds, 0 and 0 if there is none to resume."""
    step, spent = read_progress(path, source)
    if not step:
        return step, spent
    moments: dict[str, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for name, parameter in module.named_parameters():
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            mean.mean[name].copy_(file.get_tensor(f"mean.{name}"))
        for key in file.keys():  # noqa: SIM118, it is no dict
            kind, _, name = key.partition(".")
            if kind not in ("weight", "mean"):
                moments.setdefault(name, {})[kind] = file.get_tensor(key)
    restore_moments(module, optimizers, step, moments)
    return step, spent


def load_weights_from(module: nn.Module, path: Path) -> None:
    """Load a module's weights from a file; without the file, leave it as it is.

    Raises MissingWeights if names or shapes differ.
    """
    if not path.exists():
        return
    expected = module.state_dict()
    tensors, files = safetensors_file.header(path).tensors, reading.Files()
    state = {
        name.removeprefix("text_model."): reading.read_stored(name, stored, files).float()
        for name, stored in tensors.items()
    }
    shapes = {name: value.shape for name, value in expected.items()}
    if {name: value.shape for name, value in state.items()} != shapes:
        raise MissingWeights(
            f"{path.parent.name}/{path.name} is of another shape than the configuration says; "
            "train with the one it was made with, or into another folder"
        )
    module.load_state_dict(state)


def save_weights(
    state: dict[str, Tensor], path: Path, metadata: dict[str, object] | None = None
) -> None:
    """Save weights as float16 safetensors, with `metadata` in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = {
        name: value.detach().to("cpu", SAVED_DTYPE).contiguous() for name, value in state.items()
    }
    write(small, path, {"format": "pt"} | ({"txt2img": json.dumps(metadata)} if metadata else {}))


def save_json(path: Path, content: dict[str, object]) -> None:
    """Write indented JSON; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_vae(folder: Path, vae: VAE, size: int) -> None:
    """Write `folder`/vae in diffusers' AutoencoderKL layout."""
    config, levels = vae.config, len(vae.config.channels)
    content: dict[str, object] = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "norm_num_groups": config.groups,
        "mid_block_add_attention": config.mid_attention,
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.quant_conv,
        "scaling_factor": config.scaling,
        "shift_factor": config.shift or None,
        "sample_size": size,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    save_json(folder / "vae" / "config.json", content)
    state = vae.state_dict()
    opaque_state = {name: value for name, value in state.items() if not name.startswith(ALPHA)}
    save_weights(opaque_state, folder / "vae" / NETWORK_FILE)
    if len(opaque_state) < len(state):
        save_alpha_head(folder, vae)


def save_alpha_head(folder: Path, vae: VAE) -> None:
    """Write `folder`/vae/alpha.safetensors: beside the VAE's own file, which others read whole."""
    state = {name: value for name, value in vae.state_dict().items() if name.startswith(ALPHA)}
    save_weights(state, folder / "vae" / ALPHA_FILE)


def save_unet(folder: Path, unet: UNet, cells: int) -> None:
    """Write `folder`/unet in diffusers' UNet2DConditionModel layout for latents `cells` wide."""
    config = unet.config
    down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention]
    content: dict[str, object] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "sample_size": cells,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.layers,
        "down_block_types": down,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "transformer_layers_per_block": list(config.depth),
        # diffusers' name for the number of heads in these models
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.cross_dim,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.groups,
        "norm_eps": 1e-05,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "center_input_sample": False,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
    }
    save_json(folder / "unet" / "config.json", content)
    save_weights(unet.state_dict(), folder / "unet" / NETWORK_FILE)


def save_text(folder: Path, text: TextEncoder) -> None:
    """Write `folder`/text_encoder and `folder`/tokenizer in transformers' layout."""
    config, tokenizer = text.config, text.tokenizer
    content: dict[str, object] = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "max_position_embeddings": config.length,
        "hidden_act": config.act,
        "layer_norm_eps": 1e-05,
        "projection_dim": config.width,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    save_json(folder / "text_encoder" / "config.json", content)
    # Published folders have this prefix.
    state = {f"text_model.{name}": value for name, value in text.model.state_dict().items()}
    save_weights(state, folder / "text_encoder" / TEXT_FILE)
    save_tokenizer(folder / "tokenizer", tokenizer)


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Write the four files that transformers' CLIPTokenizer reads."""
    save_json(folder / "vocab.json", dict(tokenizer.vocab))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in tokenizer.merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special: dict[str, object] = {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": EOS,
    }
    save_json(folder / "special_tokens_map.json", special)
    save_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": tokenizer.length,
            "do_lower_case": True,
            "errors": "replace",
        },
    )


def schedule_name(config: TrainConfig) -> str:
    """The schedule that suits the training: trailing begins at pure noise."""
    if config.prediction == "flow":
        return "flow"
    return "trailing" if config.zero_snr else "leading"


def scheduler_config(config: TrainConfig) -> dict[str, object]:
    """The forward process as a diffusers scheduler configuration."""
    if config.prediction == "flow":
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": TIMES,
            "shift": 1.0,
        }
    start, end = BETAS[config.betas]
    names = {ours: theirs for theirs, ours in BETA_NAMES.items()}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": TIMES,
        "beta_schedule": names[config.betas],
        "beta_start": start,
        "beta_end": end,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "prediction_type": "epsilon" if config.prediction == "eps" else "v_prediction",
        "rescale_betas_zero_snr": config.zero_snr,
        "timestep_spacing": schedule_name(config),
        "steps_offset": 1,
    }


def save_index(folder: Path, config: TrainConfig) -> None:
    """Write the scheduler configuration, model_index.json and this program's defaults."""
    process = scheduler_config(config)
    save_json(folder / "scheduler" / "scheduler_config.json", process)
    parts: dict[str, object] = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", process["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    save_json(folder / "model_index.json", parts)
    defaults: dict[str, object] = {
        "width": config.size,
        "height": config.size,
        "steps": config.steps,
        "cfg": config.cfg,
        "sampler": config.sampler,
        "schedule": schedule_name(config),
    }
    save_json(folder / "txt2img.json", defaults)
