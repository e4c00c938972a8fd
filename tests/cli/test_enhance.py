"""--enhance from outside: what is drawn and recorded, what fails, and who is never asked again."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from tests.conftest import Command
from tests.support.chat_server import Body, ChatServer, chat_server, dead_url, said
from txt2img.cli.options.command import with_left_out_values
from txt2img.images import image_file
from txt2img.request.enhance import FOR_CLIP
from txt2img.request.request import Request

SECRET = "sk-very-secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server whose answers repeat what they are asked."""
    for name in ("TXT2IMG_ENHANCE_KEY", "TXT2IMG_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    with chat_server() as running:
        yield running


def recorded(path: str) -> Request:
    """The request in a picture."""
    request = image_file.read(Path(path)).request
    assert request is not None
    return request


def test_a_prompt_is_rewritten_drawn_and_recorded(draw: Command, server: ChatServer) -> None:
    server.answer = lambda body: f'Sure!\n\n"{said(body)}, a photo (8k)"'
    done = draw("a (red:1.3) cat", "--enhance", f"{server.url}#tiny", "--seed", "7", "-o", "x/")
    assert done.code == 0
    assert done.out == "x/a-red-1.3-cat-7.png\n"  # named as it was written: --resume knows it
    assert "prompt: a (red:1.3) cat, a photo 8k\n" in done.err
    request = recorded("x/a-red-1.3-cat-7.png")
    assert request.prompt == "a (red:1.3) cat, a photo 8k" and request.written == "a (red:1.3) cat"
    assert request.enhancer is not None
    assert (request.enhancer.model, request.enhancer.seed) == ("tiny", 7)
    assert request.enhancer.instructions == FOR_CLIP.hash
    [body] = server.asked
    assert said(body) == "a red cat" and body["messages"][0]["content"] == FOR_CLIP.text


def test_who_draws_again_asks_nobody(
    draw: Command, command: Command, sd1_folder: Path, server: ChatServer
) -> None:
    model = ("-m", str(sd1_folder))
    assert draw("a cat", "--enhance", server.url, "--seed", "7", "-o", "x/").code == 0
    first = Path("x/a-cat-7.png").read_bytes()
    server.answer = lambda body: "something else"
    assert command("replay", "x/a-cat-7.png", *model, "-o", "y.png").code == 0
    assert command("verify", "x/a-cat-7.png", *model).code == 0
    resumed = draw("a cat", "--enhance", server.url, "--seed", "7", "-o", "x/", "--resume")
    assert resumed.code == 0 and not resumed.out
    assert len(server.asked) == 1
    assert image_file.read(Path("y.png")).pixels_sha256 in first.decode("latin-1")
    # Another seed of the language model, or another one, makes another picture.
    other = ("--enhance-seed", "8")
    assert draw("a cat", "--enhance", server.url, *other, "--seed", "7", "-o", "x/", "--resume").out
    assert (
        command("replay", "x/a-cat-7.png", *model, "--enhance", server.url, "-o", "z.png").code == 0
    )
    assert [said(body) for body in server.asked] == ["a cat"] * 3  # from what was written
    assert recorded("z.png").prompt == "something else"
    assert draw("--params-from", "z.png", "a dog", "--seed", "1", "-o", "d.png").code == 0
    dog = recorded("d.png")
    assert dog.prompt == "a dog" and not dog.written and dog.enhancer is None


def test_a_batch_asks_once_a_prompt_and_seed(draw: Command, server: ChatServer) -> None:
    Path("p.txt").write_text(
        "a cat --seed 1\na cat --seed 1 --cfg 3\na cat --seed 2\nAND --seed 1\n"
    )
    Path("lists").mkdir()
    Path("lists/pet.txt").write_text("dog\n")
    Path("q.txt").write_text("a __pet__ --seed 1\n")
    done = draw("--prompts", "p.txt", "--enhance", server.url, "-o", "x/", "--dry-run", "--json")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["prompt"] for row in rows] == ["a fine picture of a cat"] * 3 + ["AND"]
    assert [(said(body), body["seed"]) for body in server.asked] == [("a cat", 1), ("a cat", 2)]
    assert "no words to rewrite; 1 of 3 prompts stay as written" in done.err
    line = ("--prompts", "q.txt", "--wildcards", "lists", "--enhance", server.url, "--dry-run")
    assert "a fine picture of a dog" in draw(*line).out


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "its answer is empty"),
        ("I'm sorry, but I can't help with that.", "it refuses"),
        ("x " * 9_000, "its answer has 18,000 characters"),
        ("<html>Busy</html>", "a page of HTML"),
    ],
)
def test_an_answer_that_is_no_prompt_is_warned_of(
    draw: Command, server: ChatServer, answer: str, why: str
) -> None:
    server.answer = lambda body: answer
    done = draw("a cat", "--enhance", server.url, "--seed", "1", "-o", "x.png")
    assert done.code == 0 and f"{why}" in done.err and "the prompt stays as written" in done.err
    request = recorded("x.png")
    assert request.prompt == "a cat" and not request.written and request.enhancer is None
    strict = draw("a cat", "--enhance", server.url, "--seed", "1", "--strict", "-o", "y.png")
    assert strict.code == 2 and why in strict.err and not Path("y.png").exists()


