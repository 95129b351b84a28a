"""Who may import whom, what is imported where, and what committed files may not name."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app"

# A unit imports units of lower rows only. A package is one unit.
ROWS = (
    ("launch", "cli"),
    ("recovery", "cluster"),
    ("ui", "server"),
    ("api",),
    ("chat", "eval", "train", "guard"),
    ("runtime", "tasks"),
    ("models", "ingest", "store"),
    ("memory",),
    ("kernels",),
    ("records", "settings"),
    ("errors", "setup", "markdown"),
    ("system", "wellformed", "mathml"),
)

# Third-party libraries and the units that may import them.
LIBRARIES = {
    "gradio": {"ui", "server"},  # the server only mounts what the UI built
    "fastapi": {"server", "api", "cluster"},
    "prometheus_client": {"api"},
    "pydantic": {"api"},
    "anyio": {"api"},
    "starlette": {"server", "guard", "recovery", "api", "cluster"},
    "uvicorn": {"server"},
    "ray": {"cluster"},
    "sqlite_utils": {"store"},
    "filelock": {"store"},
    "pypdf": {"ingest"},
    "pypdfium2": {"ingest"},
    "pathspec": {"ingest"},
    "lxml": {"ingest", "mathml"},
    "latex2mathml": {"mathml"},
    "rapidocr": {"ingest"},
    "cv2": {"ingest"},
    "mathml_to_latex": {"ingest"},
    "officemath2latex": {"ingest"},
    "chardet": {"ingest"},
    "markdown_it": {"markdown"},
    "mdit_py_plugins": {"markdown"},
    "pygments": {"ingest"},
    "tokenizers": {"ingest", "models", "runtime", "train", "eval"},
    "torch": {"kernels", "memory", "models", "runtime", "train", "eval", "cli"},
    "triton": {"kernels"},
    "flash_attn": {"kernels"},
    "transformers": {"models", "runtime", "train", "eval"},
    "safetensors": {"models", "train"},
    "huggingface_hub": {"models"},
    "peft": {"models", "train"},
    "accelerate": {"train"},
    "numpy": {"kernels", "models", "train", "eval"},
    "psutil": {"models", "train", "system"},
    "gguf": {"models"},
    "platformdirs": {"settings"},
    "PIL": {"ingest", "ui"},
}
PACKAGES = {
    "markdown_it": "markdown-it-py", "mdit_py_plugins": "mdit-py-plugins",
    "sqlite_utils": "sqlite-utils", "mathml_to_latex": "mathml-to-latex",
    "PIL": "pypdfium2",
}  # fmt: skip
# One comes with CUDA builds of torch and with the test packages, one never, some with `setup --with`.
OPTIONAL = {"triton", "flash_attn", "rapidocr", "cv2", "ray"}

MODULES = sorted(path for path in (*APP.rglob("*.py"), ROOT / "launch.py") if "__pycache__" not in path.parts)


def unit_of(path: Path) -> str:
    """The unit a file belongs to: "launch", a module of app, or a package of app."""
    relative = path.relative_to(ROOT)
    return relative.stem if len(relative.parts) <= 2 else relative.parts[1]


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports, those inside functions and TYPE_CHECKING too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else ""
            base = ".".join(filter(None, (package, node.module)))
            found += [f"{base}.{alias.name}" for alias in node.names]
    return tuple(found)


def row(unit: str) -> int:
    return next(index for index, units in enumerate(ROWS) if unit in units)


def broken_rules(path: Path) -> Iterator[str]:
    """What a file imports that it may not."""
    unit = unit_of(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top in sys.stdlib_module_names or name == "__future__":
            continue
        if top == "launch":
            yield f"{name}: nothing imports launch.py"
        elif top == "app":
            other = rest.partition(".")[0]
            known = any(other in units for units in ROWS)
            if not known or other == unit:
                continue  # `from app import __version__`; a package's own modules
            if row(other) <= row(unit):
                yield f"{name}: {unit} stands in row {row(unit)}, {other} in row {row(other)}"
        elif top not in LIBRARIES:
            yield f"{name}: a library that tests/test_imports.py does not know"
        elif unit not in LIBRARIES[top]:
            yield f"{name}: only for {', '.join(sorted(LIBRARIES[top]))}"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_import_rules(path):
    unit = unit_of(path)
    assert unit == "__init__" or any(unit in units for units in ROWS), f"give {unit} a row in tests/test_imports.py"
    if unit != "__init__":
        assert list(broken_rules(path)) == []


def test_the_rules_can_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for source, complaint in {
        "from app.chat import DocumentChat": "row",
        "import app.ingest.pdf": "row",
        "def f():\n    from app import ui": "row",
        "import gradio as gr": "only for",
        "import requests": "does not know",
        "import launch": "nothing imports",
        "from app.errors import StoreError\nimport sqlite_utils\nfrom app.store import home": None,
    }.items():
        path = tmp_path / "app" / "store" / f"m{abs(hash(source))}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        found = list(broken_rules(path))
        assert (complaint is None and not found) or complaint in found[0], source


def test_the_running_app_imports_transformers_in_one_place():
    """Two threads that import it at once would be given different modules: see app/models/stock.py."""
    rooms = [path for path in MODULES if unit_of(path) in ("models", "runtime")]
    bare = [relative(path) for path in rooms if {"transformers"} & {n.partition(".")[0] for n in imports(path)}]
    assert bare == ["app/models/stock.py", "app/runtime/step.py"]  # step.py does when a model is there


def test_imported_libraries_are_declared():
    declared = set(re.findall(r"^[a-z][a-z0-9-]*", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    used = {name.partition(".")[0] for path in MODULES for name in imports(path)} & set(LIBRARIES)
    wanted = {PACKAGES.get(name, name.replace("_", "-")) for name in used - OPTIONAL}
    assert wanted <= declared


def test_the_command_line_starts_without_heavy_libraries():
    """--help and the fast path of every start import these; each must stay cheap."""
    script = "import app.cli, app.cli.flags, app.cli.doctor, app.setup.commands, app.system, sys; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "gradio", "fastapi", "sqlite_utils", "pypdf", "pandas", "numpy", "tokenizers"}
    assert heavy.isdisjoint(answer.stdout.split())


def committed() -> list[Path]:
    answer = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in answer.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_committed_file_names_a_registry_or_a_path_of_one_machine():
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "download.pytorch" + ".org", "registry.npmjs" + ".org"]
    hosts += ["conda.anaconda" + ".org", "mirrors" + ".aliyun", "pypi.tuna" + ".tsinghua"]
    places = [r"(?<![\w.])/wo" + r"rk/(?:main|shared)\b", r"/opt/(?:whe" + r"els|pypi)\b", r"(?<![\w.])/ro" + r"ot/"]
    forbidden = re.compile("|".join([*map(re.escape, hosts), *places]))
    found = []
    for path in committed():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
            if match := forbidden.search(line):
                found.append(f"{relative(path)}:{number}: {match[0]}")
    assert found == []


def test_ruff_is_content():
    answer = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout[-3000:]


# What a part of DocumentChat does is asked of the part.
ASKED_OF_PARTS = {
    "jobs": "claim stop stops busy",
    "model": "engine engine_under model_state unload_model switch_model policy_of memory_line follow",
    "shelf": "models offers loaded_choice model_folders add_model_folder remove_model_folder other_model other_models",
    "library": "add_document adding stop_adding documents document delete_document suggestions places pin evict "
    "choosable decode_again disk_space token_bytes",
    "pages": "page_image locate",
    "saved": "new_chat forget_empty chats search_chats chat messages rename_chat delete_chat set_chat_documents "
    "answer_settings set_answer_settings set_chat_policy versions show_version fork",
    "transfers": "export_chat export_json export_file import_chat",
    "store": "part outline search_parts",
}


def test_parts_of_the_chat_are_named() -> None:
    part = {name: part for part, names in ASKED_OF_PARTS.items() for name in names.split()}
    call = re.compile(rf"(?<![\w.])((?:self\.)?_?chat)\.({'|'.join(part)})\(")
    wrong = []
    for folder in ("app", "tests", "benchmarks", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for found in call.finditer(path.read_text(encoding="utf-8")):
                wrong.append(f"{path.relative_to(ROOT)}: {found[0]} is {found[1]}.{part[found[2]]}.{found[2]}()")
    assert not wrong
