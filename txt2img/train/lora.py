"""LoRA of a U-Net: low-rank changes of its transformers (Hu et al. 2021), in kohya's files."""

import json
from collections import Counter
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.configs import UNetConfig
from txt2img.models.layers import Conv2d, Linear
from txt2img.train.adapter_stage import AdapterStage, cond_of
from txt2img.train.config import TrainConfig
from txt2img.train.distill import new_lora_factors, parameter_key
from txt2img.weights.formats.safetensors_file import write
from txt2img.weights.layouts import key_maps

PART = "attentions"  # of a layer's name: the transformers, as kohya's networks.lora takes them
TAGS = 500  # in the metadata, the most frequent ones
BASES = {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}  # kohya's names, by the text's width


class LoraFactors(nn.Module):
    """A layer's change: scale · up · down, added to its output."""

    def __init__(self, layer: Linear | Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        down, up = new_lora_factors(layer.weight, rank)
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.alpha = alpha * len(down) / rank  # a layer narrower than the rank keeps the scale
        self.scale = self.alpha / len(down)

    def apply_to(self, layer: Linear | Conv2d, x: Tensor) -> Tensor:
        """The layer's output with the change."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, Conv2d):
            low = functional.conv2d(x, down, None, layer.stride, layer.padding)
            return nn.Conv2d.forward(layer, x) + self.scale * functional.conv2d(low, up)
        low = functional.linear(x, down)
        return nn.Linear.forward(layer, x) + self.scale * functional.linear(low, up)


class LoraObjective(nn.Module):
    """The loss of a LoRA; the network that it changes is frozen."""

    def __init__(
        self,
        layers: dict[str, Linear | Conv2d],
        rank: int,
        alpha: float,
        loss: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.loss = loss
        self.factors = nn.ModuleDict(
            {parameter_key(name): LoraFactors(layer, rank, alpha) for name, layer in layers.items()}
        )
        for name, layer in layers.items():
            layer.optimized = self.of(name).apply_to

    def of(self, name: str) -> LoraFactors:
        """The change of a layer."""
        factors = self.factors[parameter_key(name)]
        assert isinstance(factors, LoraFactors)
        return factors

    def forward(
        self,
        x0: Tensor,
        noise: Tensor,
        time: Tensor,
        alpha: Tensor,
        sigma: Tensor,
        *texts: Tensor,
    ) -> Tensor:
        """A batch as AdapterStage.batch gives it, texts as its text_inputs → a scalar."""
        return self.loss(cond_of(*texts), x0, noise, time, alpha, sigma)


class LoraStage(AdapterStage):
    """Trains a LoRA."""

    name = "lora"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        super().__init__(config, accelerator, config.lora_run)
        self.network.to(accelerator.device)
        self.layers = adapted_layers(self.network)
        alpha = config.lora_rank if config.lora_alpha is None else config.lora_alpha
        self.objective = LoraObjective(self.layers, config.lora_rank, alpha, self.loss)
        self.learner = self.objective

    def export(self) -> None:
        """Write the LoRA with kohya's names and metadata, in half precision."""
        config, tensors = self.config, {}
        for name, key in file_names(self.network, self.layers).items():
            factors = self.objective.of(name)
            tensors[f"{key}.lora_down.weight"] = factors.down.half()
            tensors[f"{key}.lora_up.weight"] = factors.up.half()
            tensors[f"{key}.alpha"] = torch.tensor(factors.alpha).half()
        captions = [text for row in self.pictures.rows for text in row.captions]
        tags = Counter(tag.strip() for text in captions for tag in text.split(","))
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": config.lora_rank,
            "ss_network_alpha": config.lora_alpha or config.lora_rank,
            "ss_base_model_version": BASES.get(self.family.network.cross_dim, self.model.name),
            "ss_resolution": f"({config.size}, {config.size})",
            "ss_num_train_images": len(self.pictures.rows),
            "ss_tag_frequency": json.dumps({"data": dict(tags.most_common(TAGS))}),
        }
        assert config.adapter is not None
        write(tensors, config.adapter, {key: str(value) for key, value in metadata.items()})


def adapted_layers(network: nn.Module) -> dict[str, Linear | Conv2d]:
    """The layers that a LoRA changes, by name: those of the transformers."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, Linear | Conv2d) and PART in name
    }


def file_names(network: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Each layer's name in kohya's files: diffusers' for most models, the original for SDXL."""
    config = network.config
    assert isinstance(config, UNetConfig)
    back = key_maps.inverted(key_maps.unet_from_ldm(config)) if config.pooled else {}
    names = {name: (key_maps.rename(name, back) or name) for name in layers}
    return {name: f"lora_unet_{full.replace('.', '_')}" for name, full in names.items()}
