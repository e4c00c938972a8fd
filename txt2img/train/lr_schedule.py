"""Learning-rate schedule, by steps or by the clock, and the clock of a stage."""

import math
import time

import torch
from accelerate import Accelerator

from txt2img.train.config import Run

MINUTE = 60.0  # seconds


def learning_rate(run: Run, step: int, spent: float = 0.0) -> float:
    """Warm-up, then constant for the share `flat`, then half a cosine down to final_lr.

    (Loshchilov and Hutter 2017.) It ends with the last step, or with the run's minutes if the
    `spent` seconds show that these end sooner: a machine of any speed ends at the lowest rate. A
    run in pieces repeats this in each of them.
    """
    steps = run.steps if run.piece_steps is None else run.piece_steps
    step %= steps
    if step < run.warmup:
        return run.lr * (step + 1) / run.warmup
    done = (step - run.warmup) / max(steps - run.warmup, 1)
    if run.minutes is not None:
        done = min(max(done, spent / (MINUTE * run.minutes)), 1.0)
    falling = max(done - run.flat, 0.0) / (1.0 - run.flat)
    return run.final_lr + (run.lr - run.final_lr) * 0.5 * (1.0 + math.cos(math.pi * falling))


class StageClock:
    """Seconds of training of a stage, over all calls.

    A call's first step is not counted, since it compiles. The call has to stop at `deadline`, by
    time.monotonic().
    """

    def __init__(self, spent: float, deadline: float, accelerator: Accelerator) -> None:
        self.spent, self.deadline = spent, deadline
        self.accelerator = accelerator
        self.last: float | None = None
        self.late = False  # the call has to stop

    def tick(self) -> None:
        """Count a step. All processes get the same times, or some would wait for ever."""
        now = time.monotonic()
        self.spent += 0.0 if self.last is None else now - self.last
        self.last, left = now, self.deadline - now
        if self.accelerator.num_processes > 1:
            both = torch.tensor([self.spent, min(left, 1e9)], device=self.accelerator.device)
            self.spent, left = self.accelerator.reduce(both, "mean").tolist()
        self.late = left <= 0.0

    def restart(self) -> None:
        """Leave out the time since the last step, in which states and sheets were written."""
        self.last = time.monotonic()


def finished(run: Run, step: int, spent: float) -> bool:
    """Whether a stage is finished after so many steps and seconds."""
    return step >= run.steps or (run.minutes is not None and spent >= MINUTE * run.minutes)


def ends_piece(run: Run, step: int) -> bool:
    """Whether a piece of the run, and with it the call, ends after so many steps."""
    return run.piece_steps is not None and step % run.piece_steps == 0
