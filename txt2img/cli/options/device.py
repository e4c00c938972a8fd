"""The options for where and how exactly to compute, and for what a run may do to fit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli.options import types
from txt2img.errors import BadRequest
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.system.device.device import Device
    from txt2img.system.device.memory import MemoryState

CHOICES = {
    "vae_tiling": ("auto", "on", "off"),
    "offload": ("auto", "none", "model", "sequential"),
    "quantize": (None, "int8", "fp8"),
}
VaeTiling = Annotated[
    str,
    typer.Option(
        "--vae-tiling",
        metavar="auto|on|off",
        help="Decode in overlapping tiles, which takes little memory; auto: if the picture is "
        "large or memory runs out.",
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Keep weights in memory as they are stored (fp16, fp8), each upcast when used; on a "
        "CPU each part only while it is in use.",
    ),
]
Offload = Annotated[
    str,
    typer.Option(
        "--offload",
        metavar="auto|none|model|sequential",
        help="What waits in main memory for its turn on the card: nothing, parts of the model, "
        "or single layers; auto: by what is free.",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="int8|fp8",
        help="Make the U-Net's linear weights 8 bits narrow: less memory, slightly other pixels. "
        "Needs torchao.",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the U-Net for the card: about a minute for each size, kept for later runs; "
        "then each step is quicker.",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", help="Say where, in how many threads and how exactly it computes."),
]


@dataclass(frozen=True)
class DeviceOptions:
    """Where and how exactly to compute."""

    device: types.DeviceName = None
    dtype: types.Dtype = None
    vae_tiling: VaeTiling = "auto"
    low_memory: LowMemory = False
    offload: Offload = "auto"
    quantize: Quantize = None
    compile: Compile = False
    verbose: Verbose = False

    def check(self) -> None:
        """Raise BadRequest for what cannot be chosen, before anything is loaded."""
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                *some, last = [choice for choice in allowed if choice]
                option = f"--{name.replace('_', '-')}"
                raise BadRequest(f"{option} {shown(value)}; choose {', '.join(some)} or {last}")
        if self.quantize and self.low_memory:
            raise BadRequest("--quantize and --low-memory both make weights narrow; give one")
        if self.quantize and self.offload == "sequential":
            raise BadRequest("--quantize cannot go layer by layer; say --offload model")

    def choose_device(self) -> "Device":
        """The device, and how a model is kept there. BadRequest."""
        from dataclasses import replace

        from txt2img.system.device.device import choose

        found = choose(self.device, self.dtype)
        return replace(
            found,
            low=self.low_memory,
            offload=self.offload,
            quantize=self.quantize,
            compile=self.compile,
        )

    def memory(self, loaded: "MemoryState") -> "MemoryState":
        """What a loaded model may do to fit in this run."""
        from txt2img.system.device.memory import MemoryState

        made = MemoryState(
            tiling=self.vae_tiling,
            low_memory=loaded.low_memory,
            quantized=loaded.quantized,
            placement=loaded.placement,
        )
        for note in loaded.placement.notes:
            made.warn(note)
        return made
