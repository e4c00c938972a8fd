"""What a launcher tells its processes by the environment, and how these share the work."""

import os

import pytest
import torch

from txt2img.cli.options.batch import BatchOptions
from txt2img.errors import BadRequest
from txt2img.images.output import parse
from txt2img.images.record import Origin
from txt2img.images.resume import Item, items
from txt2img.request.request import Request
from txt2img.system import launcher
from txt2img.system.device.device import choose
from txt2img.system.launcher import ADDRESS, SRUN, STEP, VARIABLES, ProcessGroup

# What sbatch gives its own shell, for four tasks; srun gives each of them these too, and more.
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, whatever started the tests."""
    schedulers = ("SLURM_", "AWS_BATCH_", "JOB_COMPLETION")
    for name in [name for name in os.environ if name.startswith(schedulers)]:
        monkeypatch.delenv(name)
    for name in {name for names in VARIABLES for name in names} | set(ADDRESS):
        monkeypatch.delenv(name, raising=False)


def say(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], *values: str) -> None:
    """Set variables."""
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("names", VARIABLES)
def test_three_variables_make_a_launch(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    assert launcher.current() == ProcessGroup(0, 1, 0)
    if names == SRUN:
        monkeypatch.setenv(STEP, "0")
    say(monkeypatch, names, "3", "4", "1")
    assert launcher.current() == ProcessGroup(3, 4, 1)
    monkeypatch.delenv(names[2])
    assert launcher.current() == ProcessGroup(
        0, 1, 0
    )  # a cluster's own variables, and no launcher's


def test_the_shell_of_sbatch_draws_all(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, tuple(SBATCH), *SBATCH.values())
    assert launcher.current() == ProcessGroup(0, 1, 0)
    say(monkeypatch, (STEP, SRUN[1]), "4294967290", "1")  # salloc's interactive step
    assert launcher.current() == ProcessGroup(0, 1, 0)
    monkeypatch.delenv(STEP)
    monkeypatch.setenv(SRUN[1], "4")
    assert launcher.current() == ProcessGroup(0, 1, 0)


def test_launchers_that_srun_starts_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, (STEP, *SRUN), "0", "1", "2", "0")  # one torchrun on each of two machines
    say(monkeypatch, VARIABLES[0], "5", "8", "1")
    assert launcher.current() == ProcessGroup(5, 8, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(BadRequest, match="WORLD_SIZE is 1, but srun has started 2 processes"):
        launcher.current()


SLURM_ARRAY = tuple(f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "COUNT", "MIN", "MAX", "STEP"))
KUBERNETES = ("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")
AWS_BATCH = ("AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE")


@pytest.mark.parametrize(
    ("names", "jobs", "parts"),
    [
        (SLURM_ARRAY, ["0 3 0 2 1", "1 3 0 2 1", "2 3 0 2 1"], 3),  # --array=0-2
        (SLURM_ARRAY, ["4 2 4 8 4", "8 2 4 8 4"], 2),  # --array=4-8:4
        (SLURM_ARRAY[:2], ["0 2", "1 2"], 2),
        (KUBERNETES, ["0 2", "1 2"], 2),
        (AWS_BATCH, ["0 3", "1 3", "2 3"], 3),
    ],
)
def test_the_jobs_of_an_array_are_parts(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], jobs: list[str], parts: int
) -> None:
    found = []
    for values in jobs:
        say(monkeypatch, names, *values.split())
        found.append(BatchOptions(shard="auto").part)
    assert found == [(i + 1, parts) for i in range(parts)]


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        ((), "", "no job of an array sets SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, AWS_"),
        (KUBERNETES[:1], "0", "JOB_COMPLETIONS is not; set it in the manifest"),
        (KUBERNETES, "2 2", "JOB_COMPLETION_INDEX is 2 of 2"),
        (KUBERNETES, "x 2", "JOB_COMPLETION_INDEX must be a whole number"),
        ((*KUBERNETES, *AWS_BATCH), "0 2 0 2", "there are JOB_COMPLETION_INDEX of Kub"),
        (SLURM_ARRAY, "1 3 1 7 1", "leaves parts out; number the jobs evenly"),  # --array=1,3,7
        (SLURM_ARRAY, "5 2 4 8 4", "leaves parts out"),
    ],
)
def test_no_array_or_more_than_one_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], values: str, message: str
) -> None:
    say(monkeypatch, names, *values.split())
    with pytest.raises(BadRequest, match=message) as error:
        _ = BatchOptions(shard="auto").part
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [("2", "2", "0"), ("a", "2", "0"), ("-1", "2", "0")])
def test_variables_that_make_no_sense_are_refused(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...]
) -> None:
    say(monkeypatch, VARIABLES[0], *values)
    with pytest.raises(BadRequest, match="RANK must be"):
        launcher.current()


def test_processes_meet_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ProcessGroup(0, 2, 0).can_rendezvous
    say(monkeypatch, ADDRESS, "localhost", "29500")
    assert ProcessGroup(0, 2, 0).can_rendezvous and not ProcessGroup(0, 1, 0).can_rendezvous


@pytest.mark.parametrize("shards", [1, 3])
def test_the_processes_of_all_shards_draw_each_picture_once(shards: int) -> None:
    requests = [Request("x", seed=seed) for seed in range(20)]
    target = parse("x/", several=True)
    drawn: list[Item] = []
    for shard in range(shards):
        mine = BatchOptions(shard=f"{shard + 1}/{shards}").shard_items
        parts = [
            list(ProcessGroup(rank, 4, rank).shard(mine(items(requests, target, Origin()))))
            for rank in range(4)
        ]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        drawn += [item for part in parts for item in part]
    assert sorted(item.index for item in drawn) == list(range(1, 21))


def test_each_process_has_a_card_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose().torch_device == torch.device("cuda")
    assert not current
    say(monkeypatch, VARIABLES[0], "5", "8", "3")  # more processes than cards, on two machines
    assert choose().torch_device == choose("cuda").torch_device == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")] * 2
    assert choose("cuda:0").torch_device == torch.device("cuda:0")  # as it is asked for
    assert choose("cpu").torch_device == torch.device("cpu")
