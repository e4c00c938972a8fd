"""README.md says what is so: its help text, its file tree, its commands.

Run as a script it writes the current help text and file tree into README.md.
"""

import ast
import re
import shlex
from collections.abc import Callable

import pytest
import typer

from tests.test_layers import PACKAGE, ROWS
from txt2img.cli.options.command import ALIASES
from txt2img.cli.registry import NAMES, command, model_commands
from txt2img.system import launcher

ROOT = PACKAGE.parent
README = ROOT / "README.md"
BLOCK = r"(?<=<!-- {0}: begin -->\n```text\n).*?(?=```\n<!-- {0}: end -->)"


def tree_text() -> str:
    """The package's folders, lowest layer first, each with its first docstring line."""
    lines = []
    for name in (name for layer in ROWS for name in layer if name != "__main__.py"):
        source = PACKAGE / name / "__init__.py" if name.endswith("/") else PACKAGE / name
        sentence = (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").splitlines()[0]
        lines.append(f"{name:<13}{sentence}")
    return "\n".join(lines) + "\n"


def block(name: str) -> str:
    """What README.md has between the markers of that name."""
    found = re.search(BLOCK.format(name), README.read_text("utf-8"), re.DOTALL)
    assert found, f"README.md has no markers for its {name}"
    return found[0]


def options_of(function: Callable[..., None]) -> set[str]:
    """The options of a command, without hidden ones."""
    app = typer.Typer()
    app.command()(function)
    shown = [p for p in typer.main.get_command(app).params if not getattr(p, "hidden", False)]
    return {option for param in shown for option in (*param.opts, *param.secondary_opts)}


@pytest.mark.parametrize("page", ["README.md", "weights.md"])
def test_options_in_the_text_exist(page: str) -> None:
    code = re.findall(r"`([^`\n]+)`", (ROOT / page).read_text("utf-8"))
    ours = [text for text in code if not text.startswith(("make ", "pip ", "uv "))]
    named = {flag for text in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    functions = [command(name)[0] for name in NAMES if name != "models"]
    functions += [function for function, _ in model_commands().values()]
    known = set().union(*map(options_of, functions))
    known |= {f"--{name}" for name in (*ALIASES, "help", "install-completion")}
    assert len(named) > 5
    assert named <= known


def test_tree_is_what_exists() -> None:
    assert block("tree") == tree_text(), "say: make readme"


def test_commands_exist() -> None:
    text = README.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test"} <= commands <= targets


def said(line: str) -> list[str]:
    """The words of a line of shell that are txt2img's, without streams; none if it is not run."""
    words = shlex.split(line)
    words = words[: words.index(">")] if ">" in words else words
    start = words.index("txt2img") + 1 if "txt2img" in words else len(words)
    return words[start:]


def test_lines_of_the_shell_name_options_that_exist() -> None:
    text = README.read_text("utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).splitlines()
    lines = [
        words for line in shell + re.findall(r"`(txt2img [^`]+)`", text) if (words := said(line))
    ]
    assert len(lines) > 35
    for words in lines:
        name = words[0] if words[0] in NAMES else "generate"
        if words[0] == "models" or words[0] in ("--help", "-h", "help", "COMMAND"):
            continue
        options = options_of(command(name)[0])
        asked = [word for word in words if re.match(r"--?[A-Za-z]", word)]
        assert set(asked) <= options | {"--install-completion", "-h"}, words


def test_the_job_array_draws_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    script = re.search(r"```sh\n(#!/bin/bash\n.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert script
    array = re.search(r"#SBATCH --array=0-(\d+)", script[1])
    assert array and said(script[1].splitlines()[-1])[-2:] == ["--shard", "auto"]
    for name in ("JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX"):
        monkeypatch.delenv(name, raising=False)
    count = int(array[1]) + 1
    parts = []
    for index in range(count):  # as Slurm sets them
        task = {"ID": index, "COUNT": count, "MIN": 0, "MAX": count - 1, "STEP": 1}
        for name, value in task.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        parts.append(launcher.array_part())
    assert parts == [(part, count) for part in range(1, count + 1)]


def test_contents_lead_to_sections() -> None:
    text = README.read_text("utf-8")
    titles = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    anchors = [title.lower().replace(" ", "-") for title in titles]
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= set(anchors)


def test_links_lead_somewhere() -> None:
    for page in (README, ROOT / "weights.md"):
        links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
        assert not [link for link in links if not (ROOT / link).exists()]


def main() -> None:
    """Bring README.md up to date."""
    text = README.read_text("utf-8")
    text = re.sub(BLOCK.format("tree"), lambda _: tree_text(), text, flags=re.DOTALL)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
