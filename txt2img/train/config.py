"""A training run as data: read from one TOML file, overridden by options."""

import tomllib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from txt2img.errors import BadFile, BadRequest
from txt2img.models.configs import TextConfig, UNetConfig, VAEConfig

T = TypeVar("T")
WHAT = ("all", "vae", "text", "unet", "decoder", "distil")  # a stage each, in this order
STAGES = WHAT[1:]
OPTIMIZERS = ("adamw", "muon")
KINDS = ("eps", "v", "flow")
MAYBE = (
    "minutes",
    "piece_minutes",
    "stop_after",
    "singles",
    "min_snr",
)  # numbers, where they are not None


@dataclass(frozen=True)
class Run:
    """How one stage is optimised: the learning rate's way, a running mean of weights."""

    steps: int = 10_000
    minutes: float | None = None  # of learning; the run ends sooner when they are over
    batch_size: int = 32  # pictures a step and process
    lr: float = 1e-3
    final_lr: float = 0.0
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0  # largest norm of the gradient
    optimizer: str = "adamw"  # or "muon", for the U-Net's matrices and kernels
    flat: float = 0.0  # the part of the way before the rate falls
    piece_minutes: float | None = None  # each call learns as long, and ends at the lowest rate


# What trains from nothing on one small machine; a configuration file says anything else.
SMALL_VAE = VAEConfig(
    latent_channels=8,
    channels=(32, 64, 128, 128),
    layers=1,
    groups=16,
    mid_attention=False,
    scaling=1.0,
)
SMALL_TEXT = TextConfig(vocab=4096, width=256, layers=4, heads=4, mlp=1024, length=32)
SMALL_UNET = UNetConfig(
    in_channels=8,
    out_channels=8,
    channels=(128, 256, 256),
    layers=1,
    attention=(False, True, True),
    depth=(1, 1, 1),
    heads=(4, 8, 8),
    cross_dim=256,
    linear_projection=True,
)
VAE_RUN = Run(steps=5000, ema=0.998)
TEXT_RUN = Run(steps=1000, batch_size=128, weight_decay=0.1)
UNET_RUN = Run(steps=20_000, lr=8e-4, final_lr=2e-5)
DECODER_RUN = Run(steps=0, lr=3e-4, ema=0.99)
DISTIL_RUN = Run(steps=0, weight_decay=0.0, ema=0.99)


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a training run."""

    data: Path = Path("data.zip")
    out: Path = Path("model")
    what: str = "all"
    size: int = 128  # pixels
    crop: int = 64  # pixels: the side of the cut-outs that the VAE learns from
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    resume: bool = True
    stop_after: float | None = None  # minutes of one call; another goes on where it stopped
    save_every: int = 500  # steps
    sample_every: int = 500  # steps
    sample_prompts: tuple[str, ...] = ()
    channels_last: bool = False
    compile: bool = False
    prediction: str = "v"
    zero_snr: bool = True
    min_snr: float | None = None  # gamma; None weighs every level alike
    noisy: float = 0.0  # how much more often noisy levels are learnt; 0 is all alike
    low_noise: float = 0.0  # part of the batches at the levels where outlines are made
    caption_dropout: float = 0.1
    text_rate: float = 0.1  # the text encoder's learning rate beside the U-Net, as part of its own
    singles: float | None = None  # part of the U-Net's batches with one thing; None: as it comes
    keep_gib: float = 2.0  # of memory for painted pictures; others are painted again and again
    kl: float = 1e-6
    edges: float = 1.0  # weight of the differences between neighbours in the VAE's loss
    drafts: int = 1024  # pictures that the decoder learns to clean
    distil_steps: int = 4  # in which the LoRA draws
    distil_rank: int = 16
    vocab: int = 4096
    steps: int = 30  # default of the model that comes out, as are cfg and sampler
    cfg: float = 7.5
    sampler: str = "dpm++2m"
    vae: VAEConfig = SMALL_VAE
    text: TextConfig = SMALL_TEXT
    unet: UNetConfig = SMALL_UNET
    vae_run: Run = VAE_RUN
    text_run: Run = TEXT_RUN  # 0 steps: text encoder and U-Net learn together from nothing
    unet_run: Run = UNET_RUN
    decoder_run: Run = DECODER_RUN  # 0 steps: the decoder stays as the VAE's stage left it
    distil_run: Run = DISTIL_RUN  # 0 steps: there is no LoRA of few steps

    def __post_init__(self) -> None:
        for name, allowed in (("what", WHAT), ("prediction", KINDS)):
            got = getattr(self, name)
            if got not in allowed:
                raise BadRequest(f"{name} is '{got}'; allowed: {', '.join(allowed)}")
        for stage in STAGES:
            minutes = getattr(self, f"{stage}_run").minutes
            if minutes is not None and not minutes > 0:
                raise BadRequest(f"[{stage}_run] minutes is {minutes}; it must be above 0")
            optimizer = getattr(self, f"{stage}_run").optimizer
            if optimizer not in OPTIMIZERS:
                raise BadRequest(f"[{stage}_run] optimizer is '{optimizer}'; use adamw or muon")
        if self.singles is not None and not 0 <= self.singles <= 1:
            raise BadRequest(f"singles is {self.singles}; allowed: 0 to 1, or none")
        if self.stop_after is not None and not self.stop_after > 0:
            raise BadRequest(f"stop_after is {self.stop_after} minutes; it must be above 0")
        if not 1 <= self.distil_steps <= self.distil_run.batch_size:
            raise BadRequest(
                f"distil_steps is {self.distil_steps}; allowed: 1 to [distil_run] batch_size, "
                f"{self.distil_run.batch_size}"
            )
        if self.distil_rank < 1:
            raise BadRequest(f"distil_rank is {self.distil_rank}; it must be above 0")
        if self.prediction == "eps" and self.zero_snr:
            raise BadRequest("zero_snr begins at pure noise, where eps shows no picture; predict v")
        if self.size % self.vae.factor or self.size not in range(64, 8193):
            raise BadRequest(
                f"size is {self.size}; allowed: multiples of {self.vae.factor} from 64 to 8192"
            )


def override(config: TrainConfig, options: dict[str, object]) -> TrainConfig:
    """The configuration with every option that is not None in place of its own value.

    `steps`, `batch_size` and `lr` reach the stages' runs: that is what users mean by them.
    """
    given = {name: value for name, value in options.items() if value is not None}
    run: dict[str, object] = {
        name: given.pop(name) for name in ("steps", "batch_size", "lr") if name in given
    }
    for stage in STAGES:
        given[f"{stage}_run"] = _reach(config, stage, str(given.get("what", config.what)), run)
    return _merge(config, given, "training")


def _reach(config: TrainConfig, stage: str, what: str, run: dict[str, object]) -> Run:
    """A stage's run with these values; one of 0 steps stays so, unless it alone is asked for."""
    old: Run = getattr(config, f"{stage}_run")
    return _merge(old, run, stage) if old.steps or stage == what else old


def read(path: Path | None) -> TrainConfig:
    """The configuration in a TOML file, or the default one. Raises BadFile."""
    if path is None:
        return TrainConfig()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"training configuration {path.name}: {error}") from error
    return _merge(TrainConfig(), table, path.name)


def _merge(base: T, table: dict[str, object], name: str) -> T:
    """`base`, a dataclass, with the table's values; sub-tables reach into sub-dataclasses."""
    known = {f.name for f in fields(base)}  # type: ignore[arg-type]
    new: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            raise BadFile(f"{name}: unknown '{key}'; allowed: {', '.join(sorted(known))}")
        old = getattr(base, key)
        if is_dataclass(old) and isinstance(value, dict):
            value = _merge(old, value, f"{name} [{key}]")
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(old, Path):
            value = Path(str(value))
        elif isinstance(value, int) and (isinstance(old, float) or key in MAYBE):
            value = float(value)
        new[key] = value
    return replace(base, **new)  # type: ignore[type-var]
