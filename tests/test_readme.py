"""README.md says what is so: its help text, its file tree, its commands.

Run as a script it writes the current help text and file tree into README.md.
"""

import ast
import re
import shlex

import pytest
import typer
import yaml

from tests.test_layers import PACKAGE, ROWS
from txt2img.cli.registry import NAMES, command
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


def test_options_of_the_table_exist() -> None:
    function, _ = command("generate")
    app = typer.Typer()
    app.command()(function)
    shown = [p for p in typer.main.get_command(app).params if not getattr(p, "hidden", False)]
    options = {option for param in shown for option in (*param.opts, *param.secondary_opts)}
    rows = re.search(r"<!-- options: begin -->(.*)<!-- options: end -->", README.read_text(), re.S)
    assert rows
    first = [line.split(" | ")[0] for line in rows[1].splitlines() if line.startswith("| `")]
    named = {flag for cell in first for flag in re.findall(r"(--?[A-Za-z][a-z-]*)", cell)}
    assert len(named) > 20
    assert named <= options


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
        if words[0] == "models" or words in (["--help"], ["-h"]):
            continue
        function, _ = command(name)
        app = typer.Typer()
        app.command()(function)
        read = typer.main.get_command(app)
        options = {o for p in read.params for o in (*p.opts, *p.secondary_opts)}
        asked = [word for word in words if re.match(r"--?[A-Za-z]", word)]
        assert set(asked) <= options | {"--install-completion", "-h"}, words


def test_the_manifest_is_an_indexed_job_that_draws_all_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = re.search(r"```yaml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert manifest
    spec = yaml.safe_load(manifest[1])["spec"]
    container = spec["template"]["spec"]["containers"][0]
    variables = {one["name"]: one["value"] for one in container["env"]}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX"):
        monkeypatch.delenv(name, raising=False)
    parts = []
    for index in range(spec["completions"]):  # Kubernetes sets this one
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        parts.append(launcher.array_part())
    assert spec["completionMode"] == "Indexed"
    assert parts == [(part, len(parts)) for part in range(1, len(parts) + 1)]
    assert said(shlex.join(container["command"]))[-2:] == ["--shard", "auto"]
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in spec["template"]["spec"]["volumes"]}


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
