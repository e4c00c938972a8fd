"""Poses of people as OpenPose draws them: the maps that ControlNets of poses were trained on.

Source of the order, the colours and the sizes: controlnet_aux, open_pose/util.py (draw_bodypose).
"""

import colorsys
import math
from typing import TYPE_CHECKING

from txt2img.images.preprocess import import_opencv

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

KEYPOINTS = 17  # of COCO, with which those of COCO-WholeBody begin
SEEN = 0.3  # the least score of a keypoint that is drawn, as DWPose has it
SHOULDERS = 5, 6  # in COCO's order: left, right
NECK = 17  # the place of the one that COCO has not: the middle of the shoulders
# OpenPose's 18 by their places in COCO's order: nose, neck, right arm, left arm, right leg, left
# leg, eyes, ears.
BODY_18 = 0, NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3
# Pairs of those 18, in the order in which they are painted over each other.
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
# Eighteen hues around the circle: of the limbs, and of the joints in their order.
COLOURS = tuple(
    tuple(round(255 * part) for part in colorsys.hsv_to_rgb(i / 18, 1, 1)) for i in range(18)
)
WIDTH = 4  # pixels, half of a limb's; and the radius of a joint
LIMBS_SHARE = 0.6  # of their colours, which joints have in full


def body_18(people: "NDArray[np.floating]") -> "NDArray[np.floating]":
    """COCO's keypoints (N, 17 or more, 3) of x, y, score → OpenPose's (N, 18, 3).

    A neck is seen where both shoulders are.
    """
    import numpy as np

    shoulders = people[:, SHOULDERS, :]
    neck = shoulders.mean(axis=1, keepdims=True)
    neck[..., 2] = shoulders[..., 2].min(axis=1, keepdims=True)
    return np.concatenate([people[:, :KEYPOINTS], neck], axis=1)[:, BODY_18]


def draw_people(people: "NDArray[np.floating]", size: tuple[int, int]) -> "Image.Image":
    """The map of people's keypoints (N, 17 or more, 3) of x, y in pixels and score, on black.

    Txt2imgError without OpenCV.
    """
    import numpy as np
    from PIL import Image

    cv2, bodies = import_opencv(), body_18(people)
    canvas = np.zeros((size[1], size[0], 3), np.uint8)
    for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
        for body in bodies:
            if min(body[a, 2], body[b, 2]) < SEEN:
                continue
            (x, y), (dx, dy) = (body[a, :2] + body[b, :2]) / 2, body[a, :2] - body[b, :2]
            axes, angle = (int(math.hypot(dx, dy) / 2), WIDTH), math.degrees(math.atan2(dy, dx))
            outline = cv2.ellipse2Poly((int(x), int(y)), axes, int(angle), 0, 360, 1)
            cv2.fillConvexPoly(canvas, outline, colour)
    canvas = (canvas * LIMBS_SHARE).astype(np.uint8)
    for joint, colour in enumerate(COLOURS):
        for x, y, score in bodies[:, joint]:
            if score >= SEEN:
                cv2.circle(canvas, (int(x), int(y)), WIDTH, colour, thickness=-1)
    return Image.fromarray(canvas)
