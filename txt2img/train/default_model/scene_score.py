"""Scores of drawn scenes: the right things and ground, in their places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageColor
from torch import Tensor
from torch.nn import functional

from txt2img.train.data import WHITE, Layer, Row, rotate_hue, to_pixels
from txt2img.train.default_model.captions import BACKGROUNDS, hexadecimal
from txt2img.train.default_model.classifier import SIDE, Classifier

STRIP = 16  # of so many parts, the one on each edge that shows the ground only
APART = 0.35  # in −1…1: what differs more from the ground is a thing
LEAST = 0.004  # of a picture: less is a speck
GROUNDS = [WHITE, *(hexadecimal(name) for name in sorted(BACKGROUNDS))]


@dataclass(frozen=True)
class SceneScore:
    """The correct parts of one scene's picture."""

    caption: str
    seed: int
    kind: str
    things: bool  # each thing is in its place
    ground: bool  # the colour, or the two from top to bottom
    count: bool  # there are as many as asked for; only looked at where a number was said

    @property
    def right(self) -> bool:
        """Whether all parts are correct."""
        return self.things and self.ground and self.count


def score(
    classifier: Classifier, row: Row, seed: int, image: Image.Image, concepts: Mapping[str, str]
) -> SceneScore:
    """The score of a scene's picture; `concepts` says what each of its files shows."""
    seen = classifier.names(torch.stack([layer_pixels(image, layer) for layer in row.layers]))
    pixels = to_pixels(image)
    return SceneScore(
        caption=row.captions[0],
        seed=seed,
        kind=row.kind,
        things=seen == [concepts[layer.file] for layer in row.layers],
        ground=grounds(pixels) == (nearest(row.background[0]), nearest(row.background[-1])),
        count=row.kind != "count" or blobs(pixels) == len(row.layers),
    )


def layer_pixels(image: Image.Image, layer: Layer) -> Tensor:
    """The pixels where a layer should be, in its own colours: (3, SIDE, SIDE) in −1…1."""
    left, top = layer.left * image.width, layer.top * image.height
    box = (left, top, left + layer.side * image.width, top + layer.side * image.height)
    part = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box)
    return to_pixels(rotate_hue(part.convert("RGBA"), -layer.hue % 1.0))


def nearest(colour: str | tuple[int, int, int]) -> str:
    """The ground whose colour is nearest."""
    rgb = ImageColor.getrgb(colour) if isinstance(colour, str) else colour
    return min(
        GROUNDS,
        key=lambda name: sum(
            (a - b) ** 2 for a, b in zip(ImageColor.getrgb(name), rgb, strict=True)
        ),
    )


def grounds(pixels: Tensor) -> tuple[str, str]:
    """The grounds in the upper and in the lower corners of pixels (3, H, W)."""
    height, width = (max(side // STRIP, 1) for side in pixels.shape[-2:])
    edges = torch.cat([pixels[..., :width], pixels[..., -width:]], dim=-1)
    colours = []
    for strip in (edges[:, :height], edges[:, -height:]):
        middle = strip.flatten(1).median(dim=1).values
        red, green, blue = ((middle + 1.0) * 127.5).round().int().tolist()
        colours.append(nearest((red, green, blue)))
    return colours[0], colours[1]


def blobs(pixels: Tensor) -> int:
    """The number of things that pixels (3, H, W) show: connected areas unlike the background."""
    width = max(pixels.shape[-1] // STRIP, 1)
    edges = torch.cat([pixels[..., :width], pixels[..., -width:]], dim=-1)
    ground = edges.median(dim=-1, keepdim=True).values  # (3, H, 1): each row has its own
    mask = ((pixels - ground).abs().amax(dim=0) > APART).float()
    mask = functional.max_pool2d(mask[None], 3, 1, 1)  # parts of a thing that almost touch
    labels = (torch.arange(1, mask.numel() + 1).view(mask.shape) * mask).float()
    while True:  # the largest label of a part floods it
        flooded = functional.max_pool2d(labels, 3, 1, 1) * mask
        if torch.equal(flooded, labels):
            break
        labels = flooded
    _, sizes = labels[labels > 0].unique(return_counts=True)
    return int((sizes >= LEAST * mask.numel()).sum())


def shares(scores: Sequence[SceneScore]) -> dict[str, float]:
    """The share of correct scenes, of all and of each kind."""
    kinds = sorted({score.kind for score in scores})
    parts = {kind: [s.right for s in scores if s.kind == kind] for kind in kinds}
    parts = {"all": [s.right for s in scores]} | parts
    return {kind: round(sum(hits) / len(hits), 4) for kind, hits in parts.items() if hits}
