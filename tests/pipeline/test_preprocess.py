"""Maps of depths, segments and poses are those that transformers' own pipelines make."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.annotators import (
    depth_folder,
    detector_folder,
    pose_folder,
    segment_folder,
    zoe_folder,
)
from txt2img.errors import BadFile, BadRequest, MissingWeights, Txt2imgError, UnknownLayout
from txt2img.images.pose import draw_people
from txt2img.pipeline.preprocess import ADE20K, depth_map, preprocess_image
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.system.device.device import choose
from txt2img.weights.annotator import Annotator, load_annotator

LEVELS = np.random.default_rng(1).integers(0, 256, (48, 80, 3), np.uint8)
PICTURE = Image.fromarray(LEVELS)


def loaded(kind: Preprocessor, folder: Path, detector: Path | None = None) -> Annotator:
    how = Preprocess(kind, model="a", detector="b" if detector else "")
    folders = {"a": folder, "b": detector or folder}
    return load_annotator(how, folders, choose("cpu", None))


def drawn(kind: Preprocessor, folder: Path, detector: Path | None = None) -> Image.Image:
    how = Preprocess(kind, model="a")
    return preprocess_image(PICTURE, how, loaded(kind, folder, detector))


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
    zoe = loaded(Preprocessor.DEPTH, folder)
    ours = np.array(drawn(Preprocessor.DEPTH, folder))
    assert zoe.metric and ours.shape == LEVELS.shape
    assert ours.flat[int(zoe(PICTURE).argmin()) * 3] == 255


def test_what_is_near_is_white_also_where_depths_are_metres() -> None:
    metres = torch.tensor([[1.0, 2.0], [4.0, 4.0]])
    assert np.array(depth_map(metres, metric=True))[..., 0].tolist() == [[255, 85], [0, 0]]
    assert np.array(depth_map(metres, metric=False))[..., 2].tolist() == [[0, 85], [255, 255]]
    metric = np.array(drawn(Preprocessor.DEPTH, depth_folder("metric")), int)
    annotator = loaded(Preprocessor.DEPTH, depth_folder("metric"))
    assert annotator.metric
    assert metric.flat[int(annotator(PICTURE).argmin()) * 3] == 255
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


@pytest.mark.parametrize("experts", [1, 6])
def test_poses_are_those_of_transformers_for_the_people_that_a_detector_finds(experts: int) -> None:
    from transformers import (
        AutoImageProcessor,
        VitPoseForPoseEstimation,
        YolosForObjectDetection,
        YolosImageProcessorPil,
    )

    folder, finder = pose_folder(experts), detector_folder()
    with torch.inference_mode():
        seer = YolosForObjectDetection.from_pretrained(finder)
        processor = YolosImageProcessorPil.from_pretrained(finder)
        outputs = seer(**processor(images=PICTURE, return_tensors="pt"))
        [seen] = processor.post_process_object_detection(outputs, 0.3, [PICTURE.size[::-1]])
        left, up, right, down = seen["boxes"][seen["labels"] == 1].unbind(1)
        found = torch.stack([left, up, right - left, down - up], dim=1).tolist()
        whole = [[0.0, 0.0, *map(float, PICTURE.size)]]
        model = VitPoseForPoseEstimation.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        for boxes, detector in ((whole, None), (found, finder)):
            inputs = processor(PICTURE, boxes=[boxes], return_tensors="pt")
            kind = {"dataset_index": torch.zeros(len(boxes), dtype=torch.long)}
            outputs = model(**inputs, **(kind if experts > 1 else {}))
            [people] = processor.post_process_pose_estimation(outputs, boxes=[boxes])
            theirs = np.stack(
                [np.column_stack([one["keypoints"], one["scores"]]) for one in people]
            )
            assert len(boxes) == (1 if detector is None else 6)
            assert 0 < (theirs[..., 2] < 0.3).sum() < theirs[..., 2].size
            ours = loaded(Preprocessor.POSE, folder, detector)(PICTURE)
            assert np.abs(ours.numpy() - theirs).max() < 1e-3
            map_ = drawn(Preprocessor.POSE, folder, detector)
            assert map_.tobytes() == draw_people(theirs, PICTURE.size).tobytes()


def test_nobody_found_is_a_black_map() -> None:
    annotator = loaded(Preprocessor.POSE, pose_folder(), detector_folder())
    assert annotator.detector is not None
    layer = annotator.detector.network.class_labels_classifier.layers[-1]
    layer.bias.data.copy_(torch.tensor([90.0, 0.0, 0.0]))
    assert annotator(PICTURE).shape == (0, 17, 3)
    map_ = preprocess_image(PICTURE, Preprocess(Preprocessor.POSE, model="a"), annotator)
    assert (map_.size, map_.getextrema()) == (PICTURE.size, ((0, 0),) * 3)


def test_a_picture_too_small_for_a_model_is_told() -> None:
    for annotator in (
        loaded(Preprocessor.POSE, pose_folder()),
        loaded(Preprocessor.DEPTH, zoe_folder()),
    ):
        with pytest.raises(BadRequest, match="a picture of 40x3 pixels is too small for a model"):
            annotator(Image.new("RGB", (40, 3)))


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
    poses: list[tuple[Path, Path, str]] = [
        (pose_folder(1, 5), detector_folder(), "knows 5 keypoints; poses need COCO's 17"),
        (detector_folder(), detector_folder(), "is no model for pose estimation"),
        (pose_folder(), pose_folder(), "is no model for object detection: its config has"),
        (pose_folder(), detector_folder("dog"), "finds no people: none of its 2 classes"),
    ]
    for folder, detector, line in poses:
        with pytest.raises(UnknownLayout, match=line):
            drawn(Preprocessor.POSE, folder, detector)
    settings = pickled.with_name("settings")
    shutil.copytree(pose_folder(), settings)
    rows = json.loads((settings / "preprocessor_config.json").read_text())
    rows |= {"do_resize": True, "size": {"height": 64, "width": "x"}}
    (settings / "preprocessor_config.json").write_text(json.dumps(rows))
    with pytest.raises(BadFile, match="is not a whole model"):
        drawn(Preprocessor.POSE, settings)
