"""What a launcher tells its processes by the environment, and how these share the work."""

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
from txt2img.system.launcher import ADDRESS, VARIABLES, ProcessGroup


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, whatever started the tests."""
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
    say(monkeypatch, names, "3", "4", "1")
    assert launcher.current() == ProcessGroup(3, 4, 1)
    monkeypatch.delenv(names[2])
    assert launcher.current() == ProcessGroup(
        0, 1, 0
    )  # a cluster's own variables, and no launcher's


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
