"""Tiny models of depths, segments and poses with random weights, as transformers has them."""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tests.support.tiny import _ROOT
from txt2img.models.transformers_library import quietly

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SIZE = {"height": 64, "width": 64}


@cache
def depth_folder(kind: str = "dpt") -> Path:
    """A depth model: DPT, or Depth Anything, whose depths may be metric."""
    with quietly():
        from transformers import (
            DepthAnythingConfig,
            DepthAnythingForDepthEstimation,
            Dinov2Config,
            DPTConfig,
            DPTForDepthEstimation,
        )
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    fusion = {"fusion_hidden_size": 8, "neck_hidden_sizes": [8] * 4}
    fusion["reassemble_factors"] = [4, 2, 1, 0.5]
    torch.manual_seed(1)
    if kind == "dpt":
        config = DPTConfig(
            **shape,
            **fusion,
            intermediate_size=16,
            image_size=64,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
        )
        return save(DPTForDepthEstimation(config), kind, "DPTImageProcessor", SIZE)
    backbone = Dinov2Config(
        **shape,
        mlp_ratio=1,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        **fusion,
        reassemble_hidden_size=16,
        patch_size=14,
        head_hidden_size=4,
        depth_estimation_type=kind,
        max_depth=20,
    )
    size = {"height": 56, "width": 56}
    model = DepthAnythingForDepthEstimation(config)
    return save(model, kind, "DPTImageProcessor", size, keep_aspect_ratio=True, multiple=14)


@cache
def zoe_folder() -> Path:
    """ZoeDepth, whose processor pads pictures."""
    with quietly():
        from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation
    backbone = BeitConfig(
        image_size=64,
        num_hidden_layers=4,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    config = ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 2],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )
    torch.manual_seed(3)
    model = ZoeDepthForDepthEstimation(config)
    return save(model, "zoe", "ZoeDepthImageProcessor", SIZE, keep_aspect_ratio=True, multiple=32)


@cache
def segment_folder(classes: int = 150) -> Path:
    """A SegFormer of ADE20K's classes, or of others."""
    with quietly():
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(2)
    config = SegformerConfig(
        num_labels=classes,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    model = SegformerForSemanticSegmentation(config)
    return save(model, f"segformer-{classes}", "SegformerImageProcessor", SIZE)


@cache
def pose_folder(experts: int = 1, keypoints: int = 17) -> Path:
    """A ViTPose whose keypoints are seen in part; with experts, one of those for several sets."""
    with quietly():
        from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    torch.manual_seed(4)
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_experts=experts,
        part_features=4,
        out_indices=[2],
    )
    model = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=keypoints))
    with torch.no_grad():
        model.head.conv.weight.mul_(20)
        model.head.conv.bias.copy_(torch.linspace(-1, 1, keypoints))
    name, size = f"vitpose-{experts}-{keypoints}", {"height": 64, "width": 48}
    return save(model, name, "VitPoseImageProcessor", size)


@cache
def detector_folder(person: str = "person") -> Path:
    """A YOLOS that takes all that it finds for people, some of them surely."""
    with quietly():
        from transformers import YolosConfig, YolosForObjectDetection

    torch.manual_seed(5)
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[64, 64],
        num_detection_tokens=6,
        id2label={0: "tie", 1: person},
    )
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        model.vit.embeddings.detection_tokens.copy_(3 * torch.randn(1, 6, 16))
        model.class_labels_classifier.layers[-1].weight.mul_(8)
        model.class_labels_classifier.layers[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        for layer in model.bbox_predictor.layers:
            layer.weight.mul_(8)
    size = {"shortest_edge": 64, "longest_edge": 96}
    return save(model, f"yolos-{person}", "YolosImageProcessor", size)


def save(
    model: "PreTrainedModel",
    name: str,
    processor: str,
    size: dict[str, int],
    keep_aspect_ratio: bool = False,
    multiple: int = 1,
) -> Path:
    """A model's folder, with the settings of its pictures."""
    path = Path(_ROOT.name) / "annotators" / name
    with quietly():
        model.save_pretrained(path)
    rows = {**ROWS, "image_processor_type": processor, "size": size}
    rows |= {"keep_aspect_ratio": keep_aspect_ratio, "ensure_multiple_of": multiple}
    rows["do_resize"] = processor != "VitPoseImageProcessor"  # which cuts people out
    (path / "preprocessor_config.json").write_text(json.dumps(rows))
    return path
