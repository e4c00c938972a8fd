"""What is pulled is what the Hub has, whole, in the Hugging Face cache; or it is not found."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.conftest import Command
from tests.support.hub_server import COMMIT, Hub, serving
from txt2img.errors import ModelNotFound
from txt2img.images import image_file
from txt2img.weights.registry import find, hub_cache
from txt2img.weights.registry import hub as weights_hub

WEIGHTS = "diffusion_pytorch_model"
UNET = f"unet/{WEIGHTS}.safetensors"
INDEX = json.dumps({name: ["x", "X"] for name in ("unet", "vae", "text_encoder")}).encode()
FILES = {
    "model_index.json": INDEX,
    "README.md": b"long",
    "unet/config.json": b'{"a": 1}',
    UNET: bytes(range(256)) * 4000,
    f"unet/{WEIGHTS}.fp16.safetensors": b"half" * 50,
    f"unet/{WEIGHTS}.bin": b"pickle",
    f"vae/{WEIGHTS}.safetensors": b"vae" * 50,
    "text_encoder/model.safetensors": b"text" * 50,
    "tokenizer/vocab.json": b"[]",
    "extra/one.safetensors": b"one" * 50,
}
PULLED = {"model_index.json", "unet/config.json", UNET, "tokenizer/vocab.json"}
PULLED |= {f"vae/{WEIGHTS}.safetensors", "text_encoder/model.safetensors"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one model, and an empty cache."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serving(Hub(dict(FILES))) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(command: Command, name: str, part: str) -> None:
    outcome = command("models", "pull", name, "-q")
    assert outcome.code in (1, 2) and outcome.err.count("\n") == 1, outcome.err
    assert part in outcome.err and not outcome.out


def test_a_model_is_pulled_without_pickles_and_found_offline(hub: Hub, command: Command) -> None:
    outcome = command("models", "pull", "a/m")
    assert outcome.code == 0, outcome.err
    assert "1.0 MB; licence: mit" in outcome.err and "\r" not in outcome.err
    home = Path(outcome.out.strip())
    assert home == hub_cache.cache_dir() / "models--a--m/snapshots" / COMMIT
    assert files_in(home) == PULLED
    assert all((home / name).read_bytes() == FILES[name] for name in PULLED)
    hub.gated = True
    for name in ("a/m", "a/m@main", f"a/m@{COMMIT}", "m"):
        assert find.find(name) == home
        assert command("models", "path", name).out.strip() == str(home)
    with pytest.raises(ModelNotFound, match=r"txt2img models pull a/m@v2$"):
        find.find("a/m@v2")


def test_other_programs_find_what_was_pulled(hub: Hub, command: Command) -> None:
    home = command("models", "pull", "a/m", "-q").out.strip()
    cache = hub_cache.cache_dir()
    assert snapshot_download("a/m", cache_dir=cache, local_files_only=True, allow_patterns=[UNET])
    assert Path(home).is_relative_to(cache)


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_what_another_program_fetched_is_found_by_name_and_alias(
    hub: Hub, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "other"))
    cache = tmp_path / ("other/hub" if variable == "HF_HOME" else "other")
    home = snapshot_download("a/m", cache_dir=cache, endpoint=hub.url)
    (cache / "models--stabilityai--sdxl-turbo").symlink_to(cache / "models--a--m")
    hub.gated = True
    hub.fetched.clear()
    assert find.find("a/m") == Path(home)
    turbo = Path(home.replace("a--m", "stabilityai--sdxl-turbo"))
    assert find.find("sdxl-turbo") == find.find("stabilityai/sdxl-turbo") == turbo
    assert find.find("a/m:extra/one.safetensors") == Path(home) / "extra/one.safetensors"
    assert {"a/m", "sdxl-turbo"} < set(find.names())
    assert find.source(turbo)["licence"] == "Stability AI Community License"
    assert not hub.fetched


def test_a_model_of_which_a_part_is_missing_is_not_found(hub: Hub) -> None:
    def fetch(*names: str) -> None:
        cache = hub_cache.cache_dir()
        snapshot_download("a/m", cache_dir=cache, endpoint=hub.url, allow_patterns=names)

    shards = [f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    hub.files |= {name: name.encode() for name in shards}
    for names in (["tokenizer/*"], ["model_index.json"], ["unet/*"], ["vae/*"], shards[:1]):
        fetch(*names)
        with pytest.raises(ModelNotFound, match="models pull a/m"):
            find.find("a/m")
    fetch(shards[1])
    assert find.find("a/m").is_dir()


def test_a_variant_and_a_single_file(hub: Hub, command: Command) -> None:
    home = Path(command("models", "pull", "a/m", "--variant", "fp16", "-q").out.strip())
    assert [path.name for path in (home / "unet").glob("*.safetensors")] == [
        f"{WEIGHTS}.fp16.safetensors"
    ]
    single = command("models", "pull", "a/m:extra/one.safetensors", "-q")
    assert Path(single.out.strip()).read_bytes() == FILES["extra/one.safetensors"]
    assert find.find("a/m:extra/one.safetensors") == Path(single.out.strip())


def test_a_single_file_of_a_repository_is_found_by_its_own_name(hub: Hub, command: Command) -> None:
    hub.files = {"loras/style.safetensors": b"one", "README.md": b""}
    path = Path(command("models", "pull", "a/m:loras/style.safetensors", "-q").out.strip())
    assert find.find("style") == find.find("a/m:loras/style.safetensors") == path


def test_a_wrong_checksum_leaves_nothing(hub: Hub, command: Command) -> None:
    hub.lie = "text_encoder/model.safetensors"
    refused(command, "a/m", "checksum")
    assert find.names() == ["default", "few-steps"]
    hub.lie = ""
    hub.fetched.clear()
    assert command("models", "pull", "a/m", "-q").code == 0
    assert "text_encoder/model.safetensors" in hub.fetched and UNET not in hub.fetched


def test_what_is_in_the_cache_is_not_fetched_again(hub: Hub, command: Command) -> None:
    home = Path(command("models", "pull", "a/m", "-q").out.strip())
    hub.fetched.clear()
    assert command("models", "pull", "a/m", "-q").out.strip() == str(home)
    assert hub.fetched == ["info"]
    (home / "text_encoder/model.safetensors").write_bytes(b"short")
    assert command("models", "pull", "a/m", "-q").code == 0
    assert "text_encoder/model.safetensors" in hub.fetched and UNET not in hub.fetched
    assert (home / "text_encoder/model.safetensors").read_bytes() == b"text" * 50


def test_a_newer_commit_takes_the_name(hub: Hub, command: Command) -> None:
    old = command("models", "pull", "a/m", "-q").out.strip()
    hub.commit = "f" * 40
    hub.files["unet/config.json"] = b'{"a": 2}'
    assert find.find("a/m") == Path(old)
    new = command("models", "pull", "a/m", "-q").out.strip()
    assert find.find("a/m") == Path(new) != find.find(f"a/m@{COMMIT}")


def test_a_transfer_that_breaks_is_gone_on_with(
    hub: Hub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut = UNET
    outcome = command("models", "pull", "a/m", "-q")
    assert (outcome.code, outcome.err) == (0, ""), outcome.err
    assert (Path(outcome.out.strip()) / UNET).read_bytes() == FILES[UNET]


def test_what_goes_wrong_is_one_line(hub: Hub, command: Command) -> None:
    refused(command, "a/m@nope", 'no revision "nope"')
    refused(command, "a/other", "no model a/other")
    refused(command, "a/m:x.safetensors", "has no file")
    refused(command, "a/m:x.bin", "not the name of a .safetensors or .gguf file")
    refused(command, "a/m:../x.safetensors", "not the name")
    refused(command, "a/m@../../x", "not a Hub id")
    refused(command, "sdxl-tubro", "did you mean sdxl-turbo")
    hub.gone = "unet/config.json"
    refused(command, "a/m", "missing on the Hub")
    hub.gated = True
    refused(command, "a/m", "gated: accept its licence")
    assert find.names() == ["default", "few-steps"]


def test_no_room_is_said_before_anything_is_fetched(
    hub: Hub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_hub, "SPARE", 2**60)
    refused(command, "a/m", "B are free")
    assert hub.fetched == ["info"]


def test_a_cache_that_cannot_be_written_is_one_line(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "hf").write_text("a file")
    refused(command, "a/m", "cannot write to")
    (tmp_path / "hf").unlink()
    (hub_cache.cache_dir() / "models--a--m").mkdir(parents=True)
    (hub_cache.cache_dir() / "models--a--m/blobs").write_text("a file")
    refused(command, "a/m", "cannot write to")


@pytest.mark.parametrize("offline", [False, True])
def test_no_network_is_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    outcome = command("models", "pull", "sd15", "--endpoint", "http://127.0.0.1:9", "-q")
    assert outcome.code == 1 and "cannot fetch" in outcome.err and outcome.err.count("\n") == 1


def test_an_interrupted_pull_ends_soon_and_is_gone_on_with(hub: Hub, command: Command) -> None:
    hub.stall = f"vae/{WEIGHTS}.safetensors"
    hub.files[hub.stall] = bytes(30_000_000)
    line = [sys.executable, "-m", "txt2img", "models", "pull", "a/m", "-q"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert hub.stalled.wait(60)
    process.send_signal(signal.SIGINT)
    hub.stall = ""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count(b"\n") == 1 and not out, err
    with pytest.raises(ModelNotFound):
        find.find("a/m")
    assert not list(hub_cache.cache_dir().rglob("*.incomplete"))
    hub.fetched.clear()
    assert command("models", "pull", "a/m", "-q").code == 0
    assert UNET not in hub.fetched and find.find("a/m")


EVIL = "../../../../evil"


@pytest.mark.parametrize("name", [f"LICENSE/{EVIL}", f"LICENSE\\{EVIL}", f"unet/{EVIL}.json"])
def test_a_name_on_the_hub_leads_nowhere(hub: Hub, command: Command, name: str) -> None:
    hub.files[name] = b"evil"
    home = Path(command("models", "pull", "a/m", "-q").out.strip())
    assert files_in(home) == PULLED
    nothing_outside(hub_cache.cache_dir())


@pytest.mark.parametrize("name", [EVIL, f"unet/{EVIL}", "..\\..\\evil"])
def test_a_name_that_was_listed_later_is_refused_by_the_library(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, command: Command, name: str
) -> None:
    hub.files[name] = b"evil"
    monkeypatch.setattr(weights_hub, "needed", lambda names, *_: names)
    refused(command, "a/m", "cannot fetch")
    nothing_outside(hub_cache.cache_dir())


@pytest.mark.parametrize("hash", [EVIL, "{cache}/../../evil", "..\\..\\evil"])
@pytest.mark.parametrize("place", ["etags", "listed"])
def test_a_hash_on_the_hub_leads_nowhere(hub: Hub, command: Command, place: str, hash: str) -> None:
    getattr(hub, place)[UNET] = hash.format(cache=hub_cache.cache_dir())
    refused(command, "a/m", "which is no hash")
    nothing_outside(hub_cache.cache_dir())


@pytest.mark.parametrize("commit", ["../../evil", "", "main"])
def test_a_commit_on_the_hub_leads_nowhere(hub: Hub, command: Command, commit: str) -> None:
    hub.commit = commit
    refused(command, "a/m", "names no commit")
    nothing_outside(hub_cache.cache_dir())


def test_a_branch_in_the_cache_leads_nowhere(hub: Hub, command: Command) -> None:
    home = Path(command("models", "pull", "a/m", "-q").out.strip())
    other = hub_cache.cache_dir() / "elsewhere"
    home.rename(other)
    (hub_cache.cache_dir() / "models--a--m/refs/main").write_text("../../elsewhere")
    with pytest.raises(ModelNotFound):
        find.find("a/m")


def test_a_download_without_an_end_does_not_fill_the_disk(
    hub: Hub, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_hub, "SPARE", 2**20)
    hub.flood = UNET
    refused(command, "a/m", "more bytes than it announced")
    assert hub.sent < 2**26
    assert sum(path.stat().st_size for path in hub_cache.cache_dir().rglob("*.*")) < 2**20


def nothing_outside(cache: Path) -> None:
    """Nothing of that name is anywhere but inside a snapshot, and no link leads out."""
    root = cache.parent.parent
    assert not [path for path in root.rglob("*evil*")]
    assert all(path.resolve().is_relative_to(cache) for path in cache.rglob("*"))


def test_models_that_an_earlier_version_pulled_are_found_and_not_fetched_again(
    hub: Hub, command: Command, tmp_path: Path
) -> None:
    home = tmp_path / "data/txt2img/models/a--m"
    for name in PULLED:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(FILES[name])
    record = {"id": "a/m", "asked": "main", "revision": COMMIT, "licence": "mit"}
    (home / find.RECORD).write_text(json.dumps(record))
    for name in ("a/m", "a/m@main", f"a/m@{COMMIT}", "a--m"):
        assert find.find(name) == home
    with pytest.raises(ModelNotFound):
        find.find("a/m@v2")
    assert find.source(home) == {"id": "a/m", "revision": COMMIT, "licence": "mit"}
    assert command("models", "pull", "a/m", "-q").out.strip() == str(home)
    assert hub.fetched == ["info"]
    hub.commit = "f" * 40
    newer = Path(command("models", "pull", "a/m", "-q").out.strip())
    assert newer.is_relative_to(hub_cache.cache_dir()) and find.find("a/m") == newer


def test_a_pulled_model_draws_and_is_recorded_by_its_name(
    hub: Hub, command: Command, sd1_folder: Path
) -> None:
    hub.files = {name: (sd1_folder / name).read_bytes() for name in files_in(sd1_folder)}
    home = command("models", "pull", "a/m", "-q").out.strip()
    hub.gated = True
    small = ("-W", "64", "-H", "64", "--steps", "1", "--seed", "1", "-q")
    assert command("a cat", "-m", "a/m", *small, "-o", "x.png").code == 0
    assert image_file.read(Path("x.png")).origin.model == "m"
    shown = json.loads(command("models", "show", "a/m", "--json").out)
    assert (shown["id"], shown["revision"], shown["path"]) == ("a/m", COMMIT, home)
    rows = [json.loads(line) for line in command("models", "list", "--json").out.splitlines()]
    assert ("a/m", "model", home) in [(row["name"], row["kind"], row["path"]) for row in rows]


def test_weights_of_other_programs_in_the_cache_are_not_listed(hub: Hub, command: Command) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b"a language model"}
    snapshot_download("a/m", cache_dir=hub_cache.cache_dir(), endpoint=hub.url)
    outcome = command("models", "list")
    assert "a/m" not in outcome.out and not outcome.err


def test_a_transformers_parts_are_pulled_and_found_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    weights = {part: "diffusion_pytorch_model" if part in parts[:2] else "model" for part in parts}
    names = [f"{part}/{stem}.safetensors" for part, stem in weights.items()]
    names += [f"{part}/config.json" for part in parts]
    names += ["model_index.json", "tokenizer_3/tokenizer.json", "sd3.5_medium.safetensors"]
    assert set(weights_hub.needed(names, "a/b")) == {*names} - {"sd3.5_medium.safetensors"}
    snapshot = hub_cache.snapshot_dir(hub_cache.HubRef("a/b", "0" * 40))
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text("{}")
    index = {part: ["library", "Class"] for part in parts}
    (snapshot / "model_index.json").write_text(json.dumps(index))
    assert hub_cache.find(hub_cache.HubRef("a/b", "0" * 40)) == snapshot
    (snapshot / names[0]).unlink()
    assert hub_cache.find(hub_cache.HubRef("a/b", "0" * 40)) is None
