"""A Request and a Model → states → pictures."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from txt2img.diffusion.guidance import Denoise, switch
from txt2img.diffusion.levels import Level, Process
from txt2img.diffusion.samplers import State, sampler_for
from txt2img.diffusion.schedules import SCHEDULES, strided
from txt2img.errors import OutOfMemory, Rejected
from txt2img.models.optimize import cpu
from txt2img.pipeline import cpu_speed
from txt2img.pipeline.decode import pixels_of
from txt2img.pipeline.denoiser import denoiser
from txt2img.pipeline.encode_prompts import encode_prompts
from txt2img.pipeline.noise import fresh_noise, step_noise
from txt2img.request import Request, Sampler
from txt2img.request.compat import rules, starts_at_unit_variance
from txt2img.system.device.device import choose
from txt2img.system.device.memory import CPU, free, moved_to, oom_as_error
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model, device_of
from txt2img.weights.refiner import is_refiner_step, refiner_of, without_adapters

ON_CPU = "Out of memory while drawing, even piecemeal: drawn on the CPU instead"
FLOAT32 = "The model overflowed in half precision: drawn again in float32"
BROKEN = "the model gave numbers that are no picture; try --dtype float32"
MAX_QUEUED_STEPS = (
    2  # steps that a card may have before it: enough that it never waits for the host
)

Way = tuple[torch.device, torch.dtype]  # where and in what precision a network draws


@dataclass(frozen=True)
class Job:
    """Pictures of one shape, ready to be drawn together."""

    requests: tuple[Request, ...]  # filled, one picture each
    levels: list[Level]
    denoise: Denoise
    latent: tuple[int, int, int]  # C, h, w
    device: torch.device
    start: float  # the spread of the noise that is drawn first
    clock: Process | None = None  # the times that the network was trained with

    @property
    def steps(self) -> int:
        """How many states there will be."""
        return len(self.levels) - 1

    @torch.inference_mode()
    def states(self) -> Iterator[State]:
        """The latents (B, C, h, w) after each step. OutOfMemory, or BadRequest for an eta."""
        request = self.requests[0]
        sampler = sampler_for(str(request.sampler), self.clock)
        fresh = fresh_noise(self.requests, self.latent, self.device)
        x = self.start * fresh()
        noise = step_noise(self.requests, self.levels, self.latent, self.device, fresh)
        with oom_as_error(f"{request.width}x{request.height} pixels"):
            if request.eta is None:
                yield from sampler(self.denoise, x, self.levels, noise)
            else:
                yield from sampler(self.denoise, x, self.levels, noise, eta=request.eta)


@torch.inference_mode()
def prepare(model: Model, requests: Sequence[Request], device: torch.device | None = None) -> Job:
    """The job that draws filled requests of one shape together, on `device` or where the model is.

    Raises BadRequest, OutOfMemory.
    """
    first = requests[0]
    assert all(batch_key(request) == batch_key(first) for request in requests)
    device = device or device_of(model)

    # 1. Size: the VAE makes one latent cell of factor x factor pixels.
    latent = latent_shape(model, first)

    # 2. LoRAs and learnt words; prompts → conditions, the two of a picture in as many chunks.
    conds = encode_prompts(model, requests)

    # 3. Steps → levels, from noise to picture.
    levels = noise_levels(model, first)

    # 4. Network and conditions → a denoiser.
    process = model.family.process.build()
    denoise = denoiser(model, requests, conds, levels, device)
    start = initial_noise_scale(first, levels, process)
    return Job(tuple(requests), levels, denoise, latent, device, start, process)


def with_refiner(model: Model, requests: Sequence[Request], way: Way, stack: ExitStack) -> Job:
    """The same, the last steps by the model's refiner where the requests want that.

    `way` is where and in what precision the networks draw; the stack holds the one that does.
    """
    job, switch_at = prepare(model, requests, way[0]), requests[0].refiner_switch
    if requests[0].refiner is None:
        return job
    process = model.family.process.build()

    def take_turn() -> Denoise:
        other = refiner_of(model)
        stack.close()  # where memory is short, the first network leaves before the other comes
        made = prepare(other, without_adapters(requests), way[0])
        stack.enter_context(ready_to_draw(other, made, *way))
        return made.denoise

    later = switch(job.denoise, take_turn, lambda level: is_refiner_step(process, level, switch_at))
    return replace(job, denoise=later)


def initial_noise_scale(request: Request, levels: Sequence[Level], process: Process) -> float:
    """How far the noise that is drawn first spreads, by the rules that a request is drawn by."""
    top = levels[0].ratio >= process.entry(process.steps - 1).ratio * (1 - 1e-5)
    return 1.0 if starts_at_unit_variance(rules(request), request, top) else levels[0].sigma


def sample(model: Model, requests: Sequence[Request]) -> Iterator[State]:
    """The states of filled requests of one shape; the last one is the pictures' latents.

    A single picture that overflows in half precision begins again in float32, one for which
    memory is short on the CPU, so that its bits are those of a run that began like that; the
    states then begin again too. Raises as `prepare` and `Job.states` do.
    """
    own, own_dtype = device_of(model), next(model.network.parameters()).dtype
    device, dtype = own, own_dtype
    for key in ("unet", "batch"):
        model.memory.used.pop(key, None)
    if len(requests) > 1 and own.type != "cpu":
        model.memory.used["batch"] = str(len(requests))  # a card's last bits depend on it
    while True:
        try:
            with oom_as_error("the model"), ExitStack() as stack:
                job = with_refiner(model, requests, (device, dtype), stack)
                stack.enter_context(ready_to_draw(model, job, device, dtype))
                ahead: deque[torch.cuda.Event] = deque()
                for state in job.states():
                    if state.step in (1, job.steps):  # each look makes a card wait for the host
                        check_finite(state.x)
                    limit_queue(state.x, ahead)
                    yield state
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
        model.memory.used["unet"] = "float32" if device == own else "cpu, float32"


@contextmanager
def ready_to_draw(
    model: Model, job: Job, device: torch.device, dtype: torch.dtype
) -> Iterator[None]:
    """The network where and in the precision that it is to draw a job in, made quick for it."""
    placement, network = model.memory.placement, model.network
    own = device_of(model), next(network.parameters()).dtype
    if placement.mode != "none":
        cpu.restore(network)  # layers that come one by one keep the forwards that they have
    with ExitStack() as stack:
        if (device, dtype) == own:
            stack.enter_context(placement.using("unet", network))
        else:
            stack.enter_context(placement.materialised(network))
            stack.enter_context(moved_to(network, device, dtype))
        cpu_speed.prepare_unet(model, job.requests[0], job.latent)
        if ratio := job.requests[0].token_merging:
            stack.callback(network.merge_tokens, 0.0)
            network.merge_tokens(ratio)
        if model.graphed:
            model.graphed.check()
        yield


def limit_queue(x: Tensor, ahead: deque[torch.cuda.Event]) -> None:
    """Wait until a card has all but AHEAD of the steps that it was given; x is the last one's.

    A host that has given it all of them tells steps that are not done, and heeds no signal.
    """
    if not x.is_cuda:
        return
    ahead.append(torch.cuda.Event())
    ahead[-1].record(torch.cuda.current_stream(x.device))
    if len(ahead) > MAX_QUEUED_STEPS:
        ahead.popleft().synchronize()


def check_finite(x: Tensor) -> None:
    """Raise Rejected for latents that no picture can be made of."""
    if not bool(torch.isfinite(x).all()):
        raise Rejected(BROKEN)


def batch_key(request: Request) -> Request:
    """What requests must share to be drawn together: all but words and seed."""
    words = replace(request, prompt="", negative="", template="", negative_template="")
    return replace(words, seed=0, subseed=None)


def latent_shape(model: Model, request: Request) -> tuple[int, int, int]:
    """C, h, w of a filled request's latents. BadRequest if the model cannot draw it."""
    vae = model.vae.config
    return vae.latent_channels, *model.family.cells(request, vae.factor)


