"""The options of every command that draws: what the pictures are like, and where they go."""

from dataclasses import dataclass

from txt2img.cli import options


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
