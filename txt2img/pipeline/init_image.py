"""A picture → the start of sampling: its latents, and the later levels of the same schedule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import Level, Process, State
from txt2img.diffusion.masks import by_threshold, masked
from txt2img.errors import BadRequest
from txt2img.images.canvas import Canvas, canvas_of
from txt2img.models.seamless import AXES, HEIGHT, WIDTH
from txt2img.models.taesd import TinyVAE
from txt2img.models.tiling import OVERLAP, TILE, encode_tiled
from txt2img.pipeline import cpu_speed
from txt2img.pipeline.decode import finite_by_vae, vae_in_use
from txt2img.pipeline.noise import Shape, vae_noise
from txt2img.request import Request, Sampler
from txt2img.request.compat import Rules
from txt2img.request.fields import Tile
from txt2img.request.hires import FIRST_PASS
from txt2img.request.input_image import InpaintFill
from txt2img.system.device.memory import CPU, first_that_fits, moved_to, oom_as_error
from txt2img.weights.model import Model

TILED = "Out of memory while encoding the picture: encoded in tiles instead"
ON_CPU = "Out of memory while encoding the picture, even in tiles: encoded on the CPU instead"
BROKEN = "the encoder gave numbers that are no latent, in float32 too; choose another --vae"
FLOAT32 = "The encoder overflowed in half precision: encoded in float32 instead"
READING = "reading the picture"


@dataclass(frozen=True)
class InitImage:
    """What pictures drawn together begin from, and what the network sees of it."""

    latent: Tensor | None = None  # (B, C, h, w), float32, as the network sees it
    mask: Tensor | None = None  # (1, 1, h, w): 1 is repainted, 0 is kept
    extra: Tensor | None = None  # the network's extra channels, (B, C', h, w)
    fill: InpaintFill | None = None  # what lies under the mask
    # How many draws of a seed's generator the VAE takes, before the start's noise and after it.
    draws: tuple[int, int] = (0, 0)
    has_mask: bool = False

    def start(self, noise: Tensor) -> Tensor:
        """The latent to be noised, with what is to lie under its mask."""
        assert self.latent is not None
        if self.mask is None or self.fill in (None, InpaintFill.FILL):
            return self.latent
        under = noise if self.fill is InpaintFill.NOISE else torch.zeros_like(noise)
        return self.mask * under + (1 - self.mask) * self.latent

    def keeping(
        self,
        denoise: Denoise,
        noise: Tensor,
        process: Process,
        rules: Rules,
        levels: Sequence[Level],
        sampler: Sampler | None,
    ) -> Denoise:
        """The denoiser that keeps what is not masked, by a program's rules."""
        if self.mask is None or self.latent is None:
            return denoise
        mask, how = self.mask, rules.image
        at = by_threshold(mask, process, levels[0]) if how.cells == "threshold" else lambda _: mask
        first = None if how.seen_first else levels[0]
        seen = "clean" if sampler in how.clean_for else how.seen
        return masked(denoise, at, self.latent, noise, seen, first)

    def kept(self, states: Iterator[State], rules: Rules, steps: int) -> Iterator[State]:
        """States whose last x is exactly the latent where it is kept."""
        for state in states:
            if state.step == steps and self.mask is not None and self.latent is not None:
                share = self.mask.ceil() if rules.image.cells == "threshold" else self.mask
                state = replace(state, x=share * state.x + (1 - share) * self.latent)
            yield state


def starts_from_noise(model: Model, request: Request, rules: Rules, has_mask: bool) -> bool:
    """Whether a request starts from noise alone, though it may name a picture."""
    if model.family.follows_picture and request.image != FIRST_PASS:
        return True
    sees_it = has_mask or model.family.edits or model.family.inpaints
    pure = {"all": True, "masked": sees_it, "nothing": False}[rules.image.pure]
    return pure and request.strength == 1


