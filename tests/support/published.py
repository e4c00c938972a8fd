"""The complete key lists of published models: names and shapes, kept in tests/support/keys.

`python -m tests.support.make_published` makes them anew on the meta device: the networks are
diffusers' and transformers' own, of the configs that were published with the models; the
original layout's names are checked by diffusers' own converters before they are written.

A line holds how many parts of the name the line before has too, the rest, and the shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

KEYS = Path(__file__).with_name("keys")
Shapes = dict[str, tuple[int, ...]]
Config = dict[str, object]


def _blocks(kind: str, attention: tuple[bool, ...]) -> list[str]:
    plain = "DownBlock2D" if kind == "down" else "UpBlock2D"
    return [f"CrossAttn{plain}" if has else plain for has in attention]


def _unet(attention: tuple[bool, ...], **more: object) -> Config:
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": _blocks("down", attention),
        "up_block_types": _blocks("up", attention[::-1]),
        **more,
    }


_FOUR = (True, True, True, False)
_SD1: Config = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
_SDXL: Config = {
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
_XL = (False, True, True)
UNETS: dict[str, Config] = {
    "sd15": _unet(_FOUR, **_SD1),
    "sd21": _unet(
        _FOUR,
        **_SD1
        | {
            "attention_head_dim": [5, 10, 20, 20],
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "sample_size": 96,
        },
    ),
    "sdxl": _unet(_XL, **_SDXL),
    "refiner": _unet(
        (False, True, True, False),
        **_SDXL
        | {
            "block_out_channels": [384, 768, 1536, 1536],
            "cross_attention_dim": 1280,
            "attention_head_dim": [6, 12, 24, 24],
            "transformer_layers_per_block": 4,
            "projection_class_embeddings_input_dim": 2560,
        },
    ),
    "ssd-1b": _unet(
        _XL,
        **_SDXL
        | {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [2, 2], [4, 4]],
            "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
        },
    ),
    "vega": _unet(
        _XL,
        **_SDXL
        | {
            "mid_block_type": "UNetMidBlock2D",
            "transformer_layers_per_block": [1, [1, 1], [2, 2]],
            "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
        },
    ),
    "bk-sdm-base": _unet(_FOUR, **_SD1 | {"layers_per_block": 1}),
    "bk-sdm-small": _unet(_FOUR, **_SD1 | {"layers_per_block": 1, "mid_block_type": None}),
    "bk-sdm-tiny": _unet(
        (True, True, True),
        **_SD1
        | {
            "layers_per_block": 1,
            "mid_block_type": None,
            "block_out_channels": [320, 640, 1280],
        },
    ),
    "sd15-inpainting": _unet(_FOUR, **_SD1) | {"in_channels": 9},
    "instruct-pix2pix": _unet(_FOUR, **_SD1) | {"in_channels": 8},
    "lcm-dreamshaper": _unet(_FOUR, **_SD1 | {"time_cond_proj_dim": 256}),
}
VAE: Config = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
}


def _clip(width: int, layers: int, act: str, projection: int) -> Config:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": act,
        "projection_dim": projection,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    }


# "clip-g" is the one of a model that also reads the projected text as a whole.
TEXTS = {
    "clip-l": _clip(768, 12, "quick_gelu", 768),
    "clip-h": _clip(1024, 23, "gelu", 512),
    "clip-g": _clip(1280, 32, "gelu", 1280),
}
SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}


@dataclass(frozen=True)
class Published:
    """A model's folder: its text encoders by component."""

    texts: Mapping[str, str]

    @property
    def prefixes(self) -> list[str]:
        """Where the original layout has the text encoders."""
        if len(self.texts) == 2:
            return ["conditioner.embedders.0.transformer", "conditioner.embedders.1.model"]
        [text] = self.texts.values()
        return {
            "clip-l": ["cond_stage_model.transformer"],
            "clip-h": ["cond_stage_model.model"],
            "clip-g": ["conditioner.embedders.0.model"],
        }[text]


_XL_TEXTS = {"text_encoder": "clip-l", "text_encoder_2": "clip-g"}
MODELS = {
    name: Published(
        {"text_encoder_2": "clip-g"}
        if name == "refiner"
        else _XL_TEXTS
        if "addition_embed_type" in config
        else {"text_encoder": "clip-h" if name == "sd21" else "clip-l"}
    )
    for name, config in UNETS.items()
}


@cache
def shapes(name: str) -> Shapes:
    """A list from tests/support/keys."""
    found: Shapes = {}
    parts: list[str] = []
    for line in (KEYS / f"{name}.txt").read_text(encoding="ascii").splitlines():
        shared, rest, *sides = line.split()
        parts = [*parts[: int(shared)], *rest.split(".")]
        found[".".join(parts)] = tuple(map(int, sides))
    return found


def write(name: str, found: Mapping[str, tuple[int, ...]]) -> None:
    """A list into tests/support/keys."""
    lines, before = [], list[str]()
    for key in sorted(found):
        parts = key.split(".")
        shared = 0
        while shared < min(len(parts) - 1, len(before)) and parts[shared] == before[shared]:
            shared += 1
        lines.append(" ".join(map(str, [shared, ".".join(parts[shared:]), *found[key]])))
        before = parts
    (KEYS / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="ascii")


def folder_keys(model: str) -> dict[str, Shapes]:
    """By component, what a model's diffusers folder holds."""
    texts = {component: shapes(f"{text}") for component, text in MODELS[model].texts.items()}
    return {"unet": shapes(f"unet-{model}"), "vae": shapes("vae"), **texts}


def file_keys(model: str) -> Shapes:
    """What a model's single file holds."""
    published = MODELS[model]
    found = dict(shapes("original-leftovers"))
    rows = [("model.diffusion_model", f"original-unet-{model}")]
    rows += [("first_stage_model", "original-vae")]
    texts = zip(published.prefixes, published.texts.values(), strict=True)
    rows += [(prefix, f"original-{text}") for prefix, text in texts]
    for prefix, name in rows:
        found |= {f"{prefix}.{key}": shape for key, shape in shapes(name).items()}
    return found


def configs(model: str) -> dict[str, Config]:
    """By component, the configs of a model's folder."""
    texts = {component: TEXTS[text] for component, text in MODELS[model].texts.items()}
    return {"unet": UNETS[model], "vae": VAE, "scheduler": SCHEDULER, **texts}
