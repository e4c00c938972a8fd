"""How much memory there is: the least of what the machine, the group and the process allow."""

import subprocess
import sys
from pathlib import Path

import pytest

from txt2img.system import resources

MEMINFO = "MemTotal:       24000000 kB\nMemFree: 5 kB\nMemAvailable:    2000 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 2000 KiB for more, without limits."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    monkeypatch.setattr(resources, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    monkeypatch.setattr(resources, "_own", lambda: None)
    return tmp_path


def test_the_machine_says_what_it_has(machine: Path) -> None:
    assert resources.available() == 2000 * 1024


@pytest.mark.parametrize(("limit", "left"), [("1000000", 800_100), ("max", 2_048_000)])
def test_a_container_may_take_less(machine: Path, limit: str, left: int) -> None:
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text("200000\n")
    (machine / "memory.stat").write_text("anon 7\ninactive_file 100\n")
    assert resources.available() == left


def test_a_process_that_is_limited_may_take_less(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "_own", lambda: -5)
    assert resources.available() == 0


def test_here_there_is_some() -> None:
    assert resources.available() > 0


HELD = """
import os
from txt2img.system import resources

def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

def used():
    block = bytes(1) * (96 << 20)
    bytearray(block)

used()
before = held()
resources.keep_heap()
used()
kept = held()
resources.trim_heap()
print(before, kept, held())
"""


@pytest.mark.skipif(resources._of_libc("mallopt") is None, reason="another C library than glibc")
def test_freed_memory_is_kept_until_it_is_to_be_given_back() -> None:
    # in a process of its own, whose memory nothing else moves
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    before, kept, after = map(int, done.stdout.split())
    assert kept > before + 90
    assert after < before + 30


@pytest.fixture
def processors(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four processors on two cores."""
    for number, sharing in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = machine / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{sharing}\n")
    monkeypatch.setattr(resources, "PROCESSORS", machine)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv(resources.THREADS, raising=False)
    return machine


def test_processors_that_share_a_core_count_once(processors: Path) -> None:
    assert resources.cores() == 2


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 2), ("5000 100000", 1), ("max 1", 2)]
)
def test_a_container_may_use_fewer_cores(processors: Path, quota: str, cores: int) -> None:
    (processors / "cpu.max").write_text(f"{quota}\n")
    assert resources.cores() == cores


def test_what_the_user_says_of_threads_holds(
    processors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(resources.THREADS, "4")
    assert resources.cores() is None


def test_a_machine_that_does_not_say_is_left_alone(processors: Path) -> None:
    (processors / "cpu3" / "topology" / "thread_siblings_list").unlink()
    assert resources.cores() is None
