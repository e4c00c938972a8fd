"""How much memory there is: the least of what the machine, the group and the process allow."""

from pathlib import Path

import pytest

from txt2img import room

MEMINFO = "MemTotal:       24000000 kB\nMemFree: 5 kB\nMemAvailable:    2000 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 2000 KiB for more, without limits."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    monkeypatch.setattr(room, "_own", lambda: None)
    return tmp_path


def test_the_machine_says_what_it_has(machine: Path) -> None:
    assert room.available() == 2000 * 1024


@pytest.mark.parametrize(("limit", "left"), [("1000000", 800_100), ("max", 2_048_000)])
def test_a_container_may_take_less(machine: Path, limit: str, left: int) -> None:
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text("200000\n")
    (machine / "memory.stat").write_text("anon 7\ninactive_file 100\n")
    assert room.available() == left


def test_a_process_that_is_limited_may_take_less(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_own", lambda: -5)
    assert room.available() == 0


def test_here_there_is_some() -> None:
    assert room.available() > 0
