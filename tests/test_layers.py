"""The house's rules, read off the source: who may import whom, and what nobody may do."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "txt2img"

# Lowest first. A file imports its own folder and lower rows only; a name with a slash is a folder.
ROWS = (
    ("errors.py",),
    ("system/",),
    ("request/",),
    ("images/",),
    ("diffusion/",),
    ("models/",),
    ("weights/",),
    ("pipeline/",),
    ("train/",),
    ("server/",),
    ("cli/",),
    ("__main__.py", "__init__.py"),
)
# These may import torch at the top; the rows above them inside functions only, all others never.
TORCH = ("diffusion/", "models/", "weights/", "pipeline/", "train/", "system/device/")
ABOVE_TORCH = ("server/", "cli/", "__main__.py", "__init__.py")

LISTENER = "server/listen.py"  # waits for clients, and reaches for nobody
# The only homes of each library that is not a standard one; torch lives in TORCH.
HOMES = {
    "accelerate": ("system/device/", "train/"),
    "cv2": ("images/preprocess.py",),
    "gguf": ("weights/formats/dequantize.py", "weights/formats/writers.py"),
    "vtracer": ("images/svg.py",),
    "httpx": ("system/chat_endpoint.py",),
    "huggingface_hub": ("weights/registry/hub.py",),
    "jinja2": ("weights/language_model.py",),
    "numpy": (
        *("system/device/", "diffusion/", "models/", "weights/", "pipeline/", "train/"),
        *("images/preprocess.py", "images/pose.py", "images/canvas.py"),
    ),
    "PIL": (
        *("images/", "pipeline/", "train/", "server/", "cli/", "weights/annotator.py"),
        "request/fields.py",  # the names of colours
    ),
    "resvg_py": ("train/default_model/build_dataset.py",),
    "rich": ("cli/",),
    "safetensors": ("weights/", "train/"),
    "starlette": ("server/",),
    "spandrel": ("weights/upscaler.py",),
    "torchao": ("models/optimize/quantize.py",),
    "tokenizers": ("models/tokenizer.py", "models/text_tokenizer.py", "weights/", "train/"),
    "transformers": (
        "models/t5.py",
        "models/qwen3.py",
        "models/clip_vision.py",
        "weights/annotator.py",
        "weights/language_model.py",
    ),
    "typer": ("cli/",),
    "uvicorn": (LISTENER,),
}
# Run with -m from a shell: they print, and the first may fetch what it draws.
SCRIPTS = tuple(
    f"train/default_model/{name}.py" for name in ("build_dataset", "evaluate", "warm_start")
)
PRINTERS = ("cli/", *SCRIPTS)
FILES = {"glob", "io", "json", "os", "pathlib", "shutil", "tempfile"}  # not for maths, networks
NETWORK = {"aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "socket", "urllib"}
PURE = {
    "urllib.parse.quote",
    "urllib.parse.urlsplit",
    "urllib.parse.SplitResult",
}  # they reach for nothing
CODE_IN_DATA = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
SOCKETS = (
    "cli/worker/protocol.py",
    "cli/worker/client.py",
    "cli/daemon.py",
)  # Unix ones: see below
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
LINES_IN_A_FILE = 500

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


def graph() -> dict[str, set[str]]:
    """Each file's imports of this package's other files, wherever they stand in it."""
    own = {file: {own_file(name) for name in imports(tree)} for file, tree in TREES.items()}
    return {file: {other for other in others if other} - {file} for file, others in own.items()}


def cycles(arrows: dict[str, set[str]]) -> list[str]:
    """The files that reach themselves by their imports, each with the way back."""
    found = []
    for start in arrows:
        ways, todo = {start: [start]}, [start]
        while todo:
            here = todo.pop()
            for other in arrows.get(here, ()):
                if other == start:
                    found.append(" → ".join([*ways[here], start]))
                    todo.clear()
                    break
                if other not in ways:
                    ways[other] = [*ways[here], other]
                    todo.append(other)
    return found


def test_imports_own_folder_and_lower_rows_only() -> None:
    up = [
        f"{file} imports {other}"
        for file, others in graph().items()
        for other in others
        if row(other) > row(file)
    ]
    assert not up


def test_there_is_no_import_cycle() -> None:
    assert not cycles(graph())


def test_torch_stays_in_its_folders() -> None:
    for file, tree in TREES.items():
        if not within(file, TORCH):
            names = at_start(tree) if within(file, ABOVE_TORCH) else imports(tree)
            assert "torch" not in libraries(list(names)), file


def test_the_top_rows_import_the_torch_side_inside_functions_only() -> None:
    for file in (file for file in TREES if within(file, ABOVE_TORCH)):
        others = {other for name in at_start(TREES[file]) if (other := own_file(name))}
        assert not {other for other in others if within(other, TORCH)}, file


def test_torch_free_folders_never_import_the_torch_side() -> None:
    for file, others in graph().items():
        if not within(file, (*TORCH, *ABOVE_TORCH)):
            assert not {other for other in others if within(other, TORCH)}, file


def test_a_library_is_imported_in_its_homes_only() -> None:
    for file, tree in TREES.items():
        for library in libraries(imports(tree)) - {"torch"}:
            assert library in HOMES, f"{file} imports {library}, which HOMES does not know"
            assert within(file, HOMES[library]), f"{file} imports {library}"


def test_transformers_is_imported_inside_functions_only() -> None:
    """It takes seconds, which a U-Net's pictures need not."""
    for file in (file for file in TREES if within(file, HOMES["transformers"])):
        assert "transformers" not in libraries(list(at_start(TREES[file]))), file


