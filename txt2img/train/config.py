"""Training configuration: read from one TOML file, overridden by options."""

import tomllib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TypeVar

from txt2img.errors import BadFile, BadRequest
from txt2img.models.configs import TextConfig, UNetConfig, VAEConfig
from txt2img.system.files import read_bounded
from txt2img.system.text import shown

T = TypeVar("T")
STAGES = ("vae", "text", "unet", "decoder", "alpha", "distill")  # of a model, in this order
ADAPTERS = ("lora", "embedding", "control")  # stages that teach something to a model, `base`
FILES = ("lora", "embedding")  # of these, those that are written as one file
STAGE_CHOICES = ("all", *STAGES, *ADAPTERS)
BETAS = {  # start and end of each table: Ho et al. 2020, Rombach et al. 2022
    "linear": (0.0001, 0.02),
    "scaled_linear": (0.00085, 0.012),
    "cosine": (0.0001, 0.02),  # which its formula (Nichol and Dhariwal 2021) does not need
}
OPTIMIZERS = ("adamw", "muon")
PREDICTION_TYPES = ("eps", "v", "flow")
SIZE_MAX = 2**20  # bytes of a configuration
OPTIONAL_FLOATS = "minutes", "stop_after", "single_object_share", "min_snr", "lora_alpha"
OLD_NAMES = {  # of keys and stages, which older configurations still use
    "what": "stage",
    "noisy": "time_bias",
    "singles": "single_object_share",
    "drafts": "noised_samples",
    "distil": "distill",
    "distil_steps": "distill_steps",
    "distil_rank": "distill_rank",
    "distil_run": "distill_run",
}


@dataclass(frozen=True)
class Run:
    """Hyperparameters of one stage."""

    steps: int = 10_000
    minutes: float | None = None  # of training, after which the stage ends early
    batch_size: int = 32  # pictures per step and process
    lr: float = 1e-3
    final_lr: float = 0.0
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    ema: float = 0.999  # decay of the weights' mean, which is what is exported
    clip: float = 1.0  # largest norm of the gradient
    optimizer: str = "adamw"  # or "muon", for the U-Net's matrices and kernels
    flat: float = 0.0  # share of the run before the learning rate falls
    piece_steps: int | None = None  # in each call, which ends at the lowest rate