def init_image(
    model: Model, requests: Sequence[Request], rules: Rules, latent: Shape, device: torch.device
) -> InitImage:
    """Encode what filled requests of one batch key begin from, and what the network sees of it.

    BadFile, BadRequest, OutOfMemory, Rejected.
    """
    first, inpainting, editing = requests[0], model.family.inpaints, model.family.edits
    if first.image is None:
        extra = extra_channels(model, first, None, [None])
        return InitImage(extra=None if extra is None else extra.to(device))
    canvas = canvas_of(first, rules, model.adapters.paths.images)
    pure = starts_from_noise(model, first, rules, canvas.mask is not None)
    sampled, has_mask = rules.image.sampled, canvas.mask is not None
    # FluxFillPipeline draws the picture's latent also where it starts from noise alone.
    unseen = inpainting and pure and not model.family.sees_mask_pixels
    before = int(sampled and not editing and not unseen)
    draws = before, int(sampled and has_mask)

    def noises(skip: int) -> list[Tensor | None]:
        return [vae_noise(one, rules, latent, skip) if sampled else None for one in requests]

    start = None
    if has_mask or not pure:
        pixels = to_pixels(canvas.start)[None]
        start = encode(model, pixels, noises(0), first).to(device)
    extra = extra_channels(model, first, canvas, noises(before + 1))
    extra = None if extra is None else extra.to(device)
    keeps = rules.image.keeps_of_inpainting or not inpainting
    cells = mask_cells(canvas, rules, latent[1:]) if has_mask and keeps else None
    cells = None if cells is None else cells.to(device)
    return InitImage(start, cells, extra, canvas.fill, draws, has_mask)


def extra_channels(
    model: Model, request: Request, canvas: Canvas | None, noises: Sequence[Tensor | None]
) -> Tensor | None:
    """The channels (B, C', h, w) that a network sees beside the latent; None if it sees none.

    An inpainting model may have no canvas: then it paints a whole picture. BadFile, OutOfMemory.
    """
    if model.family.inpaints:
        if canvas is None:
            return _extra_of_nothing(model, request)
        return _masked_picture(model, canvas, noises, request)
    if canvas is None or not (model.family.edits or model.family.follows_picture):
        return None
    image, how = canvas.image, request.preprocess_of(0)
    if model.family.follows_picture and not request.controls and how is not None:
        from txt2img.pipeline.preprocess import preprocess_for

        image = preprocess_for(model, image, how)
    pixels, scaled = to_pixels(image)[None], not model.family.edits
    return encode(model, pixels, [None], request, scaled).expand(len(noises), -1, -1, -1)


def mask_cells(canvas: Canvas, rules: Rules, size: tuple[int, int]) -> Tensor | None:
    """A canvas's mask by latent cells, (1, 1, h, w), as a program makes it."""
    if canvas.soft_mask is None:
        return None
    if rules.image.cells == "rounded":
        return _values(canvas.soft_mask.convert("RGB").resize(size[::-1]).getchannel(0)).round()
    soft = _values(canvas.soft_mask)
    if rules.image.cells == "nearest":
        return functional.interpolate((soft >= 0.5).float(), size)
    if rules.image.cells == "bilinear":
        return functional.interpolate(soft, size, mode="bilinear")
    return functional.adaptive_avg_pool2d(soft, size)


def _values(mask: Image.Image) -> Tensor:
    """A mask's values 0 … 1, (1, 1, H, W)."""
    return torch.from_numpy(np.asarray(mask).copy()).float()[None, None] / 255


def _masked_picture(
    model: Model, canvas: Canvas, noises: Sequence[Tensor | None], request: Request
) -> Tensor:
    """The extra channels of an inpainting model: the mask, and the picture without what it hides.

    Without a mask all of it is hidden.
    """
    pixels = to_pixels(canvas.image)[None]
    hidden = torch.ones(1, 1, *pixels.shape[-2:])
    if canvas.soft_mask is not None:
        hidden = (_values(canvas.soft_mask) >= 0.5).float()
    seen = encode(model, pixels * (1 - hidden), noises, request)
    return _beside_mask(model, seen, hidden)


def _beside_mask(model: Model, seen: Tensor, hidden: Tensor) -> Tensor:
    """The latents of what is seen with the mask of what is hidden, as a family's network has it.

    `hidden` (1, 1, H, W) is 1 or 0. FLUX.1 Fill has a channel for each of a cell's pixels, last.
    """
    if model.family.sees_mask_pixels:
        mask = functional.pixel_unshuffle(hidden, model.vae.config.factor)
        return torch.cat([seen, mask.to(seen).expand(len(seen), -1, -1, -1)], dim=1)
    mask = functional.interpolate(hidden, tuple(seen.shape[-2:])).to(seen)
    return torch.cat([mask.expand(len(seen), -1, -1, -1), seen], dim=1)


