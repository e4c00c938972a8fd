"""The options of every command that draws: what the pictures are like, and where they go."""

from dataclasses import dataclass

from txt2img.cli.options import types
from txt2img.request.sampler_names import split_sampler

ANY_SEED = -1  # elsewhere, and in lines of files: one that is drawn at random


@dataclass(frozen=True)
class PictureOptions:
    """What the options ask for; None leaves it to the picture, the config file or the model."""

    negative: types.Negative = None
    width: types.Width = None
    height: types.Height = None
    steps: types.Steps = None
    cfg: types.Cfg = None
    seed: types.Seed = None
    count: types.Count = None
    sampler: types.SamplerName = None
    schedule: types.ScheduleName = None
    eta: types.Eta = None
    cfg_rescale: types.CfgRescale = None
    model: types.Model = None

    def request_fields(self) -> dict[str, object]:
        """The fields of a request that the command line gives."""
        values = types.given_fields(self)
        if self.sampler and not self.schedule:  # "DPM++ 2M Karras", as A1111 once called it
            sampler, schedule = split_sampler(self.sampler, None)
            values |= {"sampler": sampler} | ({"schedule": schedule} if schedule else {})
        return values | ({"seed": None} if self.seed == ANY_SEED else {})
