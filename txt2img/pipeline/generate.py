"""A Request and a Model → images, in five stations.

`prepare`: 1. prompts → conditions, 2. steps → levels, and a picture to begin from → latents,
3. network → denoiser. `sample`: 4. noise → latents. `decode`: 5. latents → images.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from PIL import Image
from torch import Tensor, nn

from txt2img.diffusion.guidance import Control, Denoise, switch
from txt2img.diffusion.levels import Level, Process, State
from txt2img.diffusion.samplers import sampler_for
from txt2img.diffusion.schedules import given, schedule_for, strided
from txt2img.errors import OutOfMemory, Rejected
from txt2img.images.canvas import canvas_of, larger_canvas
from txt2img.models.seamless import seamless
from txt2img.pipeline import cpu_speed
from txt2img.pipeline.decode import pixels_of, to_image
from txt2img.pipeline.denoiser import ImageConds, denoiser
from txt2img.pipeline.encode_prompts import encode_prompts
from txt2img.pipeline.estimates import activations
from txt2img.pipeline.init_image import InitImage, init_image, starts_from_noise
from txt2img.pipeline.noise import (
    fresh_noise,
    initial_noise_scale,
    starting_level,
    step_noise,
)
from txt2img.pipeline.preview import Previewer
from txt2img.pipeline.result import GeneratedImage
from txt2img.request import Request, compat
from txt2img.request.compat import Rules
from txt2img.request.hires import (
    second_pass,
    second_rules,
    second_steps,
    without_hires,
)
from txt2img.request.sampling import parse_sigmas
from txt2img.system.device.memory import CPU, IMAGE_ENCODER, free, moved_to, oom_as_error
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.families import check_transparent
from txt2img.weights.load import load
from txt2img.weights.model import Model, device_of, has_alpha, origin
from txt2img.weights.refiner import is_refiner_step, refiner_of, without_adapters

ON_CPU = "Out of memory while drawing, even piecemeal: drawn on the CPU instead"
FLOAT32 = "The model overflowed in half precision: drawn again in float32"
BROKEN = "the model gave numbers that are no picture; "
LESS = "use a smaller --cfg, and smaller weights of words and LoRAs"
MAX_QUEUED_STEPS = 2  # of a GPU: enough that it never waits for the host


@dataclass(frozen=True)
class Job:
    """Images with one batch key, ready to be sampled together."""

    requests: tuple[Request, ...]  # filled, one an image
    rules: Rules
    process: Process
    levels: list[Level]
    denoise: Denoise
    latent: tuple[int, int, int]  # C, h, w
    device: torch.device
    noise_scale: float  # the standard deviation of the initial noise
    init: InitImage | None = None  # what the images begin from, besides noise
    init_scale: float = 0.0  # its factor

    @property
    def steps(self) -> int:
        """The number of states to come."""
        return len(self.levels) - 1

    def states(self) -> Iterator[State]:
        """Start the sampler: one state (B, C, h, w) a step. BadRequest for an eta."""
        request, init = self.requests[0], self.init
        sampler = sampler_for(str(request.sampler), self.process, self.rules.program)
        if request.eta is not None:
            sampler = partial(sampler, eta=request.eta)
        skipped = (0, 0) if init is None else init.draws
        fresh = fresh_noise(self.requests, self.rules, self.latent, self.device, skipped)
        noise = step_noise(self.requests, self.rules, self.levels, self.latent, self.device, fresh)
        first = fresh()
        x = self.noise_scale * first
        if init is None:
            return sampler(self.denoise, x, self.levels, noise)
        if self.init_scale:
            x = x.add_(init.start(first), alpha=self.init_scale)
        how = self.process, self.rules, self.levels, request.sampler
        denoise = init.keeping(self.denoise, first, *how)
        return init.kept(sampler(denoise, x, self.levels, noise), self.rules, self.steps)


@dataclass(frozen=True)
class Progress(State):
    """The latents of a batch after a step: x, and x0, the clean latents that it points to."""

    steps: int
    requests: tuple[Request, ...] = field(repr=False)  # filled, one an image
    model: Model = field(repr=False)
    previewer: Callable[[], Previewer] = field(repr=False)  # made at the first preview

    def preview(self) -> Image.Image:
        """The first image as it may become: coarse, one pixel a latent cell, and fast."""
        return self.previewer().images(self.x0[:1], self.requests[0].tile)[0]

    def images(self) -> list[GeneratedImage]:
        """Decode the latents: after the last step, the finished images. Rejected, OutOfMemory."""
        images = finished_images(self.model, self.x, self.requests)
        made_by = origin(self.model, self.model.memory.used)
        return [
            GeneratedImage(image, latent, request, made_by)
            for image, latent, request in zip(images, self.x, self.requests, strict=True)
        ]


def generate(request: Request, model: Model | None = None) -> list[GeneratedImage]:
    """Draw all images of a request, its i-th with seed + i; the model is loaded unless given."""
    ends = (state for state in stream(request, model) if state.step == state.steps)
    return [image for end in ends for image in end.images()]


def stream(request: Request, model: Model | None = None) -> Iterator[Progress]:
    """Draw a request's images one after the other, and yield each step of them.

    Where memory or half precision does not suffice, the steps of an image begin again.
    """
    model = load(request.model) if model is None else model
    filled = resolve_adapters(model, request).seeded().filled(model.family.defaults)
    for i in range(filled.count):
        yield from sample(model, [filled.nth(i)])


@torch.inference_mode()
def prepare(
    model: Model,
    requests: Sequence[Request],
    device: torch.device | None = None,
    init: InitImage | None = None,
    rules: Rules | None = None,  # others than the requests'
) -> Job:
    """Prepare filled requests of one batch key for sampling, on `device` or where the model is.

    `init` is what they begin from, if it is encoded already. BadRequest, BadFile, OutOfMemory.
    """
    first = requests[0]
    assert all(batch_key(request) == batch_key(first) for request in requests)
    device, rules = device or device_of(model), rules or compat.rules(first)
    check_transparent(has_alpha(model), model.name, first)

    # 1. Prompts → conditions, with LoRAs and embeddings applied.
    conds = conditions(model, requests, rules)

    # 2. Steps → levels, from noise to image; pixels → the VAE's latent cells.
    levels, latent = noise_levels(model, first, rules), latent_shape(model, first)

    # 2b. A picture to begin from → its latents, noised to a later level.
    drawn = compat.steps_of(first, rules).drawn
    top, levels = starting_level(first, rules, levels, drawn), levels[len(levels) - 1 - drawn :]
    from_noise = True
    if first.image is not None or model.family.inpaints:
        init = init or init_image(model, requests, rules, latent, device)
        from_noise = init.latent is None or starts_from_noise(model, first, rules, init.has_mask)

    # 3. Network, conditions and ControlNets → a denoiser.
    process, control = model.family.process.build(), control_of(model, first, rules, levels)
    extra = init.extra if init else None
    denoise = denoiser(model, requests, rules, conds, levels, device, extra, control)
    scales = initial_noise_scale(process, first, rules, top, from_noise), init, top.alpha
    job = Job(tuple(requests), rules, process, levels, denoise, latent, device, *scales)
    return replace(job, init_scale=0.0) if from_noise else job


def control_of(
    model: Model, request: Request, rules: Rules, levels: Sequence[Level]
) -> Control | None:
    """What the ControlNets of filled requests like this one add to each pass; None without any."""
    if not request.controls:
        return None
    from txt2img.pipeline.control import controls_of

    return controls_of(model, request, rules, levels)


def conditions(model: Model, requests: Sequence[Request], rules: Rules) -> list[ImageConds]:
    """What the network is told: each image's prompts, with the reference pictures' latents."""
    conds = encode_prompts(model, requests, rules)
    if not requests[0].references:
        return conds
    from txt2img.pipeline.references import with_references

    return with_references(model, requests[0], conds)


def sample(model: Model, requests: Sequence[Request]) -> Iterator[Progress]:
    """Yield the states of filled requests of one batch key; the last one has the images' latents.

    A single image that overflows in half precision begins again in float32, one for which memory
    is short on the CPU: its bits are those of a run that began like that. Raises as `prepare`.
    """
    own_device, own_dtype = device_of(model), next(model.network.parameters()).dtype
    device, dtype = own_device, own_dtype
    component = model.family.network.component
    for key in (component, "batch", IMAGE_ENCODER):
        model.memory.used.pop(key, None)
    if len(requests) > 1 and device.type != "cpu":
        model.memory.used["batch"] = str(len(requests))  # a GPU's last bits depend on it
    while True:
        try:
            with oom_as_error("the model"):
                yield from draw_passes(model, requests, device, dtype)
            return
        except Rejected:
            if len(requests) > 1 or dtype == torch.float32:
                raise
            dtype, line = torch.float32, FLOAT32
        except OutOfMemory:
            if len(requests) > 1 or device.type == "cpu":
                raise
            device, dtype, line = CPU, torch.float32, ON_CPU
        free()
        model.memory.warn(line)
        model.memory.used[component] = "float32" if device == own_device else "cpu, float32"


def draw_passes(
    model: Model, requests: Sequence[Request], device: torch.device, dtype: torch.dtype
) -> Iterator[Progress]:
    """The states of one pass, or of two of which the second is larger. Raises as `prepare`."""
    if not requests[0].has_hires:
        yield from draw_pass(model, requests, device, dtype)
        return
    from txt2img.pipeline.hires import enlarge

    rules, later = second_rules(requests[0]), second_steps(requests[0])
    for first in draw_pass(model, [without_hires(request) for request in requests], device, dtype):
        steps = first.steps + later
        if first.step < steps:
            yield replace(first, steps=steps, requests=tuple(requests))
    init = enlarge(model, requests, first.x, rules)
    larger = [second_pass(request) for request in requests]
    for state in draw_pass(model, larger, device, dtype, init, rules):
        yield replace(state, step=first.step + state.step, steps=steps, requests=tuple(requests))


def draw_pass(
    model: Model,
    requests: Sequence[Request],
    device: torch.device,
    dtype: torch.dtype,
    init: InitImage | None = None,
    rules: Rules | None = None,
) -> Iterator[Progress]:
    """The states of one pass; the last one once the network has left its device."""
    with ExitStack() as stack:
        job = with_refiner(model, requests, device, dtype, stack, init, rules)
        stack.enter_context(ready_to_draw(model, job, device, dtype))
        for progress in steps_of_job(model, job):
            if progress.step < job.steps:
                yield progress
    yield progress


def steps_of_job(model: Model, job: Job) -> Iterator[Progress]:
    """The states of a job; of one without steps, what it begins from. Rejected, OutOfMemory."""
    batch = job.steps, job.requests, model, cache(partial(Previewer, model))
    if not job.steps:
        # Of no use but to a second pass: the picture stays.
        start = None if job.init is None else job.init.latent
        latent = torch.zeros(len(job.requests), *job.latent) if start is None else start
        yield Progress(0, latent, latent, *batch)
        return
    states, queued = job.states(), deque[torch.cuda.Event]()
    while state := next_state(states, job.requests[0]):
        if state.step in (1, job.steps):  # each check makes the host wait for a GPU
            check_finite(model, state.x)
        limit_queue(state.x, queued)
        yield Progress(state.step, state.x, state.x0, *batch)


@torch.inference_mode()
def next_state(states: Iterator[State], request: Request) -> State | None:
    """Take one step of a sampler; None after the last. OutOfMemory."""
    with oom_as_error(f"{request.width}x{request.height} pixels"):
        return next(states, None)


def with_refiner(
    model: Model,
    requests: Sequence[Request],
    device: torch.device,
    dtype: torch.dtype,
    stack: ExitStack,
    init: InitImage | None = None,
    rules: Rules | None = None,
) -> Job:
    """Prepare requests for a device and dtype; the model's refiner takes the last steps if asked.

    The stack holds the network in use: where memory is short, the first leaves before the other
    comes.
    """
    job = prepare(model, requests, device, init, rules)
    switch_at = requests[0].refiner_switch
    if requests[0].refiner is None:
        return job

    def make_second() -> Denoise:
        refiner = refiner_of(model)
        stack.close()
        last_steps = prepare(refiner, without_adapters(requests), device, job.init, rules)
        stack.enter_context(ready_to_draw(refiner, last_steps, device, dtype))
        return last_steps.denoise

    denoise = switch(
        job.denoise, make_second, lambda at: is_refiner_step(job.process, at, switch_at)
    )
    return replace(job, denoise=denoise)


@contextmanager
def ready_to_draw(
    model: Model, job: Job, device: torch.device, dtype: torch.dtype
) -> Iterator[None]:
    """Place the network on a device, in a dtype, and optimise it for a job."""
    placement, networks = model.memory.placement, networks_of(model, job.requests[0])
    loaded_as = device_of(model), next(model.network.parameters()).dtype
    with ExitStack() as stack:
        for network in reversed(networks):  # the model's takes what room the others leave
            if (device, dtype) == loaded_as:
                needed = partial(network_bytes, model, job)
                stack.enter_context(placement.using("network", network, needed))
            else:
                stack.enter_context(placement.materialised(network))
                stack.enter_context(moved_to(network, device, dtype))
        cpu_speed.prepare_network(model, job.requests[0], job.latent, networks)
        for network in networks if job.requests[0].tile else ():
            stack.enter_context(seamless(network, job.requests[0].tile))
        if text := job.requests[0].freeu:
            from txt2img.models.freeu import freeu

            stack.enter_context(freeu(model.network, text, job.rules.program))
        if model.graphed:
            model.graphed.drop_stale()
        yield


def network_bytes(model: Model, job: Job) -> int:
    """Estimated bytes that a pass of a job takes besides weights; images on a CPU go singly."""
    rows = 1 if job.requests[0].cfg == 1 else 2
    images = 1 if device_of(model).type == "cpu" else len(job.requests)
    itemsize = next(model.network.parameters()).dtype.itemsize
    cells = job.latent[1] * job.latent[2]
    return activations.of_network(model.family.network, cells, rows * images, itemsize)


def networks_of(model: Model, request: Request) -> list[nn.Module]:
    """The network of a model, and the ControlNets of a filled request."""
    if not request.controls:
        return [model.network]
    from txt2img.weights.control import control_networks

    return [model.network, *control_networks(model, request.controls)]


def limit_queue(x: Tensor, queued: deque[torch.cuda.Event]) -> None:
    """Wait until a GPU has done all but MAX_QUEUED_STEPS of its steps; x is the last one's.

    Without this the host would report steps that are not done, and react late to signals.
    """
    if not x.is_cuda:
        return
    queued.append(torch.cuda.Event())
    queued[-1].record(torch.cuda.current_stream(x.device))
    if len(queued) > MAX_QUEUED_STEPS:
        queued.popleft().synchronize()


def check_finite(model: Model, x: Tensor) -> None:
    """Raise Rejected for latents that no image can be made of."""
    if not bool(torch.isfinite(x).all()):
        is_exact = next(model.network.parameters()).dtype == torch.float32
        raise Rejected(BROKEN + (LESS if is_exact else "try --dtype float32"))


def batch_key(request: Request) -> Request:
    """The settings that requests of one batch must share: all but the prompts and seeds.

    A sampler whose steps depend on the picture shares nothing.
    """
    if request.sampler is not None and request.sampler.per_picture:
        return request
    words = request.changed(prompt="", negative="", template="", negative_template="")
    return words.changed(seed=0, subseed=None)


def latent_shape(model: Model, request: Request) -> tuple[int, int, int]:
    """C, h, w of a filled request's latents. BadRequest if the model cannot draw that size."""
    vae = model.vae.config
    return vae.latent_channels, *model.family.latent_size(request, vae.factor)


