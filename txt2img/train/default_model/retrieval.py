"""Which training picture a drawn one is nearest to: in blurred pixels, and to the judge's eye."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from txt2img.train.default_model.classifier import Caption, Judge

BLUR = 1.0  # pixels of SIDE: forgives what is a little off its place


@dataclass(frozen=True)
class Verdict:
    """One drawn picture: what was asked for, and what the nearest training picture shows."""

    caption: str
    seed: int
    nearest: str
    rmse: float  # to the nearest, of pixels in −1…1
    concept: bool  # the nearest shows the right concept, in whatever style
    style: bool  # and in the right style
    concept_in_5: bool  # one of the five nearest shows the right concept
    judged: bool | None = None  # what the judge finds nearest shows the right concept


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


def verdicts_of(
    wanted: Sequence[Caption],
    seeds: Sequence[int],
    drawn: Tensor,
    known: Sequence[Caption],
    gallery: Tensor,
) -> list[Verdict]:
    """A verdict a drawn picture (B, 3, H, W), against the known pictures (N, 3, H, W)."""
    smooth = torch.cat([blurred(part) for part in gallery.split(256)])  # in parts: less memory
    places, rmse = nearest(blurred(drawn).flatten(1), smooth.flatten(1))
    verdicts = []
    for i, (caption, seed) in enumerate(zip(wanted, seeds, strict=True)):
        found = [known[place] for place in places[i].tolist()]
        same = [other.concept == caption.concept for other in found]
        verdicts.append(
            Verdict(
                caption=caption.text,
                seed=seed,
                nearest=found[0].text,
                rmse=round(float(rmse[i, 0]), 4),
                concept=same[0],
                style=same[0] and found[0].style == caption.style,
                concept_in_5=any(same),
            )
        )
    return verdicts


@torch.no_grad()
def second_opinion(
    judge: Judge,
    verdicts: Sequence[Verdict],
    drawn: Tensor,
    known: Sequence[Caption],
    gallery: Tensor,
) -> list[Verdict]:
    """The verdicts with what the judge's features find nearest, in place of pixels."""
    taught = torch.cat([judge.features(part) for part in gallery.split(256)])
    seen = torch.cat([judge.features(part) for part in drawn.split(256)])
    places = (seen @ taught.T).argmax(dim=1).tolist()
    return [
        replace(verdict, judged=known[place].concept == Caption(verdict.caption).concept)
        for verdict, place in zip(verdicts, places, strict=True)
    ]


def share(hits: Sequence[bool]) -> float:
    """How many are true, 0 to 1."""
    return round(sum(hits) / len(hits), 4)
