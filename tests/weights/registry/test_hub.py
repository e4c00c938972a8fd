"""What is pulled is what the Hub has, whole and checked, or is not there at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import Command
from tests.support.hub_server import COMMIT, Hub, serving
from txt2img.errors import ModelNotFound
from txt2img.weights.registry import find
from txt2img.weights.registry import hub as weights_hub

WEIGHTS = "diffusion_pytorch_model"
FILES = {
    "model_index.json": b"{}",
    "README.md": b"long",
    "unet/config.json": b'{"a": 1}',
    f"unet/{WEIGHTS}.safetensors": bytes(range(256)) * 4000,
    f"unet/{WEIGHTS}.fp16.safetensors": b"half" * 50,
    f"unet/{WEIGHTS}.bin": b"pickle",
    f"vae/{WEIGHTS}.safetensors": b"vae" * 50,
    "text_encoder/model.safetensors": b"text" * 50,
    "tokenizer/vocab.json": b"{}",
    "extra/one.safetensors": b"one" * 50,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one model, and an empty data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub(dict(FILES))) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def test_a_model_is_pulled_without_pickles_and_found_offline(hub: Hub, command: Command) -> None:
    outcome = command("models", "pull", "a/m@main")
    assert outcome.code == 0, outcome.err
    home = Path(outcome.out.strip())
    there = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    left_out = {"README.md", f"unet/{WEIGHTS}.bin", "extra/one.safetensors"}
    left_out.add(f"unet/{WEIGHTS}.fp16.safetensors")
    assert there == set(FILES) - left_out | {find.RECORD}
    assert (home / f"unet/{WEIGHTS}.safetensors").read_bytes() == FILES[
        f"unet/{WEIGHTS}.safetensors"
    ]
    assert "licence: mit" in outcome.err and "\r" not in outcome.err
    record = json.loads((home / find.RECORD).read_text())
    assert (record["revision"], record["licence"]) == (COMMIT, "mit")
    hub.gated = True
    assert find.find("a/m") == find.find("a/m@main") == home
    with pytest.raises(ModelNotFound, match="another revision"):
        find.find("a/m@v2")


def test_a_variant_and_a_single_file(hub: Hub, command: Command) -> None:
    home = Path(command("models", "pull", "a/m", "--variant", "fp16", "-q").out.strip())
    assert [path.name for path in (home / "unet").glob("*.safetensors")] == [
        f"{WEIGHTS}.fp16.safetensors"
    ]
    single = command("models", "pull", "a/m:extra/one.safetensors", "-q")
    assert Path(single.out.strip()).read_bytes() == FILES["extra/one.safetensors"]
    assert find.find("one") == Path(single.out.strip())


def test_a_wrong_checksum_leaves_nothing(hub: Hub, command: Command) -> None:
    hub.lie = "text_encoder/model.safetensors"
    outcome = command("models", "pull", "a/m", "-q")
    assert outcome.code == 1 and "checksum" in outcome.err and outcome.err.count("\n") == 1
    assert not find.on_hub("a/m").place.exists()  # type: ignore[union-attr]
    assert find.names() == ["default", "few-steps"]
    hub.lie = ""
    assert command("models", "pull", "a/m", "-q").code == 0


def test_an_interrupted_file_is_resumed(hub: Hub, command: Command) -> None:
    name = f"unet/{WEIGHTS}.safetensors"
    home = find.Wanted("a/m").place
    staged = find.data() / weights_hub.STAGING / "a--m" / f"{name}.{COMMIT[:12]}.part"
    staged.parent.mkdir(parents=True)
    half = len(FILES[name]) // 2
    staged.write_bytes(FILES[name][:half])
    outcome = command("models", "pull", "a/m", "-q")
    assert outcome.code == 0, outcome.err
    assert f"bytes={half}-" in hub.ranges
    assert (home / name).read_bytes() == FILES[name]
    assert not list(find.data().rglob("*.part"))


def test_what_is_in_its_place_is_not_fetched_again(hub: Hub, command: Command) -> None:
    home = Path(command("models", "pull", "a/m", "-q").out.strip())
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")}
    hub.fetched.clear()
    assert command("models", "pull", "a/m", "-q").code == 0
    assert hub.fetched == ["listing"]
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.safetensors")} == before
    (home / "text_encoder/model.safetensors").write_bytes(b"short")
    assert command("models", "pull", "a/m", "-q").code == 0
    assert "text_encoder/model.safetensors" in str(hub.fetched)
    assert (home / "text_encoder/model.safetensors").read_bytes() == b"text" * 50


def test_two_pulls_at_once_fetch_each_file_once(hub: Hub) -> None:
    offered = weights_hub.offer(find.Wanted("a/m"))
    first, second = weights_hub.pull(offered), weights_hub.pull(offered)
    got = next(first)  # it holds the lock from now on
    assert got is not None and next(second) is None  # and the other is told to wait
    waiting = Thread(target=list, args=(second,))
    waiting.start()
    names = [got.name, *(file.name for file in first if file)]
    waiting.join(30)
    assert not waiting.is_alive()
    asked = [one for one in hub.fetched if one.endswith(".safetensors")]
    assert names == [file.name for file in offered.files] and len(asked) == len(set(asked))
    assert (find.Wanted("a/m").place / f"unet/{WEIGHTS}.safetensors").is_file()
    assert not list(find.data().rglob("*.lock"))


def test_a_killed_pull_holds_nobody_up(hub: Hub) -> None:
    offered = weights_hub.offer(find.Wanted("a/m"))
    broken = weights_hub.pull(offered)
    assert next(broken) is not None
    broken.close()
    assert None not in list(weights_hub.pull(offered))


def test_a_transfer_that_breaks_is_gone_on_with(
    hub: Hub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.cut = name = f"unet/{WEIGHTS}.safetensors"
    outcome = command("models", "pull", "a/m", "-q")
    assert outcome.code == 0 and len(hub.ranges) == 1, outcome.err
    assert (find.Wanted("a/m").place / name).read_bytes() == FILES[name]


def test_what_goes_wrong_is_one_line(hub: Hub, command: Command) -> None:
    def refused(name: str, said: str) -> None:
        outcome = command("models", "pull", name, "-q")
        assert outcome.code in (1, 2) and outcome.err.count("\n") == 1, outcome.err
        assert said in outcome.err

    refused("a/m@nope", 'no revision "nope"')
    refused("a/other", "no model a/other")
    refused("a/m:x.safetensors", "has no file")
    refused("a/m:x.bin", "not the name of a .safetensors file")
    refused("a/m:../x.safetensors", "not the name")
    refused("sdxl-tubro", "did you mean sdxl-turbo")
    hub.gone = "unet/config.json"
    refused("a/m", "missing on the Hub")
    hub.gated = True
    refused("a/m", "gated: accept its licence")
    assert not find.on_hub("a/m").place.exists()  # type: ignore[union-attr]


def test_no_room_is_said_before_anything_is_fetched(
    hub: Hub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_hub, "SPARE", 2**60)
    outcome = command("models", "pull", "a/m", "-q")
    assert "B are free" in outcome.err and hub.fetched == ["listing"]


def test_no_network_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    outcome = command("models", "pull", "sd15", "--endpoint", "http://127.0.0.1:9", "-q")
    assert outcome.code == 1 and "cannot fetch" in outcome.err and outcome.err.count("\n") == 1