def latent_shapes(model: Model, request: Request) -> list[tuple[int, int, int]]:
    """The shape of a filled request's latents in each of its passes. BadRequest."""
    passes = [request, second_pass(request)] if request.has_hires else [request]
    return [latent_shape(model, one) for one in passes]


def check_drawable(model: Model, request: Request) -> None:
    """Raise BadRequest if the model cannot draw a filled request.

    Its sizes, its number of steps, or transparency may be what the model has not.
    """
    check_transparent(has_alpha(model), model.name, request)
    latent_shapes(model, request)
    noise_levels(model, request, compat.rules(request))
    if request.has_hires:
        noise_levels(model, second_pass(request), second_rules(request))


def noise_levels(model: Model, request: Request, rules: Rules) -> list[Level]:
    """The levels of a filled request's whole schedule. BadRequest for too many steps."""
    steps, (_, height, width) = compat.steps_of(request, rules).total, latent_shape(model, request)
    tokens = height * width // model.family.network.multiple**2
    process = model.family.process.build(tokens, steps)
    if request.sigmas is not None:
        return given(process, parse_sigmas(request.sigmas))
    schedule = schedule_for(str(request.schedule), rules.program, model.family.is_xl)
    if compat.follows_old_ddim(request, rules):
        return strided(process, steps)
    if request.sampler in rules.without_penultimate:
        levels = schedule(process, steps + 1)
        return [*levels[:-2], levels[-1]]
    return schedule(process, steps)


