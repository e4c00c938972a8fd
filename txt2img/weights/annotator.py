"""Annotators: transformers' models that make maps of pictures, from a folder on this machine."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from txt2img.errors import BadFile, BadRequest, MissingWeights, Txt2imgError, UnknownLayout
from txt2img.images.pose import KEYPOINTS
from txt2img.models.transformers_library import quietly
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.system.device.device import Device
from txt2img.system.device.memory import is_oom, oom_as_error
from txt2img.system.files import read_json
from txt2img.system.text import shown
from txt2img.weights.registry.hashes import model_hash

if TYPE_CHECKING:
    from PIL import Image

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
DETECTION = "object detection"
# The class of transformers by what a model is for, and the end of the name that its config has.
CLASSES = {
    Preprocessor.DEPTH.model: ("AutoModelForDepthEstimation", "ForDepthEstimation"),
    Preprocessor.SEGMENT.model: ("AutoModelForSemanticSegmentation", "ForSemanticSegmentation"),
    Preprocessor.POSE.model: ("VitPoseForPoseEstimation", "VitPoseForPoseEstimation"),
    DETECTION: ("AutoModelForObjectDetection", "ForObjectDetection"),
}
METRIC = ("glpn", "zoedepth")  # their depths are metres, larger further away
CLASSES_OF_ADE20K = 150
PERSON = ("person", "people", "human")  # a detector's class
SURE = 0.3  # the least score of a person who is found
AT_ONCE = 16  # people in a pass
LEAST = 16  # pixels of a side: processors take tiny pictures' sides for channels
SCIPY = "poses need SciPy: pip install --no-deps scipy"


@dataclass(frozen=True)
class Annotator:
    """A loaded model that makes maps, with the processor of its pictures."""

    name: str
    hash: str  # ten hex digits
    kind: Preprocessor
    network: torch.nn.Module
    processor: Any  # of transformers; its classes share no type
    detector: "Annotator | None" = None  # that finds people

    @property
    def metric(self) -> bool:
        """Whether its depths are distances; others' are their inverses."""
        config = cast(Any, self.network.config)
        kind = getattr(config, "depth_estimation_type", "relative")
        return config.model_type in METRIC or kind == "metric"

    @torch.inference_mode()
    def __call__(self, image: "Image.Image") -> Tensor:
        """Depths or classes (H, W) of an RGB picture's pixels, or keypoints of its people.

        BadFile, BadRequest, OutOfMemory.
        """
        if min(image.size) < LEAST:
            size = f"{image.width}x{image.height}"
            raise BadRequest(f"{self.kind}: a picture of {size} pixels is too small for a model")
        with quietly(), oom_as_error("the preprocessor's model"), errors_as_bad_file(self.name):
            if self.kind is not Preprocessor.POSE:
                return self._map(image)
            whole = [[0.0, 0.0, float(image.width), float(image.height)]]
            return self._keypoints(image, self.detector.people(image) if self.detector else whole)

    def _map(self, image: "Image.Image") -> Tensor:
        """Depths or classes (H, W)."""
        # ZoeDepth's processor pads, which its resizing takes off again: by torchvision.
        unpadded = {"do_pad": False} if self.kind is Preprocessor.DEPTH else {}
        inputs = self.processor(images=image, return_tensors="pt", **unpadded)
        pixels = inputs["pixel_values"].to(self.network.device, torch.float32)
        outputs = self.network(pixel_values=pixels)
        size = image.height, image.width
        if self.kind is Preprocessor.SEGMENT:
            classes = self.processor.post_process_semantic_segmentation(outputs, [size])[0]
            return cast(Tensor, classes).cpu()
        depths = outputs.predicted_depth[:, None]
        return functional.interpolate(depths, size, mode="bicubic")[0, 0].cpu()

    def _keypoints(self, image: "Image.Image", boxes: list[list[float]]) -> Tensor:
        """Keypoints (N, K, 3) of x, y in pixels and score, of the people in boxes."""
        found = [torch.zeros(0, KEYPOINTS, 3)]
        experts = getattr(cast(Any, self.network.config).backbone_config, "num_experts", 1)
        for part in (boxes[i : i + AT_ONCE] for i in range(0, len(boxes), AT_ONCE)):
            inputs = self.processor(images=image, boxes=[part], return_tensors="pt")
            pixels = inputs["pixel_values"].to(self.network.device, torch.float32)
            # The first of a mixture's experts is COCO's.
            which = {"dataset_index": torch.zeros_like(pixels[:, 0, 0, 0], dtype=torch.long)}
            outputs = self.network(pixels, **(which if experts > 1 else {}))
            people = self.processor.post_process_pose_estimation(outputs, boxes=[part])[0]
            each = [torch.cat([one["keypoints"], one["scores"][:, None]], dim=1) for one in people]
            found.append(torch.stack(each)[:, :KEYPOINTS].float())
        return torch.cat(found)

    def people(self, image: "Image.Image") -> list[list[float]]:
        """Boxes of the people that a detector finds: left, top, width, height in pixels."""
        inputs = self.processor(images=image, return_tensors="pt").to(self.network.device)
        size = [(image.height, image.width)]
        found = self.processor.post_process_object_detection(
            self.network(**inputs), threshold=SURE, target_sizes=size
        )[0]
        names = cast(Any, self.network.config).id2label
        is_person = [names.get(int(one), "").lower() in PERSON for one in found["labels"]]
        left, top, right, bottom = found["boxes"][is_person].cpu().unbind(1)
        boxes = torch.stack([left, top, right - left, bottom - top], dim=1)
        return cast(list[list[float]], boxes[boxes[:, 2:].amin(dim=1) > 0].tolist())


