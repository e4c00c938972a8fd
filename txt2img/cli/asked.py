"""The options of every command that draws: what the pictures are like, and where they go."""

from dataclasses import dataclass

from txt2img.cli import options
from txt2img.infotext import split_sampler

# Those that say what a picture is to be like, as fields of a request.
FIELDS = (
    *("negative", "model", "width", "height", "steps", "cfg", "cfg_rescale", "eta"),
    *("sampler", "schedule", "seed", "count"),
)

ANY_SEED = -1  # elsewhere, and in lines of files: one that is drawn at random


@dataclass(frozen=True)
class Asked:
    """What the options ask for; None leaves it to the picture, the config file or the model."""

    negative: options.Negative = None
    width: options.Width = None
    height: options.Height = None
    steps: options.Steps = None
    cfg: options.Cfg = None
    seed: options.Seed = None
    count: options.Count = None
    sampler: options.SamplerName = None
    schedule: options.ScheduleName = None
    eta: options.Eta = None
    cfg_rescale: options.CfgRescale = None
    model: options.Model = None
    batch_size: options.BatchSize = None
    out: options.OutputName = None
    overwrite: options.Overwrite = False

    def given(self) -> dict[str, object]:
        """The fields of a request that the command line gives."""
        values = {name: getattr(self, name) for name in FIELDS}
        if self.sampler and not self.schedule:  # "DPM++ 2M Karras", as A1111 once called it
            values["sampler"], values["schedule"] = split_sampler(self.sampler, None)
        found = {name: value for name, value in values.items() if value is not None}
        return found | ({"seed": None} if self.seed == ANY_SEED else {})
