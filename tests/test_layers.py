"""The house's rules, read off the source: who may import whom, and what nobody may do."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "txt2img"

# Lowest first. A file imports its own folder and lower rows only; a name with a slash is a folder.
ROWS = (
    ("errors.py", "escape.py", "launch.py", "units.py", "hints.py"),
    (
        *("extras.py", "request.py", "library.py", "locks.py", "disk.py", "infotext.py"),
        *("lines.py", "prompts.py", "wildcards.py", "sweep.py", "output.py", "png.py", "gate.py"),
        *("ledger.py", "sheet.py", "settings.py", "prompt.py", "compat.py"),
        *("comfy.py", "exif.py", "foreign.py", "formats.py", "frames.py", "room.py", "interval.py"),
        *("traps.py", "machine.py", "past.py", "writers.py", "novelai.py"),
    ),
    ("device.py", "offload.py", "memory.py", "meeting.py", "diffusion/"),
    ("models/",),
    ("weights/",),
    (
        *("quick.py", "decoding.py", "pipeline.py", "latents.py", "previews.py", "batch.py"),
        *("amount.py", "verify.py", "forecast.py", "stopwatch.py", "seeds.py", "conditions.py"),
        *("denoising.py", "finishing.py"),
    ),
    ("train/",),
    ("cli/",),
    ("__main__.py", "__init__.py"),
)
TORCH_ROWS = range(2, 7)  # those above may import torch inside functions, those below never

# The only homes of each library that is not a standard one; torch lives in TORCH_ROWS.
HOMES = {
    "accelerate": ("device.py", "offload.py", "train/"),
    "huggingface_hub": ("weights/hub.py",),
    "numpy": ("device.py", "diffusion/", "models/", "weights/", "pipeline.py", "train/"),
    "PIL": (
        "verify.py",
        "png.py",
        "exif.py",
        "gate.py",
        "sheet.py",
        "frames.py",
        "pipeline.py",
        "previews.py",
        "batch.py",
        "finishing.py",
        "train/",
        "cli/",
    ),
    "resvg_py": ("train/artwork.py",),
    "rich": ("cli/",),
    "safetensors": ("weights/", "train/"),
    "torchao": ("models/quantized.py",),
    "tokenizers": ("models/tokens.py", "weights/", "train/"),
    "typer": ("cli/",),
}
# Run with -m from a shell: they print, and the first may fetch what it draws.
SCRIPTS = ("train/artwork.py", "train/evaluate.py")
PRINTERS = ("cli/", *SCRIPTS)
FILES = {"glob", "io", "json", "os", "pathlib", "shutil", "tempfile"}  # not for rows 2 and 3
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "socket", "urllib"}
PURE = {"urllib.parse.quote", "urllib.parse.urlsplit"}  # they reach for nothing
CODE_IN_DATA = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
SOCKETS = ("cli/wire.py", "cli/warm.py", "cli/serve.py")  # Unix ones: see below
BANNED_CALLS = {"__import__", "compile", "eval", "exec"}
BANNED_DOTTED = {
    "accelerate.load_checkpoint_in_model",
    "numpy.load",
    "np.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.load",
}
LINES_IN_A_FUNCTION = 40

SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text("utf-8")) for p in SOURCES}


def within(file: str, homes: tuple[str, ...]) -> bool:
    """Whether a file is one of the homes, or lies in one that is a folder."""
    return any(file.startswith(home) if home.endswith("/") else file == home for home in homes)


def row(file: str) -> int:
    """The row of a file; the text names the file when the table has no place for it."""
    rows = [number for number, homes in enumerate(ROWS) if within(file, homes)]
    assert len(rows) == 1, f"{file} is in rows {rows}: give it one place in ROWS"
    return rows[0]


def modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The full dotted names that one statement imports, of names as well as of modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.module and not node.level, "relative imports hide which layer is meant"
    return [f"{node.module}.{alias.name}" for alias in node.names]


def imports(tree: ast.AST) -> list[str]:
    """All that a file imports, wherever it says so."""
    statements = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    return [name for statement in statements for name in modules(statement)]


def at_start(node: ast.AST) -> Iterator[str]:
    """What is imported when the file is: not inside functions, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield from modules(child)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from at_start(other)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_start(child)


def own_file(name: str) -> str | None:
    """The file of this package that a dotted name comes from; None for other libraries."""
    top, *parts = name.split(".")
    if top != PACKAGE.name:
        return None
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for file in (f"{stem}.py", f"{stem}/__init__.py"):
            if file in TREES:
                return file
    return "__init__.py"


def libraries(names: list[str]) -> set[str]:
    """The first words of dotted names that are neither ours nor the standard library's."""
    firsts = {name.split(".")[0] for name in names}
    return firsts - set(sys.stdlib_module_names) - {PACKAGE.name}


def dotted_calls(tree: ast.AST) -> set[str]:
    """Every function that is called, as it is written."""
    return {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}


each_file = pytest.mark.parametrize("file", TREES)


@each_file
def test_imports_own_folder_and_lower_rows_only(file: str) -> None:
    for name in imports(TREES[file]):
        other = own_file(name)
        if other is None or name == f"{PACKAGE.name}.__version__":
            continue
        same_folder = Path(other).parent == Path(file).parent
        lower = row(other) < row(file)
        assert lower or (same_folder and row(other) == row(file)), f"{file} imports {name}"