@torch.inference_mode()
def decode(model: Model, x: Tensor, request: Request | None = None) -> list[Image.Image]:
    """Decode latents (B, C, h, w) of filled requests like `request` to the finished images.

    Where no step was drawn it is the picture that they began from. Rejected if the latents are not
    finite, OutOfMemory, BadFile.
    """
    check_finite(model, x)
    canvas, tile = None, request.tile if request else None
    if request and request.image:
        rules, made = compat.rules(request), larger_canvas if request.has_hires else canvas_of
        canvas = made(request, rules, model.adapters.paths.images)
        if not (request.has_hires or compat.steps_of(request, rules).drawn):
            return [canvas.untouched for _ in x]
    here = x.to(device_of(model))  # what a GPU had no room for was drawn on the CPU
    pixels, transparent = pixels_of(model, here, tile), request is not None and request.transparent
    if request is None or (pixels.shape[1] == 3 and not transparent):
        drawn = [to_image(one) for one in pixels]
    else:
        from txt2img.pipeline.transparency import image_of

        drawn = [image_of(one, request) for one in pixels]
    return [canvas.finish(image) for image in drawn] if canvas else drawn


def finished_images(model: Model, x: Tensor, requests: Sequence[Request]) -> list[Image.Image]:
    """Decode latents (B, C, h, w), and upscale the images of requests that ask for it.

    Raises as `decode` and `upscale_image` do.
    """
    images = decode(model, x, requests[0])
    if requests[0].upscale is None:
        return images
    from txt2img.pipeline.upscale import upscale_for

    pairs = zip(requests, images, strict=True)
    steps = [deque(upscale_for(model, request, image), 1)[0] for request, image in pairs]
    return [step.image for step in steps if step.image is not None]


def images_of(model: Model, requests: Sequence[Request]) -> list[Image.Image]:
    """Draw filled requests of one batch key. Raises as `sample` and `decode` do."""
    [last] = deque(sample(model, requests), maxlen=1)
    return finished_images(model, last.x, requests)
