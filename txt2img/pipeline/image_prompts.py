"""Pictures as prompts → an IP-Adapter's keys and values, computed once a picture."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from txt2img.diffusion.conditioning import Cond, ImagePrompt, ScheduledCond
from txt2img.images.hint import at_drawn_size
from txt2img.images.input_image import as_mask, load_image
from txt2img.models.ip_adapter import level_masks
from txt2img.models.unet import UNet
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.input_image import ImageRef
from txt2img.request.ip_adapter import IPAdapterUse
from txt2img.system.device.device import Device
from txt2img.system.device.memory import CPU, IMAGE_ENCODER, first_that_fits, oom_as_error
from txt2img.weights.ip_adapters import encoder_for, load_networks
from txt2img.weights.layouts.ip_adapter import IPAdapterFile
from txt2img.weights.model import Model, device_of

MEAN = 0.48145466, 0.4578275, 0.40821073  # of the pictures that CLIP was trained on, by channel
DEVIATION = 0.26862954, 0.26130258, 0.27577711
ON_CPU = "memory is short: an IP-Adapter's pictures are read by the CPU, in float32"
CACHE_SIZE = 16  # pictures' tokens that a model keeps: they come again for other seeds

ImageConds = tuple[ScheduledCond, ...]  # of an image's prompts, its negative last
Pair = tuple[ImagePrompt, ImagePrompt]  # for prompts, and for the negative one
Active = tuple[Pair, list[int]]  # and the steps, from 1, in which it counts


def with_image_prompts(
    model: Model,
    request: Request,
    rules: Rules,
    conds: Sequence[ImageConds],
    steps: int,
) -> list[ImageConds]:
    """Each image's conditions with what IP-Adapters see, in those of so many steps that they ask.

    BadFile, MissingWeights, OutOfMemory.
    """
    masks = [*request.ip_masks, *[None] * len(request.ip_adapters)]
    active: list[Active] = []
    for use, mask in zip(request.ip_adapters, masks, strict=False):
        during = [step for step in range(1, steps + 1) if use.interval.has_step(step - 1, steps)]
        if use.weight and during:
            with oom_as_error("the pictures of an IP-Adapter"):
                cells = None if mask is None else _cells(model, request, rules, mask)
                active.append((_prompts(model, use, cells), during))
    if ON_CPU in model.memory.given:  # from then on tokens may be the CPU's
        model.memory.used[IMAGE_ENCODER] = "cpu, float32"
    late = rules.edits_one_step_late
    when = [during for _, during in active]

    def one(image: ImageConds) -> ImageConds:
        rows = [by_step(part, when, steps, late) for part in image]
        last = len(rows) - 1
        return tuple(
            [(until, _with(cond, [active[n][0][i == last] for n in on])) for until, cond, on in row]
            for i, row in enumerate(rows)
        )

    return list(map(one, conds)) if active else list(conds)


def by_step(
    cond: ScheduledCond, when: Sequence[Sequence[int]], steps: int, late: bool
) -> list[tuple[int, Cond, tuple[int, ...]]]:
    """A prompt's schedule, cut where one of several things begins or ends: which are on.

    Where the text's changes come a step `late`, theirs do not.
    """
    rows: list[tuple[int, Cond, tuple[int, ...]]] = []
    for step in range(1, steps + 1):
        place = step - late
        text = next((part for until, part in cond if place <= until), cond[-1][1])
        uses = tuple(i for i, during in enumerate(when) if step in during)
        if rows and rows[-1][1] is text and rows[-1][2] == uses:
            rows.pop()
        rows.append((place, text, uses))
    return rows


def _with(cond: Cond, prompts: Sequence[ImagePrompt]) -> Cond:
    return replace(cond, image_prompts=tuple(prompts)) if prompts else cond


def _prompts(model: Model, use: IPAdapterUse, mask: Tensor | None) -> Pair:
    """The keys and values of a use's pictures, and those for the negative prompt."""
    state, placement = model.adapters, model.memory.placement
    tokens = [_tokens(model, use, ref) for ref in use.images]
    nothing = _tokens(model, use, None).expand(len(tokens), -1, -1)
    network, _ = load_networks(model, state.ip_adapters[use.model.name])
    assert isinstance(model.network, UNet)
    heads = [attention.heads for attention in model.network.cross_attentions]
    with placement.using("text", network):
        seen, unseen = (
            network.pairs(one.flatten(0, 1)[None], heads, use.weight)
            for one in (torch.cat(tokens), nothing)
        )
    return ImagePrompt(seen, mask), ImagePrompt(unseen, mask)


def _tokens(model: Model, use: IPAdapterUse, ref: ImageRef | None) -> Tensor:
    """A picture's tokens (1, M, C), computed once; without a picture those of the negative prompt.

    That is an embedding of zeros, or the states of CLIP's mean colour, as in diffusers.
    """
    assert use.encoder is not None
    state, placement = model.adapters, model.memory.placement
    key: Hashable = use.model, use.encoder.hash, ref.hash if ref else ""
    if key in state.image_tokens:
        return state.image_tokens[key]
    file = state.ip_adapters[use.model.name]
    states, side = file.config.reads_states, encoder_for(model, file).config.size
    if ref is None:
        pixels = torch.zeros(1, 3, side, side)
    else:
        pixels = pixels_for_clip(load_image(ref, state.paths.images).rgb(), side)
    features = _features(model, file, pixels)
    if ref is None and not states:
        features = torch.zeros_like(features)
    network, _ = load_networks(model, file)
    with placement.using("text", network):
        dtype = next(model.network.parameters()).dtype
        tokens: Tensor = network(features.to(device_of(model), dtype))
    state.image_tokens[key] = tokens
    for old in list(state.image_tokens)[:-CACHE_SIZE]:
        del state.image_tokens[old]
    return tokens


def _features(model: Model, file: IPAdapterFile, pixels: Tensor) -> Tensor:
    """What an IP-Adapter reads of pixels: by the CPU, in float32, where a GPU's memory ends."""
    memory, states, device = model.memory, file.config.reads_states, device_of(model)

    def on_device() -> Tensor:
        _, vision = load_networks(model, file)
        with memory.placement.using("text", vision):
            features: Tensor = vision(pixels, states)
            return features

    def on_cpu() -> Tensor:
        memory.warn(ON_CPU)
        model.image_networks.clear()  # which are on the device
        _, vision = load_networks(model, file, Device(CPU, torch.float32))
        with memory.placement.materialised(vision):
            features: Tensor = vision(pixels, states)
            return features

    ways = [on_device, on_cpu] if device.type != "cpu" else [on_device]
    return first_that_fits(ways, f"the {IMAGE_ENCODER}")


def _cells(model: Model, request: Request, rules: Rules, ref: ImageRef) -> Tensor:
    """A mask at the size of each of the network's maps: (1, P)."""
    paths = model.adapters.paths.images
    image = at_drawn_size(as_mask(load_image(ref, paths)), request, rules, paths)
    values = torch.from_numpy(np.asarray(image, np.float32) / 255)[None, None]
    latent = model.family.latent_size(request, model.vae.config.factor)
    return level_masks(values, latent).to(device_of(model))


def pixels_for_clip(image: Image.Image, side: int) -> Tensor:
    """An RGB picture's middle square as CLIP sees it: (1, 3, side, side), normalised."""
    short = min(image.size)
    width, height = (side * length // short for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, up = (width - side) // 2, (height - side) // 2
    values = np.asarray(image.crop((left, up, left + side, up + side)), np.float32) / 255
    values = (values - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]