# Sizes that train from scratch on one small machine; a configuration file sets any others.
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
ALPHA_RUN = Run(steps=0, batch_size=8, ema=0.99)
DISTILL_RUN = Run(steps=0, weight_decay=0.0, ema=0.99)
LORA_RUN = Run(steps=1000, batch_size=1, lr=1e-4, warmup=20, ema=0.99)
CONTROL_RUN = Run(steps=10_000, batch_size=8, lr=1e-4)
EMBEDDING_RUN = Run(steps=1000, batch_size=1, lr=5e-3, warmup=20, weight_decay=0.0, ema=0.99)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run."""

    data: Path = Path("data.zip")
    out: Path = Path("model")
    stage: str = "all"
    base: str = "default"  # the model that an adapter is for
    adapter: Path | None = None  # its file
    control: str = ""  # what makes the maps that a ControlNet learns to follow: canny:100,200
    size: int = 128  # pixels; of an adapter 0 is its model's own
    crop: int = 64  # pixels: the side of the crops that the VAE learns from
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    resume: bool = True
    stop_after: float | None = None  # minutes of one call; the next one resumes
    save_every: int = 500  # steps
    sample_every: int = 500  # steps
    sample_prompts: tuple[str, ...] = ()
    channels_last: bool = False
    compile: bool = False
    prediction: str = "v"
    betas: str = "scaled_linear"
    zero_snr: bool = True
    min_snr: float | None = None  # gamma; None weighs all levels equally
    time_bias: float = 0.0  # how strongly noisy times are preferred; 0 is uniform
    low_noise_share: float = 0.0  # share of times drawn where fine detail is decided
    caption_dropout: float = 0.1
    text_rate: float = 0.1  # the text encoder's learning rate, as a share of the U-Net's
    single_object_share: float | None = None  # of each batch: one whole object on white
    keep_gib: float = 2.0  # of memory for rendered pictures; the rest are rendered again
    kl: float = 1e-6
    edges: float = 1.0  # weight of the gradient difference in the VAE's loss
    noised_samples: int = 1024  # redrawn pictures that the decoder is fine-tuned on
    alpha_width: int = 24  # channels of the decoder's alpha head
    distill_steps: int = 4  # in which the LoRA draws
    distill_rank: int = 16
    lora_rank: int = 16
    lora_alpha: float | None = None  # the change is multiplied by alpha / rank; None: the rank
    vectors: int = 4  # of a new word
    init_word: str = "thing"  # whose tokens these begin as
    vocab: int = 4096
    steps: int = 30  # default of the model that comes out, as are cfg and sampler
    cfg: float = 7.5
    sampler: str = "dpm++2m"
    vae: VAEConfig = SMALL_VAE
    text: TextConfig = SMALL_TEXT
    unet: UNetConfig = SMALL_UNET
    vae_run: Run = VAE_RUN
    text_run: Run = TEXT_RUN  # 0 steps: text encoder and U-Net train together from scratch
    unet_run: Run = UNET_RUN
    decoder_run: Run = DECODER_RUN  # 0 steps: no fine-tuning of the decoder
    alpha_run: Run = ALPHA_RUN  # 0 steps: no alpha head
    distill_run: Run = DISTILL_RUN  # 0 steps: no few-step LoRA
    lora_run: Run = LORA_RUN
    embedding_run: Run = EMBEDDING_RUN
    control_run: Run = CONTROL_RUN

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that a call runs, as far as they have any steps."""
        return STAGES if self.stage == "all" else (self.stage,)

    def __post_init__(self) -> None:
        names = {"stage": STAGE_CHOICES, "prediction": PREDICTION_TYPES, "betas": tuple(BETAS)}
        for name, allowed in names.items():
            got = getattr(self, name)
            if got not in allowed:
                raise BadRequest(f"{name} is '{got}'; allowed: {', '.join(allowed)}")
        for stage in STAGE_CHOICES[1:]:
            minutes = getattr(self, f"{stage}_run").minutes
            if minutes is not None and not minutes > 0:
                raise BadRequest(f"[{stage}_run] minutes is {minutes}; it must be above 0")
            optimizer = getattr(self, f"{stage}_run").optimizer
            if optimizer not in OPTIMIZERS:
                raise BadRequest(f"[{stage}_run] optimizer is '{optimizer}'; use adamw or muon")
        if self.single_object_share is not None and not 0 <= self.single_object_share <= 1:
            raise BadRequest(
                f"single_object_share is {self.single_object_share}; allowed: 0 to 1, or none"
            )
        if self.stop_after is not None and not self.stop_after > 0:
            raise BadRequest(f"stop_after is {self.stop_after} minutes; it must be above 0")
        if not 1 <= self.distill_steps <= self.distill_run.batch_size:
            raise BadRequest(
                f"distill_steps is {self.distill_steps}; allowed: 1 to [distill_run] batch_size, "
                f"{self.distill_run.batch_size}"
            )
        for name in ("distill_rank", "lora_rank", "vectors"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.caption_dropout <= 1:
            raise BadRequest(f"caption_dropout is {self.caption_dropout}; allowed: 0 to 1")
        if self.stage == "control" and not self.control:
            raise BadRequest("stage control needs a preprocessor; name it with --control")
        if self.stage in FILES and self.adapter is None:
            raise BadRequest(f"stage {self.stage} needs a file; name it with --{self.stage}")
        if self.prediction == "eps" and self.zero_snr:
            raise BadRequest("zero_snr begins at pure noise, where eps shows no picture; predict v")
        keeps_size = self.stage in ADAPTERS and self.size == 0
        if not keeps_size and (self.size % self.vae.factor or self.size not in range(64, 8193)):
            raise BadRequest(
                f"size is {self.size}; allowed: multiples of {self.vae.factor} from 64 to 8192"
            )


def with_options(config: TrainConfig, options: dict[str, object]) -> TrainConfig:
    """The configuration, overridden by every option that is not None.

    `steps`, `batch_size` and `lr` apply to the stages' runs, as users expect.
    """
    given = renamed({name: value for name, value in options.items() if value is not None})
    run: dict[str, object] = {
        name: given.pop(name) for name in ("steps", "batch_size", "lr") if name in given
    }
    only = str(given.get("stage", config.stage))
    given["stage"] = only = OLD_NAMES.get(only, only)
    for stage in STAGE_CHOICES[1:]:
        old: Run = getattr(config, f"{stage}_run")
        # a stage of 0 steps stays off, unless it alone is asked for
        given[f"{stage}_run"] = _merge(old, run, stage) if old.steps or stage == only else old
    return _merge(config, given, "training")


def renamed(table: dict[str, object]) -> dict[str, object]:
    """The table with today's names in place of older ones."""
    return {OLD_NAMES.get(key, key): value for key, value in table.items()}


def read_config(path: Path | None) -> TrainConfig:
    """Read a TOML file, or give the default configuration. Raises BadFile."""
    if path is None:
        return TrainConfig()
    try:
        table = tomllib.loads(read_bounded(path, SIZE_MAX).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"training configuration {shown(path.name)}: {error}") from error
    table = renamed(table)
    if isinstance(table.get("stage"), str):
        table["stage"] = OLD_NAMES.get(str(table["stage"]), table["stage"])
    return _merge(TrainConfig(), table, path.name)


def _merge(base: T, table: dict[str, object], name: str) -> T:
    """Merge a table into `base`, a dataclass, and sub-tables into its sub-dataclasses."""
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
        elif isinstance(value, int) and (isinstance(old, float) or key in OPTIONAL_FLOATS):
            value = float(value)
        new[key] = value
    return replace(base, **new)  # type: ignore[type-var]
