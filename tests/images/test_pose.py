"""Poses are drawn as OpenPose draws them: limbs, joints and colours by their formulas."""

import math

import numpy as np
import pytest

from txt2img.images.pose import BODY_18, COLOURS, LIMBS, body_18, draw_people

pytest.importorskip("cv2")
# COCO's names in its order, and OpenPose's.
COCO = "nose leye reye lear rear lsho rsho lelb relb lwri rwri lhip rhip lkne rkne lank rank neck"
OPENPOSE = (
    "nose neck rsho relb rwri lsho lelb lwri rhip rkne rank lhip lkne lank reye leye rear lear"
)
HUES = [
    *([255, 0, 0], [255, 85, 0], [255, 170, 0], [255, 255, 0], [170, 255, 0], [85, 255, 0]),
    *([0, 255, 0], [0, 255, 85], [0, 255, 170], [0, 255, 255], [0, 170, 255], [0, 85, 255]),
    *([0, 0, 255], [85, 0, 255], [170, 0, 255], [255, 0, 255], [255, 0, 170], [255, 0, 85]),
]


def person(**seen: tuple[float, float]) -> np.ndarray:
    """A person's keypoints, of which the named ones are seen."""
    return np.array([(*seen.get(name, (0, 0)), float(name in seen)) for name in COCO.split()[:17]])


def drawn(*people: np.ndarray) -> np.ndarray:
    return np.array(draw_people(np.stack(people), (96, 64)))


def test_keypoints_of_coco_come_in_openposes_order_with_a_neck() -> None:
    names = OPENPOSE.split()
    assert [COCO.split()[place] for place in BODY_18] == names
    assert [[*colour] for colour in COLOURS] == HUES
    pairs = [f"{names[a]}-{names[b]}" for a, b in LIMBS]
    assert pairs[:2] == ["neck-rsho", "neck-lsho"] and pairs[12:] == [
        *("neck-nose", "nose-reye", "reye-rear", "nose-leye", "leye-lear")
    ]
    [both] = body_18(person(lsho=(10, 20), rsho=(30, 40))[None])
    assert both[1].tolist() == [20, 30, 1]
    [one] = body_18(person(lsho=(10, 20))[None])
    assert one[1, 2] == 0


def test_a_limb_is_an_ellipse_and_a_joint_a_disc_of_its_colour() -> None:
    levels = drawn(person(relb=(20, 32), rwri=(60, 32)))
    joints = {name: [*COLOURS[OPENPOSE.split().index(name)]] for name in ("relb", "rwri")}
    assert levels[32, 20].tolist() == joints["relb"] and levels[28, 60].tolist() == joints["rwri"]
    limb = [int(0.6 * part) for part in COLOURS[LIMBS.index((3, 4))]]
    assert [levels[y, 40].tolist() for y in (28, 36)] == [limb] * 2
    assert not levels[[27, 37], 40].any()
    area = math.pi * (4**2 + 20 * 4)  # a disc, and an ellipse with half a disc of each joint in it
    assert np.count_nonzero(levels.any(axis=2)) == pytest.approx(area + 60, abs=25)


def test_what_is_not_seen_is_not_drawn_and_people_do_not_fade() -> None:
    assert not drawn(np.zeros((17, 3))).any()
    assert not np.array(draw_people(np.zeros((0, 17, 3)), (8, 8))).any()  # nobody
    unsure = person(nose=(20, 20), leye=(40, 20))
    unsure[:, 2] *= 0.29
    assert not drawn(unsure).any()
    first, second = person(lhip=(20, 10), lkne=(20, 50)), person(lhip=(70, 10), lkne=(70, 50))
    both = drawn(first, second)
    assert np.array_equal(both, drawn(first) + drawn(second))
    assert np.array_equal(both[:, 10:40], both[:, 60:90])
