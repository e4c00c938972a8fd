"""A small classifier: which thing is on a picture, and in which style.

It learns from the training pictures only, and no model learns from it: what it says of a model's
drawings is a second opinion beside the nearest pixels.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.train.data import WHITE, Layer, Pictures, Row, shuffled_indices
from txt2img.train.default_model.captions import BACKGROUNDS, hexadecimal

SIDE = 64  # pixels
WIDTH = 256  # features
BATCH = 64  # pictures
RATE = 2e-3  # learning rate


@dataclass(frozen=True)
class Caption:
    """A taught caption: "red apple, 3d emoji" is a concept and a style."""

    text: str

    @property
    def concept(self) -> str:
        """The thing: "red apple"."""
        return self.text.rpartition(", ")[0] or self.text

    @property
    def style(self) -> str:
        """The style: "3d emoji"; empty where none is said."""
        return self.text.rpartition(", ")[2] if ", " in self.text else ""


class Classifier(nn.Module):
    """Pictures → features, and the logits of concepts and styles."""

    def __init__(self, concepts: Sequence[str], styles: Sequence[str]) -> None:
        super().__init__()
        self.concepts, self.styles = tuple(concepts), tuple(styles)
        layers: list[nn.Module] = []
        channels = 3
        for size in (32, 64, 128, WIDTH):
            layers += [nn.Conv2d(channels, size, 3, 2, 1), nn.GroupNorm(8, size), nn.SiLU()]
            layers += [nn.Conv2d(size, size, 3, 1, 1), nn.GroupNorm(8, size), nn.SiLU()]
            channels = size
        flat = nn.Linear(WIDTH * (SIDE // 16) ** 2, WIDTH)
        self.trunk = nn.Sequential(*layers, nn.Flatten(), flat)
        self.concept = nn.Linear(WIDTH, len(self.concepts))
        self.style = nn.Linear(WIDTH, len(self.styles))

    def features(self, pixels: Tensor) -> Tensor:
        """Vectors (B, WIDTH) of length 1 of pictures (B, 3, SIDE, SIDE)."""
        return functional.normalize(self.trunk(pixels), dim=-1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, concepts) and (B, styles) of pictures (B, 3, SIDE, SIDE)."""
        features = 16.0 * self.features(pixels)  # long enough for confident logits
        return self.concept(features), self.style(features)

    @torch.no_grad()
    def names(self, pixels: Tensor) -> list[str]:
        """The concept on each picture (B, 3, SIDE, SIDE)."""
        return [self.concepts[n] for n in self(pixels)[0].argmax(dim=-1).tolist()]


def plain_rows(data: Pictures) -> list[Row]:
    """The rows of single, whole pictures on white."""
    return [row for row in data.rows if row.plain]


def new_classifier(data: Pictures) -> Classifier:
    """An untrained classifier of all concepts and styles of a data set."""
    captions = [Caption(row.captions[0]) for row in plain_rows(data)]
    concepts = sorted({caption.concept for caption in captions})
    return Classifier(concepts, sorted({caption.style for caption in captions}))


def train_classifier(
    classifier: Classifier, data: Pictures, steps: int, seed: int
) -> Iterator[float]:
    """Train a classifier; yields the loss after each step."""
    rows = plain_rows(data)
    captions = [Caption(row.captions[0]) for row in rows]
    concepts = torch.tensor([classifier.concepts.index(caption.concept) for caption in captions])
    styles = torch.tensor([classifier.styles.index(caption.style) for caption in captions])
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    device = next(classifier.parameters()).device
    for step in range(steps):
        rng = random.Random(f"{seed} {step}")
        picked = shuffled_indices(len(rows), step * BATCH, BATCH, seed)
        pixels = data.paint_all([variation(rows[n], rng) for n in picked], SIDE)
        pixels = augment(pixels, torch.Generator().manual_seed(rng.getrandbits(32))).to(device)
        concept, style = classifier(pixels)
        loss = functional.cross_entropy(concept, concepts[picked].to(device), label_smoothing=0.1)
        loss = loss + 0.2 * functional.cross_entropy(style, styles[picked].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def variation(row: Row, rng: random.Random) -> Row:
    """A plain row with its picture moved, scaled, perhaps mirrored, and on another ground."""
    side = rng.uniform(0.7, 1.0)
    left, top = (rng.uniform(0.0, 1.0 - side) for _ in range(2))
    hue, mirrored = rng.uniform(-0.02, 0.02), rng.random() < 0.5
    layer = Layer(row.layers[0].file, left, top, side, hue, mirrored)
    ground = hexadecimal(rng.choice(sorted(BACKGROUNDS))) if rng.random() < 0.5 else WHITE
    return replace(row, layers=(layer,), background=(ground,))


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) with noise, every other one blurred, as a young model draws."""
    soft = functional.interpolate(functional.avg_pool2d(pixels[::2], 2), scale_factor=2.0)
    pixels = pixels.clone()
    pixels[::2] = soft
    strength = 0.2 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return pixels + strength * torch.randn(pixels.shape, generator=generator)
