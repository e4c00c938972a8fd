"""Completion in bash, zsh, fish and PowerShell: commands, options, and the choices of each."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from txt2img.cli import registry
from txt2img.cli.app import COMPLETE, run
from txt2img.cli.registry import MODEL_VERBS, NAMES

Complete = Callable[[str, str], set[str]]
SHELLS = ("bash", "zsh", "fish", "powershell")


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Complete:
    """The first words of what a shell is offered after a line, whose last word is unfinished."""

    def offered(shell: str, line: str) -> set[str]:
        last = line.rpartition(" ")[2]
        for name in ("COMP_WORDS", "COMP_CWORD", "_TYPER_COMPLETE_ARGS"):
            monkeypatch.delenv(name, raising=False)
        if shell == "bash":
            monkeypatch.setenv("COMP_WORDS", line)
            monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        else:
            monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        monkeypatch.setenv("_TYPER_COMPLETE_WORD_TO_COMPLETE", last)
        monkeypatch.setenv(COMPLETE, f"complete_{shell}")
        capfd.readouterr()
        assert run([]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        if shell == "zsh":
            return {part.split('"')[1].split(":")[0] for part in out.splitlines() if '"' in part}
        words = (line.split("\t")[0].split(":::")[0] for line in out.splitlines())
        return {word.strip() for word in words if word.strip()}

    return offered


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("txt2img ", set(NAMES)),
        ("txt2img mod", {"models"}),
        ("txt2img models ", set(MODEL_VERBS)),
        ("txt2img models r", {"rm"}),
        ("txt2img worker ", {"status", "stop"}),
        ("txt2img x --sampler dpm++2", {"dpm++2m", "dpm++2m_sde", "dpm++2m_sde_heun", "dpm++2s_a"}),
        ("txt2img x --compat a", {"a1111", "a1111-gpu"}),
        ("txt2img x --tile ", {"none", "x", "y", "xy"}),
        ("txt2img x --offload ", {"auto", "none", "model", "sequential"}),
        ("txt2img x --on-error s", {"stop", "skip"}),
        ("txt2img x --vae-tiling o", {"on", "off"}),
        ("txt2img x --sweep samp", {"sampler="}),
        ("txt2img x --animate ", {"webp", "gif", "png"}),
        ("txt2img replay p.png --sampler heu", {"heun"}),
        ("txt2img train d --stage de", {"decoder"}),
    ],
)
def test_every_shell_is_offered_what_fits(
    shell: str, line: str, words: set[str], complete: Complete
) -> None:
    assert complete(shell, line) == words


def test_options_are_offered(complete: Complete) -> None:
    assert {"--steps", "--strict", "--strength"} <= complete("bash", "txt2img x --st")
    assert complete("bash", "txt2img x --steps 5 ") == set()  # no commands after the first word


def test_every_option_with_choices_completes_them() -> None:
    function, _ = registry.command("generate")
    app = typer.Typer()
    app.command()(function)
    options = [p for p in typer.main.get_command(app).params if not getattr(p, "hidden", False)]
    named = [p for p in options if p.metavar and (p.metavar == "NAME" or "|" in p.metavar)]
    for option in named:
        offers = [item.value for item in option.shell_complete(typer.Context(_command()), "")]
        is_path = {"PATH", "FILE", "FOLDER"} & set((option.metavar or "").strip("[]").split("|"))
        assert offers or is_path or option.opts == ["--profile"], option.opts


def _command() -> typer.core.TyperCommand:
    return typer.core.TyperCommand("txt2img")


def test_a_tab_imports_no_library_that_takes_long() -> None:
    variables = {**os.environ, COMPLETE: "complete_bash", "COMP_WORDS": "txt2img --sampler "}
    code = (
        "import sys; from txt2img.cli import app; app.run([]); "
        "print(*(name in sys.modules for name in ('torch', 'numpy', 'PIL', 'safetensors')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("False False False False\n") and "euler\n" in done.stdout