def test_a_dead_server_is_not_asked_for_every_prompt(draw: Command, server: ChatServer) -> None:
    server.status, server.raw = 503, b"busy"
    line = ("a cat", "--enhance", server.url, "--seed", "1", "--count", "9", "--dry-run")
    done = draw(*line)
    assert done.code == 0 and "status 503; 9 of 9 prompts stay as written" in done.err
    assert len(server.asked) == 3
    alone = draw("a cat", "--enhance", dead_url(), "--seed", "1", "--dry-run")
    assert alone.code == 0 and "nothing answers" in alone.err


def test_the_key_reaches_the_server_alone(
    draw: Command, command: Command, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_ENHANCE_KEY", SECRET)
    done = draw("a cat", "--enhance", server.url, "--seed", "1", "-o", "x.png")
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    server.status, server.raw = 400, json.dumps({"error": f"bad {SECRET}"}).encode()
    failed = draw("a cat", "--enhance", server.url, "--seed", "1", "--strict", "-o", "y.png")
    described = command("env")
    assert failed.code == 2 and "bad …" in failed.err
    for text in (done.out, done.err, failed.out, failed.err, described.out, described.err):
        assert SECRET not in text
    assert SECRET.encode() not in Path("x.png").read_bytes()
    assert b"127.0.0.1" not in Path("x.png").read_bytes()


def test_the_config_names_the_language_model(draw: Command, server: ChatServer) -> None:
    Path("config/txt2img").mkdir(parents=True)
    Path("config/txt2img/how.txt").write_text("Be a poet.\n")
    Path("config/txt2img/key").write_text(f"{SECRET}\n")
    Path("config/txt2img/config.toml").write_text(
        f'[enhance]\nmodel = "{server.url}#a"\nprompt = "how.txt"\ntemperature = 0\nseed = 5\n'
        'key-file = "key"\ntimeout = 9\n'
    )
    done = draw("a cat", "--enhance", "--seed", "1", "--dry-run")
    assert done.code == 0 and "a fine picture of a cat" in done.out
    [body] = server.asked
    assert (body["model"], body["temperature"], body["seed"]) == ("a", 0, 5)
    assert body["messages"][0]["content"] == "Be a poet."
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    Path("mine.txt").write_text("Be brief.")
    more = ("--enhance-prompt", "mine.txt", "--enhance-temperature", "1.5", "--enhance-seed", "6")
    assert draw("--enhance", "a cat", *more, "--seed", "1", "--dry-run").code == 0
    body = server.asked[1]
    assert (body["temperature"], body["seed"]) == (1.5, 6)
    assert body["messages"][0]["content"] == "Be brief."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--enhance", "--enhance needs the URL of a server"),
        ("--enhance ./nowhere", "no folder"),
        ("--enhance http://u:p@h/v1", "does not belong in a URL"),
        ("--enhance http://h --enhance-temperature 3", "must be 0 … 2, got 3"),
        ("--enhance http://h --enhance-seed -2", "must be 0 … 2^64-1"),
        ("--enhance http://h --enhance-prompt nowhere.txt", "cannot read"),
        ("--enhance-seed 2", "go with --enhance"),
    ],
)
def test_mistakes_are_told_in_a_line(
    draw: Command, server: ChatServer, words: str, message: str
) -> None:
    done = draw("a cat", *words.split(), "--dry-run")
    assert done.code in (1, 2) and message in done.err and done.err.count("\n") == 1


def test_keys_of_the_config_are_known(draw: Command, server: ChatServer) -> None:
    Path("config/txt2img").mkdir(parents=True)
    Path("config/txt2img/config.toml").write_text('[enhance]\nmodle = "x"\n')
    done = draw("a cat", "--dry-run")
    assert done.code == 1 and 'unknown key "modle"; did you mean model?' in done.err


def test_a_value_is_an_address_or_a_folder(folder: Path) -> None:
    Path("qwen").mkdir()
    for value in ("http://h/v1", "./x", "~/x", "/x", "qwen"):
        assert with_left_out_values(["--enhance", value, "a cat"]) == ["--enhance", value, "a cat"]
    for line in (["--enhance", "a cat"], ["a cat", "--enhance"], ["--enhance", "--seed", "1"]):
        place = line.index("--enhance") + 1
        assert with_left_out_values(line) == [*line[:place], "config", *line[place:]]


def test_the_command_prints_prompts_that_pipe_into_others(
    command: Command, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: Body) -> str:
        return "" if "dog" in said(body) else f"# {said(body)} --seed 5\nin {{a|b}} light"

    server.answer = answer
    line = ("enhance", "a cat <lora:x>", "a dog", "--enhance", server.url)
    done = command(*line)
    assert done.code == 0 and done.out == "a cat, in a b light, <lora:x>\na dog\n"
    assert "its answer is empty; the prompt stays as written" in done.err
    assert command(*line, "--strict").code == 1
    assert command("enhance").code == 2
    words = server.asked[0]["messages"][0]["content"]
    assert "red apple" in words and "twemoji" in words  # what the default model was taught
