"""How long a stage may learn, by the clock, and how fast it learns meanwhile."""

import math
import time

import torch
from accelerate import Accelerator

from txt2img.train.config import Run

MINUTE = 60.0  # seconds
RISE = 0.02  # of a piece: the way back up to the full rate


def learning_rate(run: Run, step: int, spent: float = 0.0) -> float:
    """A short rise, then half a cosine from lr to final_lr (Loshchilov and Hutter 2017).

    It ends with the last step, or with the run's minutes where the `spent` seconds say that they
    will be over sooner: so a machine of any speed ends with the lowest rate. The first `flat` part
    of the way stays at lr. A run in pieces goes this way in each of them.
    """
    if step < run.warmup:
        return run.lr * (step + 1) / run.warmup
    done = (step - run.warmup) / max(run.steps - run.warmup, 1)
    if run.minutes is not None:
        done = min(max(done, spent / (MINUTE * run.minutes)), 1.0)
    if run.piece_minutes is not None:
        done = spent / (MINUTE * run.piece_minutes) % 1.0
        if spent > MINUTE * run.piece_minutes and done < RISE:
            return run.final_lr + (run.lr - run.final_lr) * done / RISE
    falling = max(done - run.flat, 0.0) / (1.0 - run.flat)
    return run.final_lr + (run.lr - run.final_lr) * 0.5 * (1.0 + math.cos(math.pi * falling))


class Pace:
    """The seconds that a stage has learnt, in this call and in earlier ones.

    What comes before the end of a call's first step is not counted: it compiles. `deadline` is when
    this call has to stop, by time.monotonic(); it also stops at the end of a piece of `minutes`.
    """

    def __init__(
        self,
        spent: float,
        deadline: float,
        accelerator: Accelerator,
        piece_minutes: float | None = None,
    ) -> None:
        self.spent, self.deadline = spent, deadline
        self.piece = math.inf if piece_minutes is None else MINUTE * piece_minutes  # seconds
        self.accelerator = accelerator
        self.last: float | None = None
        self.late = False  # the call has to stop

    def tick(self) -> None:
        """A step is done. All processes get the same times, or some would wait for ever."""
        now, before = time.monotonic(), self.spent
        self.spent += 0.0 if self.last is None else now - self.last
        self.last, left = now, self.deadline - now
        if self.accelerator.num_processes > 1:
            both = torch.tensor([self.spent, min(left, 1e9)], device=self.accelerator.device)
            self.spent, left = self.accelerator.reduce(both, "mean").tolist()
        self.late = left <= 0.0 or self.spent // self.piece > before // self.piece

    def go_on(self) -> None:
        """Count from here: what was saved and drawn since the last step is no learning."""
        self.last = time.monotonic()


def finished(run: Run, step: int, spent: float) -> bool:
    """Whether a stage that has done so many steps, in so many seconds, is done."""
    return step >= run.steps or (run.minutes is not None and spent >= MINUTE * run.minutes)