def _extra_of_nothing(model: Model, request: Request) -> Tensor:
    """The extra channels of an inpainting model that paints a whole picture, as in A1111."""
    grey = torch.zeros(1, 3, request.height or 0, request.width or 0)
    seen = encode(model, grey, [None], request)
    return _beside_mask(model, seen, torch.ones_like(grey[:, :1]))


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels (3, H, W) in −1…1, float32, of an RGB image."""
    values = torch.from_numpy(np.asarray(image).copy())  # (H, W, 3)
    return values.permute(2, 0, 1).float() / 127.5 - 1


def encode(
    model: Model,
    pixels: Tensor,
    noises: Sequence[Tensor | None],
    request: Request,
    scaled: bool = True,
) -> Tensor:
    """Latents (B, C, h, w), float32, of pixels (1, 3, H, W): one sampled by each noise, or means.

    Scaled as the network sees them, or as the VAE gives them. By the first way that works: as a
    whole, in tiles, on the CPU. BadRequest for a VAE without encoder; Rejected, OutOfMemory.
    """
    vae = model.vae
    if isinstance(vae, TinyVAE) and vae.encoder is None:
        raise BadRequest(
            "this TAESD has a decoder alone, which reads no picture; choose another --vae"
        )
    size = pixels.shape[-2] * pixels.shape[-1]
    with oom_as_error(READING), vae_in_use(model, size) as tiles:
        spread = _spread(model, pixels, request.tile, tiles)
        if isinstance(vae, TinyVAE):
            return spread.expand(len(noises), -1, -1, -1)
        mean, log_variance = spread.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance)
        sampled = [mean if noise is None else mean + deviation * noise.to(mean) for noise in noises]
        latent = torch.cat(sampled)
        return vae.scaled(latent).float() if scaled else latent


def _spread(model: Model, pixels: Tensor, tile: Tile | None, tiles: int) -> Tensor:
    """Mean and log variance (1, 2·C, h, w) of a picture's unscaled latent; a TAESD's latent."""
    factor = model.vae.config.factor
    down, across = _cells_wrapped(tile, pixels, factor)
    if down or across:
        sides = [across * factor] * 2 + [down * factor] * 2
        pixels = functional.pad(pixels, sides, mode="circular")
    cpu_speed.prepare_vae(model, pixels.shape[-2:])
    spread = first_that_fits(_attempts(model, pixels, tiles), READING)
    height, width = spread.shape[-2] - 2 * down, spread.shape[-1] - 2 * across
    return spread.narrow(-2, down, height).narrow(-1, across, width)


def _cells_wrapped(tile: Tile | None, pixels: Tensor, factor: int) -> tuple[int, int]:
    """Latent cells, down and across, that a seamless picture is continued by for the encoder."""
    height, width = (min(OVERLAP, side // factor) for side in pixels.shape[-2:])
    return height * (HEIGHT in AXES.get(tile, ())), width * (WIDTH in AXES.get(tile, ()))


def _attempts(model: Model, pixels: Tensor, tiles: int) -> Iterator[Callable[[], Tensor]]:
    """The ways to encode, each for when those before it ran out of memory; the later ones warn."""
    memory, device = model.memory, next(model.vae.parameters()).device
    yield lambda: _finite(model, pixels, tiles)
    if memory.tiling == "auto" and not tiles:
        memory.warn(TILED)
        yield lambda: _finite(model, pixels, TILE)
    if device.type != "cpu":
        memory.warn(ON_CPU)
        yield lambda: _on_cpu(model, pixels)


def _on_cpu(model: Model, pixels: Tensor) -> Tensor:
    """Encode by the VAE in main memory and float32."""
    with moved_to(model.vae, CPU, torch.float32):
        return _finite(model, pixels, TILE if model.memory.tiling != "off" else 0)


def _finite(model: Model, pixels: Tensor, tiles: int) -> Tensor:
    """Encode, in float32 if half precision overflows. Rejected if that does, too."""
    return finite_by_vae(model, lambda: _encode(model, pixels, tiles), FLOAT32, BROKEN)


def _encode(model: Model, pixels: Tensor, tiles: int) -> Tensor:
    """Moments in float32, as the VAE gives them."""
    vae, weight = model.vae, next(model.vae.parameters())

    def one(part: Tensor) -> Tensor:
        part = part.to(weight.device, weight.dtype)
        if isinstance(vae, TinyVAE):
            return vae.encode(part).float()
        return vae.spread(part).float()

    overlap = tiles * OVERLAP // TILE
    return encode_tiled(one, pixels, vae.config.factor, tiles, overlap) if tiles else one(pixels)