def noise_levels(model: Model, request: Request) -> list[Level]:
    """The levels of a filled request, from noise to picture. BadRequest for too many steps."""
    process, found, steps = model.family.process.build(), rules(request), request.steps or 0
    if found.old_ddim and request.sampler is Sampler.DDIM:
        return strided(process, steps)
    if request.sampler in found.without_penultimate:
        levels = SCHEDULES[str(request.schedule)](process, steps + 1)
        return [*levels[:-2], levels[-1]]
    return SCHEDULES[str(request.schedule)](process, steps)


@torch.inference_mode()
def decode(model: Model, x: Tensor) -> list[Image.Image]:
    """The pictures of latents (B, C, h, w). Rejected if they are broken, OutOfMemory."""
    check_finite(x)
    there = x.to(device_of(model))  # what a card had no room for was drawn on the CPU
    return [to_image(picture) for picture in pixels_of(model, there)]


def images_of(model: Model, requests: Sequence[Request]) -> list[Image.Image]:
    """The pictures of filled requests of one shape. Raises as `sampled` and `decode` do."""
    [last] = deque(sample(model, requests), maxlen=1)
    return decode(model, last.x)


def to_image(pixels: Tensor) -> Image.Image:
    """The picture of pixels (3, H, W) in −1…1."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def generate(request: Request, model: Model | None = None) -> list[Image.Image]:
    """All pictures of a request, its i-th with seed + i; the model is loaded unless given."""
    model = load(request.model, choose()) if model is None else model
    filled = resolve_adapters(model, request).seeded().filled(model.family.defaults)
    images: list[Image.Image] = []
    for i in range(filled.count):
        images += images_of(model, [filled.nth(i)])
    return images
