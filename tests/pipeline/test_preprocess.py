"""Maps of depths and segments are those that transformers' own pipelines make."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.annotators import depth_folder, segment_folder, zoe_folder
from txt2img.errors import BadFile, BadRequest, MissingWeights, Txt2imgError, UnknownLayout
from txt2img.pipeline.preprocess import ADE20K, depth_map, preprocess_image
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.system.device.device import choose
from txt2img.weights.annotator import load_annotator

LEVELS = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)
PICTURE = Image.fromarray(LEVELS)


def drawn(kind: Preprocessor, folder: Path) -> Image.Image:
    how = Preprocess(kind, model=str(folder))
    return preprocess_image(PICTURE, how, load_annotator(how, folder, choose("cpu", None)))


@pytest.mark.parametrize("kind", ["dpt", "relative"])
def test_depths_are_those_of_transformers_pipeline(kind: str) -> None:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline

    folder = depth_folder(kind)
    theirs = pipeline(
        "depth-estimation",
        model=AutoModelForDepthEstimation.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )(PICTURE)
    ours = drawn(Preprocessor.DEPTH, folder)
    assert (ours.size, ours.mode) == (PICTURE.size, "RGB")
    near = np.array(theirs["depth"])[..., None].astype(int) - np.array(ours)
    assert np.abs(near).max() <= 1 and np.array(ours).max() == 255


def test_zoedepth_needs_no_torchvision_and_counts_metres() -> None:
    folder = zoe_folder()
    loaded = load_annotator(Preprocess(Preprocessor.DEPTH, model="z"), folder, choose("cpu", None))
    ours = np.array(drawn(Preprocessor.DEPTH, folder))
    assert loaded.metric and ours.shape == LEVELS.shape
    assert ours.flat[int(loaded(PICTURE).argmin()) * 3] == 255


def test_what_is_near_is_white_also_where_depths_are_metres() -> None:
    metres = torch.tensor([[1.0, 2.0], [4.0, 4.0]])
    assert np.array(depth_map(metres, metric=True))[..., 0].tolist() == [[255, 85], [0, 0]]
    assert np.array(depth_map(metres, metric=False))[..., 2].tolist() == [[0, 85], [255, 255]]
    metric = np.array(drawn(Preprocessor.DEPTH, depth_folder("metric")), int)
    folder = depth_folder("metric")
    how = Preprocess(Preprocessor.DEPTH, model="a")
    loaded = load_annotator(how, folder, choose("cpu", None))
    assert loaded.metric
    assert metric.flat[int(loaded(PICTURE).argmin()) * 3] == 255
    assert not np.array(depth_map(torch.ones(2, 2), metric=True)).any()  # of an even ground


def test_segments_have_the_colours_of_ade20k() -> None:
    from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

    folder = segment_folder()
    processor = AutoImageProcessor.from_pretrained(folder)
    outputs = SegformerForSemanticSegmentation.from_pretrained(folder)(
        **processor(images=PICTURE, return_tensors="pt")
    )
    [classes] = processor.post_process_semantic_segmentation(outputs, [(48, 80)])
    palette = np.frombuffer(ADE20K, np.uint8).reshape(150, 3)
    assert palette[[0, 2, 12]].tolist() == [[120] * 3, [6, 230, 230], [150, 5, 61]]
    assert np.array_equal(np.array(drawn(Preprocessor.SEGMENT, folder)), palette[classes.numpy()])


def damaged(folder: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_folders_that_are_no_such_models_are_a_line(tmp_path: Path) -> None:
    pickled = damaged(depth_folder(), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    other = damaged(depth_folder(), tmp_path / "other", neck_hidden_sizes=[8, 8, 8, 6])
    more = damaged(depth_folder(), tmp_path / "more", num_hidden_layers=5)
    code = damaged(depth_folder(), tmp_path / "code", model_type="mine", auto_map={"A": "a.A"})
    (tmp_path / "file.safetensors").write_bytes(b"")
    expected: list[tuple[Path, type[Txt2imgError], str]] = [
        (segment_folder(), UnknownLayout, "no model for depth estimation: its config has"),
        (pickled, BadFile, r"has no .safetensors; pickles"),
        (other, Txt2imgError, "is not a whole model|tensors do not fit"),
        (more, MissingWeights, "tensors do not fit, dpt.encoder.layer.4"),
        (code, BadFile, "is not a whole model"),
        (tmp_path / "file.safetensors", BadRequest, "takes a folder of transformers"),
    ]
    for folder, kind, line in expected:
        with pytest.raises(kind, match=line) as caught:
            drawn(Preprocessor.DEPTH, folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownLayout, match="knows 19 classes"):
        drawn(Preprocessor.SEGMENT, segment_folder(19))
