"""README.md says what is so: its help text, its file tree, its commands.

Run as a script it writes the current help text and file tree into README.md.
"""

import ast
import re
import shlex
from pathlib import Path

import typer
from test_cli_start import run
from test_layers import PACKAGE, ROWS

from txt2img.cli.commands import NAMES, command

ROOT = PACKAGE.parent
README = ROOT / "README.md"
BLOCK = r"(?<=<!-- {0}: begin -->\n```text\n).*?(?=```\n<!-- {0}: end -->)"
LEFT_BY_TOOLS = {"__pycache__"}
# Source files speak for themselves: their first line is their sentence. These cannot.
SENTENCES = {
    "pyproject.toml": "The package: what it needs, how it is checked.",
    "Makefile": "Every command of this page; sets up what it needs.",
    ".ci/run": "From a bare clone to tested.",
    ".pre-commit-config.yaml": "The checks of make lint, before each commit.",
    ".gitignore": "What tools and commands leave behind.",
    "LICENSE": "Apache-2.0.",
    "README.md": "This page.",
    "weights.md": "Which models load, and how the default one was made.",
    "txt2img/": "The package, lowest layer first.",
    "txt2img/weights/default/": "The default model, an ordinary diffusers folder.",
    "txt2img/weights/tokenizer/": "CLIP's merges, which single files lack, and their licence.",
    "tests/": "Named after what they test: test_x.py, if it is not below, tests x.py.",
    "tests/keys/": "Names and shapes of the tensors of published models, in both layouts.",
    "tests/pictures/": "The pictures of this page.",
}
MIRRORS = {f"test_{path.name}" for path in PACKAGE.rglob("*.py")}  # their names say what for
TOP = [name for name in SENTENCES if "/" not in name] + [".ci/run"]


def help_text() -> str:
    """What `txt2img --help` prints on a terminal of 80 columns."""
    lines = run("--help").stdout.strip("\n").splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def named(path: Path) -> str:
    """A path from the root, a folder's with a slash at its end."""
    return path.relative_to(ROOT).as_posix() + "/" * path.is_dir()


def sentence(path: Path) -> str:
    """What a file or folder is for: its first line, or what the list above says."""
    if named(path) in SENTENCES:
        return SENTENCES[named(path)]
    if path.suffix in (".toml", ".txt"):
        return path.read_text("utf-8").splitlines()[0].removeprefix("# ")
    source = path / "__init__.py" if path.is_dir() else path
    assert source.suffix == ".py" and source.exists(), f"SENTENCES has none for {named(path)}"
    return (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").splitlines()[0]


def rank(path: Path) -> tuple[int, str]:
    """The package's own files go by layer, all others by name."""
    layers = [name for layer in ROWS for name in layer]
    name = path.name + "/" * path.is_dir()
    return (layers.index(name) if path.parent == PACKAGE else 0, name)


def branch(path: Path, level: int) -> list[str]:
    """The lines of a file, or of a folder and all in it that is source."""
    name = path.name if level or path.is_dir() else named(path)
    lines = [f"{'  ' * level + name + '/' * path.is_dir():<26}{sentence(path)}"]
    if path.is_dir() and any(path.glob("*.py")):
        inside = [p for p in path.iterdir() if p.name not in LEFT_BY_TOOLS]
        # A folder's __init__.py is the folder's own sentence; the package's is more than that.
        shown = [p for p in inside if p.name != "__init__.py" or path == PACKAGE]
        shown = [p for p in shown if p.name not in MIRRORS]
        lines += [line for child in sorted(shown, key=rank) for line in branch(child, level + 1)]
    return lines


def tree_text() -> str:
    """Every file of the project, a sentence each."""
    paths = [ROOT / name for name in TOP] + [PACKAGE, ROOT / "tests"]
    return "\n".join(line for path in paths for line in branch(path, 0)) + "\n"


def block(name: str) -> str:
    """What README.md has between the markers of that name."""
    found = re.search(BLOCK.format(name), README.read_text("utf-8"), re.DOTALL)
    assert found, f"README.md has no markers for its {name}"
    return found[0]


def test_help_text_is_what_the_command_says() -> None:
    assert block("help") == help_text(), "say: make readme"


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
    assert len(lines) > 50
    for words in lines:
        name = words[0] if words[0] in NAMES else "generate"
        if words[0] == "models" or words == ["--help"]:
            continue
        function, _ = command(name)
        app = typer.Typer()
        app.command()(function)
        read = typer.main.get_command(app)
        options = {o for p in read.params for o in (*p.opts, *p.secondary_opts)}
        asked = [word for word in words if re.match(r"--?[A-Za-z]", word)]
        assert set(asked) <= options | {"--install-completion"}, words


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
    for name, new in (("help", help_text()), ("tree", tree_text())):
        text = re.sub(BLOCK.format(name), lambda _, new=new: new, text, flags=re.DOTALL)
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