@contextmanager
def errors_as_bad_file(name: str) -> Iterator[None]:
    """Raise as BadFile what transformers' checks of settings raise, which is of all kinds."""
    try:
        yield
    except Exception as error:
        if is_oom(error):
            raise
        reason = shown(" ".join(str(error).split()), 120)
        raise BadFile(f"{shown(name)} is not a whole model: {reason}") from error


def load_annotator(how: Preprocess, folders: Mapping[str, Path], device: Device) -> Annotator:
    """Load the models of a preprocessor by their names' folders, in float32.

    Nothing is fetched, pickles are not read, and no code that lies beside a model is run. BadFile,
    BadRequest, MissingWeights, UnknownLayout; Txt2imgError without SciPy.
    """
    if how.name is Preprocessor.POSE and find_spec("scipy") is None:
        raise Txt2imgError(SCIPY)
    first, *others = (folders[name] for name in how.models)
    annotator = _load(how, how.name.model, first, device)
    if not others:
        return annotator
    files = annotator_files([first, *others])
    detector = _load(how, DETECTION, others[0], device)
    return replace(annotator, hash=model_hash(files), detector=detector)


def annotator_files(folders: Iterable[Path]) -> list[Path]:
    """The weights of models, by which they are hashed."""
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def _load(how: Preprocess, task: str, folder: Path, device: Device) -> Annotator:
    """Load one model of a preprocessor, and the processor of its pictures."""
    _check_folder(folder, how.name, task)
    with quietly():
        import transformers
        from transformers import AutoImageProcessor
        from transformers.utils import logging

        logging.disable_progress_bar()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        with errors_as_bad_file(folder.name):
            network, report = getattr(transformers, CLASSES[task][0]).from_pretrained(
                folder,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
            processor = AutoImageProcessor.from_pretrained(folder, **options)
    if absent := sorted({*report["missing_keys"], *map(str, report["mismatched_keys"])}):
        raise MissingWeights(f"{shown(folder.name)}: {len(absent)} tensors do not fit, {absent[0]}")
    with oom_as_error("the preprocessor's model"):
        network.to(device.torch_device).eval().requires_grad_(False)
    files = annotator_files([folder])
    return Annotator(folder.resolve().name, model_hash(files), how.name, network, processor)


def _check_folder(folder: Path, kind: Preprocessor, task: str) -> None:
    """Raise BadRequest, BadFile, UnknownLayout for what is no folder of such a model."""
    name = shown(folder.name)
    if not folder.is_dir():
        raise BadRequest(f"{kind} takes a folder of transformers with {CONFIG}; {name} is a file")
    config = read_json(folder / CONFIG)
    architectures = config.get("architectures")
    known = [str(one) for one in architectures] if isinstance(architectures, list) else []
    if not any(one.endswith(CLASSES[task][1]) for one in known):
        architecture = shown(known[0]) if known else "no architecture"
        raise UnknownLayout(f"{name} is no model for {task}: its config has {architecture}")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else 2
    if kind is Preprocessor.SEGMENT and count != CLASSES_OF_ADE20K:
        raise UnknownLayout(
            f"{name} knows {count} classes; ControlNets follow the colours of ADE20K's "
            f"{CLASSES_OF_ADE20K}"
        )
    if task == Preprocessor.POSE.model and count < KEYPOINTS:
        raise UnknownLayout(f"{name} knows {count} keypoints; poses need COCO's {KEYPOINTS}")
    if task == DETECTION and not (
        isinstance(labels, dict) and any(str(one).lower() in PERSON for one in labels.values())
    ):
        raise UnknownLayout(f"{name} finds no people: none of its {count} classes is a person")
    read_json(folder / PROCESSOR)
    if not any(folder.glob("*.safetensors")):
        raise BadFile(f"{name} has no .safetensors; pickles (.bin) are not read: they may run code")
