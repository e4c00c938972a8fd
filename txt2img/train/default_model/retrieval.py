"""Retrieval: which training picture a drawn one is nearest to, by pixels and by a classifier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from txt2img.train.default_model.classifier import Caption, Classifier

BLUR = 1.0  # pixels of SIDE: forgives what is a little off its place


@dataclass(frozen=True)
class Match:
    """One drawn picture: its prompt, and the caption of the nearest training picture."""

    caption: str
    seed: int
    nearest: str
    rmse: float  # to the nearest, of pixels in −1…1
    concept: bool  # the nearest shows the right concept, in whatever style
    style: bool  # and in the right style
    concept_in_5: bool  # one of the five nearest shows the right concept
    classified: bool | None = None  # what the classifier finds nearest shows the right concept


def blurred(pixels: Tensor, sigma: float = BLUR) -> Tensor:
    """Pixels (B, C, H, W) after a Gaussian blur of `sigma` pixels, edges repeated."""
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).to(pixels)
    batch, channels, height, width = pixels.shape
    x = torch.nn.functional.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    x = x.reshape(batch * channels, 1, height + 2 * reach, width + 2 * reach)
    x = torch.nn.functional.conv2d(x, taps.view(1, 1, -1, 1))
    x = torch.nn.functional.conv2d(x, taps.view(1, 1, 1, -1))
    return x.view(batch, channels, height, width)


def nearest(drawn: Tensor, gallery: Tensor, count: int = 5) -> tuple[Tensor, Tensor]:
    """For pictures (B, D): the nearest of (N, D), nearest first, (B, count), and their RMSE."""
    distances = torch.cdist(drawn, gallery, compute_mode="donot_use_mm_for_euclid_dist")
    rmse, places = (distances / math.sqrt(gallery.shape[1])).topk(
        min(count, len(gallery)), largest=False
    )
    return places, rmse


def matches_of(
    prompts: Sequence[tuple[str, int]],
    drawn: Tensor,
    known: Sequence[Caption],
    gallery: Tensor,
) -> list[Match]:
    """Match each drawn picture (B, 3, H, W), of prompts with seeds, with a gallery (N, 3, H, W)."""
    smooth = torch.cat([blurred(part) for part in gallery.split(256)])  # in parts: less memory
    places, rmse = nearest(blurred(drawn).flatten(1), smooth.flatten(1))
    matches = []
    for i, (text, seed) in enumerate(prompts):
        caption, near = Caption(text), [known[place] for place in places[i].tolist()]
        same = [other.concept == caption.concept for other in near]
        matches.append(
            Match(
                caption=text,
                seed=seed,
                nearest=near[0].text,
                rmse=round(float(rmse[i, 0]), 4),
                concept=same[0],
                style=same[0] and near[0].style == caption.style,
                concept_in_5=any(same),
            )
        )
    return matches


@torch.no_grad()
def classifier_agreement(
    classifier: Classifier,
    matches: Sequence[Match],
    drawn: Tensor,
    known: Sequence[Caption],
    gallery: Tensor,
) -> list[Match]:
    """The matches by the classifier's features instead of pixels."""
    stored = torch.cat([classifier.features(part) for part in gallery.split(256)])
    features = torch.cat([classifier.features(part) for part in drawn.split(256)])
    places = (features @ stored.T).argmax(dim=1).tolist()
    return [
        replace(match, classified=known[place].concept == Caption(match.caption).concept)
        for match, place in zip(matches, places, strict=True)
    ]


def share(hits: Sequence[bool]) -> float:
    """The share that is true, 0 to 1."""
    return round(sum(hits) / len(hits), 4)
