"""A Request and a Model → states → pictures.

On a CPU every picture goes through the networks by itself, so that its bits do not depend on the
pictures beside it; on other devices a batch is one pass.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import torch
from PIL import Image
from torch import Tensor

from txt2img.device import choose
from txt2img.diffusion.guidance import Cond, Denoise, guided, predictor
from txt2img.diffusion.levels import Level
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.samplers import SAMPLERS, State
from txt2img.diffusion.schedules import SCHEDULES
from txt2img.errors import BadRequest, OutOfMemory, Rejected
from txt2img.models import prepared
from txt2img.request import Request, size_problem
from txt2img.weights.families import Family
from txt2img.weights.load import Model, load
from txt2img.weights.wear import ready, wear


@dataclass(frozen=True)
class Job:
    """Pictures of one shape, ready to be drawn together."""

    requests: tuple[Request, ...]  # filled, one picture each
    levels: list[Level]
    denoise: Denoise
    latent: tuple[int, int, int]  # C, h, w
    device: torch.device

    @property
    def steps(self) -> int:
        """How many states there will be."""
        return len(self.levels) - 1

    @torch.inference_mode()
    def states(self) -> Iterator[State]:
        """The latents (B, C, h, w) after each step. OutOfMemory, or BadRequest for an eta."""
        request = self.requests[0]
        sampler = SAMPLERS[str(request.sampler)]
        noise = fresh_noise(self.requests, self.latent, self.device)
        x = self.levels[0].sigma * noise()
        with room_for(f"{request.width}x{request.height} pixels"):
            if request.eta is None:
                yield from sampler(self.denoise, x, self.levels, noise)
            else:
                yield from sampler(self.denoise, x, self.levels, noise, eta=request.eta)


@torch.inference_mode()
def prepare(model: Model, requests: Sequence[Request]) -> Job:
    """The job that draws filled requests of one shape together. BadRequest, OutOfMemory."""
    first = requests[0]
    assert all(shape(request) == shape(first) for request in requests)
    device = next(model.network.parameters()).device

    # 1. Size: the VAE makes one latent cell of factor x factor pixels. Then LoRAs and learnt words.
    latent = latent_shape(model, first)
    wear(model, first)
    prepared.prepare(model.network)
    prepared.prepare(model.vae)

    # 2. Prompts → conditions, the two of a picture in equally many chunks.
    with room_for("the prompts"):
        conds = [encode(model, request) for request in requests]

    # 3. Steps → levels, from noise to picture.
    levels = noise_levels(model, first)

    # 4. Network and conditions → a denoiser, picture by picture on a CPU.
    process = model.family.process.build()
    predict = predictor(model.network, process, PREDICTIONS[model.family.prediction])

    def look(part: slice, together: bool = True) -> Denoise:
        positive = join([wanted for wanted, _ in conds[part]])
        negative = join([unwanted for _, unwanted in conds[part]])
        scale, rescale = first.cfg or 0.0, first.cfg_rescale
        return guided(predict, lambda _: positive, lambda _: negative, scale, together, rescale)

    singles = [slice(i, i + 1) for i in range(len(conds))]
    parts = singles if device.type == "cpu" else alike(conds)
    fast = side_by_side([(part, look(part)) for part in parts])
    slow = side_by_side([(part, look(part, together=False)) for part in singles])
    return Job(tuple(requests), levels, thrifty(fast, slow), latent, device)


def shape(request: Request) -> Request:
    """What requests must share to be drawn together: all but words and seed."""
    return replace(request, prompt="", negative="", seed=0, template="", negative_template="")


def latent_shape(model: Model, request: Request) -> tuple[int, int, int]:
    """C, h, w of a filled request's latents.

    BadRequest names the nearest sizes, or what the model needs beside words.
    """
    check_words_do(model.family)
    factor = model.vae.config.factor
    height, width = request.height or 0, request.width or 0
    for name, pixels in (("height", height), ("width", width)):
        if pixels % factor:
            raise BadRequest(size_problem(name, pixels, factor))
    return model.vae.config.latent_channels, height // factor, width // factor


def noise_levels(model: Model, request: Request) -> list[Level]:
    """The levels of a filled request, from noise to picture. BadRequest for too many steps."""
    return SCHEDULES[str(request.schedule)](model.family.process.build(), request.steps or 0)


def check_words_do(family: Family) -> None:
    """Raise BadRequest for a model that draws from more than words."""
    if family.needs:
        raise BadRequest(
            f"this model ({family.name}) needs {family.needs} beside the prompt, which is not "
            "supported yet; choose another with --model"
        )


def encode(model: Model, request: Request) -> tuple[Cond, Cond]:
    """The conditions of prompt and negative prompt, each of a batch of 1."""
    chunks = max(model.text.chunks(request.prompt), model.text.chunks(request.negative))
    positive = model.text.encode([request.prompt], chunks)
    negative = model.text.encode([request.negative], chunks)
    if model.family.silent and not request.negative:
        negative = negative.silent()
    return sized(positive, model.family, request, True), sized(
        negative, model.family, request, False
    )


def sized(cond: Cond, family: Family, request: Request, wanted: bool) -> Cond:
    """The condition with the sizes that a family is told beside words, if it is."""
    sizes = family.sizes(request.height or 0, request.width or 0, wanted)
    if not sizes:
        return cond
    return replace(cond, extra=torch.tensor([sizes], device=cond.tokens.device))


def join(conds: Sequence[Cond]) -> Cond:
    """Conditions as one batch."""
    joined = conds[0]
    for cond in conds[1:]:
        joined = joined.join(cond)
    return joined


def alike(conds: Sequence[tuple[Cond, Cond]]) -> list[slice]:
    """The longest runs of conditions that are equally long, so that they fit in one batch."""
    groups = groupby(conds, key=lambda pair: pair[0].tokens.shape[1])
    ends = [0]
    for _, group in groups:
        ends.append(ends[-1] + len(list(group)))
    return [slice(start, end) for start, end in pairwise(ends)]


def side_by_side(parts: Sequence[tuple[slice, Denoise]]) -> Denoise:
    """One denoiser of several, each for its part of the batch."""
    return lambda x, level: torch.cat([denoise(x[part], level) for part, denoise in parts])


def thrifty(fast: Denoise, slow: Denoise) -> Denoise:
    """`fast` until memory is short, from then on `slow`."""
    short = False

    def denoise(x: Tensor, level: Level) -> Tensor:
        nonlocal short
        if not short:
            try:
                return fast(x, level)
            except torch.OutOfMemoryError:
                short = True
        free()
        return slow(x, level)

    return denoise


def fresh_noise(
    requests: Sequence[Request], latent: tuple[int, int, int], device: torch.device
) -> Callable[[], Tensor]:
    """Noise (B, C, h, w), float32, another at each call; each picture's comes from its own seed.

    It is drawn on the CPU, one picture at a time, so that it is the same on every device and in
    every batch.
    """
    generators = [torch.Generator().manual_seed(request.seed or 0) for request in requests]
    return lambda: torch.stack([torch.randn(latent, generator=g) for g in generators]).to(device)


@torch.inference_mode()
def decode(model: Model, x: Tensor) -> list[Image.Image]:
    """The pictures of latents (B, C, h, w). Rejected if they are broken, OutOfMemory."""
    if not bool(torch.isfinite(x).all()):
        raise Rejected("the model gave numbers that are no picture; try --dtype float32")
    batches = one_by_one(x) if x.device.type == "cpu" else [x]
    try:
        pixels = [decoded(model, batch) for batch in batches]
    except torch.OutOfMemoryError:
        pixels = []
    if not pixels:
        free()
        with room_for("decoding the picture"):
            pixels = [decoded(model, one) for one in one_by_one(x)]
    return [to_image(picture) for picture in torch.cat(pixels)]


def one_by_one(x: Tensor) -> list[Tensor]:
    """A batch (B, …) as B batches (1, …)."""
    return [x[i : i + 1] for i in range(len(x))]


def decoded(model: Model, x: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) of latents; in float32 if half precision overflows, else Rejected."""
    pixels = model.vae.decode(x)
    if bool(torch.isfinite(pixels).all()):
        return pixels
    dtype = next(model.vae.parameters()).dtype
    if dtype != torch.float32:
        model.vae.float()
        try:
            pixels = model.vae.decode(x)
        finally:
            model.vae.to(dtype)
    if not bool(torch.isfinite(pixels).all()):
        raise Rejected("the decoder gave numbers that are no picture; nothing was saved")
    return pixels


def to_image(pixels: Tensor) -> Image.Image:
    """The picture of pixels (3, H, W) in −1…1."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def generate(request: Request, model: Model | None = None) -> list[Image.Image]:
    """All pictures of a request, its i-th with seed + i; the model is loaded unless given."""
    model = load(request.model, choose()) if model is None else model
    filled = ready(model, request).seeded().filled(model.family.defaults)
    images: list[Image.Image] = []
    for i in range(filled.count):
        [last] = deque(prepare(model, [filled.nth(i)]).states(), maxlen=1)
        images += decode(model, last.x)
    return images


def free() -> None:
    """Give unused memory back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Turn the device's lack of memory into OutOfMemory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            f"the device has not enough memory for {what}; choose a smaller size, "
            "--batch-size 1 or --device cpu"
        ) from error