def test_the_maths_and_the_networks_know_no_files() -> None:
    for file in (file for file in TREES if within(file, ("diffusion/", "models/"))):
        names = {name.split(".")[0] for name in imports(TREES[file])}
        assert not names & (FILES | {"safetensors"}), file
        assert not dotted_calls(TREES[file]) & {"open", "torch.save"}, file


def test_the_maths_defines_no_network() -> None:
    for file in (file for file in TREES if within(file, ("diffusion/",))):
        classes = (n for n in ast.walk(TREES[file]) if isinstance(n, ast.ClassDef))
        bases = {ast.unparse(base) for defined in classes for base in defined.bases}
        assert not {base for base in bases if base.split(".")[-1] == "Module"}, file


def test_no_code_from_a_file_is_ever_run() -> None:
    for file, tree in TREES.items():
        assert not {name.split(".")[0] for name in imports(tree)} & CODE_IN_DATA, file
        assert not dotted_calls(tree) & (BANNED_CALLS | BANNED_DOTTED), file
        assert not {"torch.load", "torch.hub", "torch.jit", "numpy.load"} & set(imports(tree)), file
        lazy = [name for name in imports(tree) if name.startswith("importlib.imp")]
        assert file in ("__init__.py", "cli/registry.py") or not lazy, file


def test_nothing_reaches_for_the_network() -> None:
    for file in (file for file in TREES if file not in SCRIPTS):
        names = {name for name in imports(TREES[file]) if name not in PURE}
        homes = {name for name in HOMES if file in HOMES[name]}  # the one file that pulls models
        homes |= {"socket"} if file in (*SOCKETS, LISTENER) else set()
        assert not {name.split(".")[0] for name in names} & NETWORK - homes, file
        spelt = {ast.unparse(n) for n in ast.walk(TREES[file]) if isinstance(n, ast.Attribute)}
        made = {n for n in dotted_calls(TREES[file]) if n.split(".")[0] == "socket"}
        if file == LISTENER:
            assert made == {"socket.create_server"}, file
            continue
        assert not {"socket.AF_INET", "socket.AF_INET6", "socket.AF_VSOCK"} & spelt, file
        assert made <= {"socket.socket", "socket.send_fds", "socket.recv_fds"}, file
        if "socket.socket" in made:  # never without the family, which would be the network's
            text = ast.unparse(TREES[file])
            assert "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)" in text, file
            assert "socket.socket()" not in text, file


def test_nothing_below_the_command_line_prints() -> None:
    for file in (file for file in TREES if not within(file, PRINTERS)):
        assert "print" not in dotted_calls(TREES[file]), file
        written = {ast.unparse(n) for n in ast.walk(TREES[file]) if isinstance(n, ast.Attribute)}
        assert not written & {"sys.stdout", "sys.stderr"}, file


def test_commands_get_their_model_in_one_way() -> None:
    """So that what holds for one holds for all: the worker's model, offload, lack of memory."""
    ways = {"load.load", "model_cache.MODEL_CACHE", "refiner.add_refiner"}
    home = "cli/options/device.py"
    for file in (file for file in TREES if within(file, ("cli/",)) and file != home):
        assert not {f"txt2img.weights.{way}" for way in ways} & set(imports(TREES[file])), file


def test_only_what_runs_a_whole_command_line_imports_all_commands() -> None:
    users = {f for f in TREES if "cli/app.py" in map(own_file, imports(TREES[f]))}
    assert users == {"__main__.py", "cli/daemon.py"}
    commands = {f for f in TREES if within(f, ("cli/commands/",))}
    assert not [f for f, others in graph().items() if others & commands - {f}]  # by name only


def test_a_function_fits_a_screen() -> None:
    for file, tree in TREES.items():
        functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
        sizes = {n.name: (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions}
        assert not {name: size for name, size in sizes.items() if size > LINES_IN_A_FUNCTION}, file


def test_a_file_is_one_topic_long() -> None:
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert not {path.name: size for path, size in sizes.items() if size > LINES_IN_A_FILE}


def test_the_package_holds_what_its_readme_names() -> None:
    folders = {"request", "images", "diffusion", "models", "weights", "pipeline", "train"}
    folders |= {"system", "server", "cli"}
    files = {"__init__.py", "__main__.py", "errors.py", "py.typed"}
    assert {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"} == folders | files


def test_a_file_says_its_job_first() -> None:
    assert not [file for file, tree in TREES.items() if not ast.get_docstring(tree)]


def test_every_folder_with_source_is_a_package() -> None:
    folders = {path.parent for path in SOURCES}
    assert not {folder.name for folder in folders if not (folder / "__init__.py").exists()}


def test_the_rules_can_fail() -> None:
    tree = ast.parse("import torch\ndef f():\n    from rich import box\n    eval('1')")
    assert list(at_start(tree)) == ["torch"]
    assert libraries(imports(tree)) == {"torch", "rich"}
    assert dotted_calls(tree) & BANNED_CALLS == {"eval"}
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b → c → b", "c → b → c"]
    assert not cycles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
