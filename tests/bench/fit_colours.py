"""Fits the default model's row of txt2img/models/latent_preview.py:
python -m tests.bench.fit_colours

It draws pictures of the things that the model knows, and solves for the colours that come nearest
to its decoder's, by least squares, over what is seen at half of the steps and at the end.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from txt2img import train
from txt2img.models.vae import VAE
from txt2img.pipeline.generate import sample
from txt2img.request.request import Request
from txt2img.system.device.device import choose
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model

EACH = 6  # every so many-th thing is drawn
STEPS = 10
RIDGE = 1e-3
TESTED = 5  # every so many-th picture is held back to see how good the fit is


def main() -> int:
    """Print the row, and how much of pictures that were not fitted it explains."""
    model = load("default", choose("cpu"))
    pairs = list(drawn(model))
    fitted = [pair for i, pair in enumerate(pairs) if i % TESTED]
    solved = solve(fitted)
    held = [pair for i, pair in enumerate(pairs) if i % TESTED == 0]
    x, y = stacked(held)
    missed = (x @ solved - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum()
    assert isinstance(model.vae, VAE)
    print("told by", rows(model.vae.quant_conv.bias[None, :3].float()))
    solved = solve(pairs)
    print("factors", *rows(solved[:-1]), "bias", *rows(solved[-1:]), sep="\n    ")
    print(f"explains {1 - missed.item():.1%} of {len(held)} other pictures")
    return 0


def drawn(model: Model) -> Iterator[tuple[Tensor, Tensor]]:
    """Latents (cells, C + 1) and mean colours (cells, 3) of half-drawn and finished pictures."""
    things = (
        (Path(train.__file__).parent / "default_model" / "concepts.txt").read_text().splitlines()
    )
    for seed, thing in enumerate([t for t in things if not t.startswith("#")][::EACH]):
        request = resolve_adapters(model, Request(f"{thing}, 3d emoji", steps=STEPS, seed=seed))
        for state in sample(model, [request.filled(model.family.defaults)]):
            if state.step in (STEPS // 2, STEPS):
                with torch.inference_mode():
                    pixels = model.vae.decode(state.x0).clamp(-1, 1)
                cells = functional.avg_pool2d(pixels, model.vae.config.factor)
                x = state.x0.movedim(1, -1).flatten(0, 2)
                yield torch.cat([x, torch.ones(len(x), 1)], 1), cells.movedim(1, -1).flatten(0, 2)


def stacked(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All cells of all pictures."""
    x, y = zip(*pairs, strict=True)
    return torch.cat(x), torch.cat(y)


def solve(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The factors and the bias (C + 1, 3) that come nearest."""
    x, y = stacked(pairs)
    return torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1]), x.T @ y)


def rows(matrix: Tensor) -> list[str]:
    """A matrix as Python's source."""
    return [f"({', '.join(f'{value:.4f}' for value in row)})," for row in matrix.tolist()]


if __name__ == "__main__":
    raise SystemExit(main())