@each_file
def test_torch_stays_in_its_rows(file: str) -> None:
    if row(file) in TORCH_ROWS:
        return
    above = row(file) > TORCH_ROWS[-1]
    names = list(at_start(TREES[file])) if above else imports(TREES[file])
    assert "torch" not in libraries(names)


@each_file
def test_the_top_rows_import_the_torch_side_inside_functions_only(file: str) -> None:
    if row(file) <= TORCH_ROWS[-1]:
        return
    others = {own_file(name) for name in at_start(TREES[file])} - {None}
    assert not {other for other in others if row(str(other)) in TORCH_ROWS}


@each_file
def test_a_library_is_imported_in_its_homes_only(file: str) -> None:
    for library in libraries(imports(TREES[file])) - {"torch"}:
        assert library in HOMES, f"{file} imports {library}, which HOMES does not know"
        assert within(file, HOMES[library]), f"{file} imports {library}"


@each_file
def test_the_maths_and_the_networks_know_no_files(file: str) -> None:
    if row(file) not in (2, 3):
        return
    assert not {name.split(".")[0] for name in imports(TREES[file])} & (FILES | {"safetensors"})
    assert not {call for call in dotted_calls(TREES[file]) if call in ("open", "torch.save")}


@each_file
def test_the_maths_defines_no_network(file: str) -> None:
    if row(file) != 2:
        return
    classes = (n for n in ast.walk(TREES[file]) if isinstance(n, ast.ClassDef))
    bases = {ast.unparse(base) for defined in classes for base in defined.bases}
    assert not {base for base in bases if base.split(".")[-1] == "Module"}


@each_file
def test_no_code_from_a_file_is_ever_run(file: str) -> None:
    tree = TREES[file]
    assert not {name.split(".")[0] for name in imports(tree)} & CODE_IN_DATA
    assert not dotted_calls(tree) & (BANNED_CALLS | BANNED_DOTTED)
    assert not {"torch.load", "torch.hub", "torch.jit", "numpy.load"} & set(imports(tree))
    assert file == "__init__.py" or not [n for n in imports(tree) if n.startswith("importlib.imp")]


@each_file
def test_nothing_reaches_for_the_network(file: str) -> None:
    if file in SCRIPTS:
        return
    names = {name for name in imports(TREES[file]) if name not in PURE}
    homes = {name for name in HOMES if file in HOMES[name]}  # the one file that may pull models
    homes |= {"socket"} if file in SOCKETS else set()
    assert not {name.split(".")[0] for name in names} & NETWORK - homes
    spelt = {ast.unparse(n) for n in ast.walk(TREES[file]) if isinstance(n, ast.Attribute)}
    made = {n for n in dotted_calls(TREES[file]) if n.split(".")[0] == "socket"}
    assert not {"socket.AF_INET", "socket.AF_INET6", "socket.AF_VSOCK"} & spelt
    assert made <= {"socket.socket", "socket.send_fds", "socket.recv_fds"}
    if "socket.socket" in made:  # never without the family, which would be the network's
        assert "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)" in ast.unparse(TREES[file])
        assert "socket.socket()" not in ast.unparse(TREES[file])


@each_file
def test_nothing_below_the_command_line_prints(file: str) -> None:
    if within(file, PRINTERS):
        return
    assert "print" not in dotted_calls(TREES[file])
    written = {ast.unparse(n) for n in ast.walk(TREES[file]) if isinstance(n, ast.Attribute)}
    assert not written & {"sys.stdout", "sys.stderr"}


@each_file
def test_commands_get_their_model_in_one_way(file: str) -> None:
    """So that what holds for one holds for all: the worker's model, offload, lack of memory."""
    ways = {"load.load", "kept.KEEPER", "refiner.add_refiner"}
    if within(file, ("cli/",)) and file != "cli/loading.py":
        assert not {f"txt2img.weights.{way}" for way in ways} & set(imports(TREES[file]))


def test_only_what_runs_a_whole_command_line_imports_all_commands() -> None:
    users = {f for f in TREES if "cli/app.py" in map(own_file, imports(TREES[f]))}
    assert users == {"__main__.py", "cli/serve.py"}


@each_file
def test_a_function_fits_a_screen(file: str) -> None:
    functions = (n for n in ast.walk(TREES[file]) if isinstance(n, ast.FunctionDef))
    sizes = {n.name: (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}
    assert not {name: size for name, size in sizes.items() if size > LINES_IN_A_FUNCTION}


@each_file
def test_a_file_says_its_job_first(file: str) -> None:
    assert ast.get_docstring(TREES[file])


def test_every_folder_with_source_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert not {folder.name for folder in folders if not (folder / "__init__.py").exists()}


def test_the_rules_can_fail() -> None:
    tree = ast.parse("import torch\ndef f():\n    from rich import box\n    eval('1')")
    assert list(at_start(tree)) == ["torch"]
    assert libraries(imports(tree)) == {"torch", "rich"}
    assert dotted_calls(tree) & BANNED_CALLS == {"eval"}
