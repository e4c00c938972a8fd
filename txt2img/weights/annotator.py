"""Annotators: transformers' models that make maps of pictures, from a folder on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from txt2img.errors import BadFile, BadRequest, MissingWeights, UnknownLayout
from txt2img.models.transformers_library import quietly
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.system.device.device import Device
from txt2img.system.device.memory import oom_as_error
from txt2img.system.files import read_json
from txt2img.system.text import shown
from txt2img.weights.registry.hashes import model_hash

if TYPE_CHECKING:
    from PIL import Image

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# The end of the class's name that a config has, by what the preprocessor needs.
CLASSES = {
    Preprocessor.DEPTH: "ForDepthEstimation",
    Preprocessor.SEGMENT: "ForSemanticSegmentation",
}
METRIC = ("glpn", "zoedepth")  # their depths are metres, larger further away
CLASSES_OF_ADE20K = 150


@dataclass(frozen=True)
class Annotator:
    """A loaded model that makes maps, with the processor of its pictures."""

    name: str
    hash: str  # ten hex digits
    kind: Preprocessor
    network: torch.nn.Module
    processor: Any  # of transformers; its classes share no type

    @property
    def metric(self) -> bool:
        """Whether its depths are distances; others' are their inverses."""
        config = cast(Any, self.network.config)
        kind = getattr(config, "depth_estimation_type", "relative")
        return config.model_type in METRIC or kind == "metric"

    @torch.inference_mode()
    def __call__(self, image: "Image.Image") -> Tensor:
        """Depths or classes (H, W) of an RGB picture's pixels."""
        with quietly(), oom_as_error("the preprocessor's model"):
            # ZoeDepth's processor pads, which its resizing takes off again: by torchvision.
            unpadded = {"do_pad": False} if self.kind is Preprocessor.DEPTH else {}
            inputs = self.processor(images=image, return_tensors="pt", **unpadded)
            pixels = inputs["pixel_values"].to(self.network.device, torch.float32)
            outputs = self.network(pixel_values=pixels)
            size = image.height, image.width
            if self.kind is Preprocessor.SEGMENT:
                found = self.processor.post_process_semantic_segmentation(outputs, [size])[0]
                return cast(Tensor, found).cpu()
            depths = outputs.predicted_depth[:, None]
            return functional.interpolate(depths, size, mode="bicubic")[0, 0].cpu()


def load_annotator(how: Preprocess, folder: Path, device: Device) -> Annotator:
    """Load the model of a preprocessor, in float32. BadFile, BadRequest, MissingWeights.

    Nothing is fetched, pickles are not read, and no code that lies beside a model is run.
    """
    _check_folder(folder, how.name)
    with quietly():
        from transformers import (
            AutoImageProcessor,
            AutoModelForDepthEstimation,
            AutoModelForSemanticSegmentation,
        )
        from transformers.utils import logging

        logging.disable_progress_bar()
        depth = how.name is Preprocessor.DEPTH
        kind = AutoModelForDepthEstimation if depth else AutoModelForSemanticSegmentation
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            network, report = kind.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
            processor = AutoImageProcessor.from_pretrained(folder, **options)
        except MemoryError:
            raise
        except Exception as error:  # transformers' checks of a config raise all kinds
            reason = shown(" ".join(str(error).split()), 120)
            raise BadFile(f"{shown(folder.name)} is not a whole model: {reason}") from error
    if absent := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        raise MissingWeights(f"{shown(folder.name)}: {len(absent)} tensors do not fit, {absent[0]}")
    with oom_as_error("the preprocessor's model"):
        network.to(device.torch_device).eval().requires_grad_(False)
    files = sorted(folder.glob("*.safetensors"))
    return Annotator(folder.resolve().name, model_hash(files), how.name, network, processor)


def _check_folder(folder: Path, kind: Preprocessor) -> None:
    """Raise BadRequest, BadFile, UnknownLayout for what is no folder of such a model."""
    name = shown(folder.name)
    if not folder.is_dir():
        raise BadRequest(f"{kind} takes a folder of transformers with {CONFIG}; {name} is a file")
    config = read_json(folder / CONFIG)
    architectures = config.get("architectures")
    known = [str(one) for one in architectures] if isinstance(architectures, list) else []
    if not any(one.endswith(CLASSES[kind]) for one in known):
        what = shown(known[0]) if known else "no architecture"
        raise UnknownLayout(f"{name} is no model for {kind.model}: its config has {what}")
    labels = config.get("id2label")
    if kind is Preprocessor.SEGMENT and (not isinstance(labels, dict) or len(labels) != 150):
        count = len(labels) if isinstance(labels, dict) else 2
        raise UnknownLayout(
            f"{name} knows {count} classes; ControlNets follow the colours of ADE20K's "
            f"{CLASSES_OF_ADE20K}"
        )
    read_json(folder / PROCESSOR)
    if not any(folder.glob("*.safetensors")):
        raise BadFile(f"{name} has no .safetensors; pickles (.bin) are not read: they may run code")
