"""Options for the device, its precision and memory, and for a worker that keeps the model."""

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.worker.client import VARIABLE, seconds_in
from txt2img.errors import BadRequest
from txt2img.request.fields import SIDES
from txt2img.request.resolve import AdapterPaths
from txt2img.system.resources import require_address_space
from txt2img.system.text import format_size, parse_size, shown

if TYPE_CHECKING:
    from txt2img.system.device.device import Device
    from txt2img.system.device.memory import MemoryState
    from txt2img.weights.model import Model

CHOICES = {
    "vae_tiling": ("auto", "on", "off"),
    "offload": ("auto", "none", "model", "sequential"),
    "quantize": (None, "int8", "fp8"),
}
LEAST = 250_000_000  # bytes that a process takes which has drawn nothing yet
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        autocompletion=completion.devices,
        help="cuda, mps or cpu (default: the best available).",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        autocompletion=completion.dtypes,
        help="Precision: float32, bf16 or fp16, or one per part: unet=bf16,vae=fp32,text=fp32.",
    ),
]


@dataclass(frozen=True)
class DeviceOptions:
    """Options for the device, the precision and the ways to fit into memory."""

    section: ClassVar = "Device and memory"

    device: DeviceName = None
    dtype: Dtype = None
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory",
            help="Keep weights as they are stored (fp16, fp8) and upcast each when it is used; on "
            "a CPU, load each part only while it is in use.",
        ),
    ] = False
    offload: Annotated[
        str,
        typer.Option(
            "--offload",
            metavar="auto|none|model|sequential",
            help="Bring parts of the model, or of its network block after block (sequential), to "
            "the GPU only while they are in use, and on a CPU into main memory; auto: if memory "
            "is short.",
        ),
    ] = "auto"
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="Stay below this much memory, such as 6GB: of the GPU, or on a CPU of the whole "
            "process. Larger models come block by block.",
        ),
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="int8|fp8",
            help="Quantize the network's matrices to 8 bits: less memory, with small changes to "
            "the picture. Needs torchao.",
        ),
    ] = None
    vae_tiling: Annotated[
        str,
        typer.Option(
            "--vae-tiling",
            metavar="auto|on|off",
            help="Decode in overlapping tiles to save memory; auto: if the picture is large or "
            "memory runs out.",
        ),
    ] = "auto"
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the U-Net for the GPU: about a minute per picture size, cached for later "
            "runs; then each step is faster.",
        ),
    ] = False
    no_optimize: Annotated[
        bool,
        typer.Option(
            "--no-optimize",
            hidden=True,
            help="Compute in plain PyTorch, without faster CPU algorithms and CUDA graphs: the "
            "same picture up to rounding.",
        ),
    ] = False

    def check(self) -> None:
        """Raise BadRequest for values that cannot be, before anything is loaded."""
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                *some, last = [choice for choice in allowed if choice]
                option = f"--{name.replace('_', '-')}"
                raise BadRequest(f"{option} {shown(value)}; choose {', '.join(some)} or {last}")
        if self.memory_limit is not None and self.offload == "none":
            raise BadRequest("--max-memory and --offload none exclude each other; give one")
        if self.quantize and self.low_memory:
            raise BadRequest("--quantize and --low-memory exclude each other; give one")
        if self.compile and self.no_optimize:
            raise BadRequest("--compile and --no-optimize exclude each other; give one")
        if self.quantize and self.offload == "sequential":
            raise BadRequest("--quantize does not work with --offload sequential; use model")

    @property
    def memory_limit(self) -> int | None:
        """The bytes of --max-memory. BadRequest."""
        if self.max_memory is None:
            return None
        try:
            size = parse_size(self.max_memory)
        except ValueError as error:
            raise BadRequest(
                f"--max-memory {shown(self.max_memory)} is no size; write it like 6GB or 800MB"
            ) from error
        if self.max_memory.strip().isdecimal() and size < LEAST:
            raise BadRequest(
                f"--max-memory {shown(self.max_memory)} is in bytes; write {self.max_memory}GB"
            )
        if size < LEAST:
            raise BadRequest(
                f"--max-memory {shown(self.max_memory)}: torch alone takes {format_size(LEAST)}"
            )
        return size

    def load_model(self, name: str, library: AdapterPaths) -> "Model":
        """Load a model with the VAE, components and refiner of a request. Txt2imgError."""
        require_address_space()
        from txt2img.system.device.memory import oom_as_error
        from txt2img.weights.model_cache import MODEL_CACHE
        from txt2img.weights.refiner import add_refiner

        device = self.choose_device()
        with oom_as_error("the model"):
            model = MODEL_CACHE.load(name, device, library.vae, library.overrides)
        model.memory, model.adapters.paths = self.memory(model.memory), library
        if (multiple := max(model.family.size_multiple, SIDES.step)) != library.images.multiple:
            library.images.fit_to(multiple)
        if library.refiner is not None:
            with oom_as_error("the refiner"):
                add_refiner(model, library.refiner, device)
        return model

    def choose_device(self) -> "Device":
        """Choose the device, and how a model is kept there. BadRequest."""
        from txt2img.system.device.device import choose

        return replace(
            choose(self.device, self.dtype),
            low=self.low_memory,
            optimize=not self.no_optimize,
            offload=self.offload,
            max_memory=self.memory_limit,
            quantize=self.quantize,
            compile=self.compile,
        )

    def memory(self, loaded: "MemoryState") -> "MemoryState":
        """The memory settings of a loaded model in this run."""
        from txt2img.system.device.memory import MemoryState

        memory = MemoryState(
            tiling=self.vae_tiling,
            low_memory=loaded.low_memory,
            optimize=loaded.optimize,
            quantized=loaded.quantized,
            placement=loaded.placement,
        )
        for note in loaded.placement.notes:
            memory.warn(note)
        return memory


@dataclass(frozen=True)
class WorkerOptions:
    """Options for a worker that keeps the model loaded; cli/worker/client.py reads them first."""

    section: ClassVar = "Keeping the model loaded"

    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive",
            metavar="TIME",
            help="Keep the model loaded in a worker process for later calls with --keep-alive, "
            f"until TIME after the last: 90s, 10m, 1h. {VARIABLE}=TIME sets it for all calls.",
        ),
    ] = None
    no_keep_alive: Annotated[
        bool,
        typer.Option(
            "--no-keep-alive",
            hidden=True,
            help=f"Draw in this process, whatever {VARIABLE} says.",
        ),
    ] = False

    def check(self) -> None:
        """Raise BadRequest for an invalid time."""
        times = {"--keep-alive": self.keep_alive, VARIABLE: os.environ.get(VARIABLE) or None}
        for name, text in times.items():
            if text is not None and seconds_in(text) is None:
                raise BadRequest(f"{name} takes a time of 1s … 24h like 10m, got {shown(text)}")
