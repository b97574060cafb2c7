"""The front door, the direction of imports, and what the source never holds."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import kgrank

PACKAGE = Path(kgrank.__file__).parent
TESTS = Path(__file__).parent

FORBIDDEN = {  # room → what its files may not import
    "kg": ("encoders", "fusion", "serving"),
    "encoders": ("kg", "fusion", "serving"),
    "fusion": ("serving",),
    "data": ("serving",),
    "": ("serving",),  # config.py, errors.py, loop.py, settings.py …
}


def test_import_is_light() -> None:
    """Under 0.3 s, and nothing heavy is loaded."""
    code = (
        "import sys, time; start = time.perf_counter(); import kgrank; "
        "print(time.perf_counter() - start, *sorted(sys.modules))"
    )
    seconds = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        took, *modules = out.stdout.decode().split()
        seconds.append(float(took))
    assert {"torch", "pandas", "numpy", "transformers", "rich", "pydantic"}.isdisjoint(modules)
    assert min(seconds) < 0.3


def test_every_public_name_is_there() -> None:
    assert kgrank.__all__ == sorted(kgrank.__all__)
    assert set(kgrank.__all__) == {
        *("Bundle", "Config", "EmbeddingStore", "Explanation", "KnowledgeGraph"),
        *("Recommender", "Tables"),
        *("evaluate", "read_config", "read_tables", "train", "__version__"),
        *("KgrankError", "DataError", "ConfigError", "ModelError", "BundleError"),
        *("StoreError", "UnknownIdError"),
    }
    for name in set(kgrank.__all__) - {"__version__"}:
        assert getattr(kgrank, name).__name__ == name
    assert set(kgrank.__all__) <= set(dir(kgrank))
    assert kgrank.__version__ == version("kgrank")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="recommend"):
        kgrank.recommend  # noqa: B018


def imported(source: str, package: str) -> Iterator[str]:
    """The kgrank modules that a module of `package` imports, `from x import y` as x and x.y."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            start = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_imports(path: Path, source: str) -> list[str]:
    """What the file may not import but does."""
    folders = path.relative_to(PACKAGE).parent.parts
    room = folders[0] if folders else ""
    package = ".".join(("kgrank", *folders))
    names = [name.split(".") for name in imported(source, package)]
    rooms = {name[1] for name in names if name[0] == "kgrank" and len(name) > 1}
    return sorted(rooms & set(FORBIDDEN.get(room, ())))


def test_imports_run_one_way() -> None:
    doors = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    files = [path for path in PACKAGE.rglob("*.py") if path not in doors]
    assert {path.relative_to(PACKAGE).parts[0] for path in files} >= {"kg", "fusion", "serving"}
    wrong = {str(path): wrong_imports(path, path.read_text("utf-8")) for path in files}
    assert {path: rooms for path, rooms in wrong.items() if rooms} == {}


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("kg/x.py", "import kgrank.fusion.model", ["fusion"]),
        ("kg/importers/x.py", "from ...encoders import text", ["encoders"]),
        ("encoders/x.py", "def f():\n    from kgrank import kg", ["kg"]),
        ("fusion/x.py", "from kgrank.serving.bundle import Bundle", ["serving"]),
        ("fusion/x.py", "from kgrank.kg import graph; from kgrank import errors", []),
        ("config.py", "from .serving import bundle", ["serving"]),
        ("serving/x.py", "import kgrank.kg.graph, kgrank.fusion.model", []),
    ],
)
def test_a_wrong_import_is_seen(file: str, source: str, found: list[str]) -> None:
    assert wrong_imports(PACKAGE / file, source) == found


def unsafe(source: str) -> list[str]:
    """Ways to run what a file or a user says, or to unpickle: name and line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = ""
        if isinstance(node, ast.Import):
            name = next((a.name for a in node.names if a.name in _UNPICKLERS), "")
        elif isinstance(node, ast.ImportFrom):
            name = (node.module or "") if node.module in _UNPICKLERS else ""
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            name = called if called in _RUNNERS else ""
            for keyword in node.keywords:
                if (keyword.arg, ast.unparse(keyword.value)) in _SETTINGS:
                    name = f"{keyword.arg}={ast.unparse(keyword.value)}"
        if name:
            found.append(f"{name} (line {node.lineno})")
    return found


_UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_RUNNERS = {"eval", "exec", "os.system", "os.popen", "pd.read_pickle", "pandas.read_pickle"}
_SETTINGS = {("weights_only", "False"), ("shell", "True"), ("allow_pickle", "True")}


def test_the_source_runs_and_unpickles_nothing() -> None:
    files = list(PACKAGE.rglob("*.py"))
    found = {str(path): unsafe(path.read_text("utf-8")) for path in files}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f(x):\n    return eval(x)",
        "torch.load(f, weights_only=False)",
        "subprocess.run(x, shell=True)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_an_unsafe_line_is_seen(source: str) -> None:
    assert len(unsafe(source)) == 1


def test_models_evaluation_mode_is_not_mistaken_for_eval() -> None:
    assert unsafe("model.eval()") == []


def idle_checks(source: str) -> list[int]:
    """Lines of checks that cannot fail: a result nobody asserts, or an assertion of a constant."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr):
            value = node.value
            idle = isinstance(value, ast.Compare | ast.BoolOp)
            if isinstance(value, ast.Call):
                idle = bool(_ASKING.search(ast.unparse(value.func)))
        elif isinstance(node, ast.Assert):
            fixed = isinstance(node.test, ast.Constant) and bool(node.test.value)
            idle = fixed or isinstance(node.test, ast.Tuple) or _always(node.test)
        else:
            continue
        if idle:
            lines.append(node.lineno)
    return lines


_ASKING = re.compile(r"(^|\.)(equal|equals|allclose|isclose|array_equal|all|any|is_\w+|isin)$")


def _always(test: ast.expr) -> bool:
    """`all(…) >= 0` and `len(…) >= 0` are always true."""
    match test:
        case ast.Compare(ast.Call(ast.Name("all" | "any" | "len")), [ast.GtE()], [ast.Constant(0)]):
            return True
    return False


def test_no_test_holds_a_check_that_cannot_fail() -> None:
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 10
    found = {str(path): idle_checks(path.read_text("utf-8")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("torch.equal(a, b)", [1]),
        ("x = 1\nnp.allclose(a, b)", [2]),
        ("a == b", [1]),
        ("assert True", [1]),
        ("assert (a == b, 'they differ')", [1]),
        ("assert all(x) >= 0", [1]),
        ("a.equals(b)", [1]),
        ("assert torch.equal(a, b)\nassert a == b\nnp.testing.assert_allclose(a, b)", []),
        ("assert False", []),
        ("with pytest.raises(KeyError):\n    table['x']", []),
    ],
)
def test_an_idle_check_is_seen(source: str, lines: list[int]) -> None:
    assert idle_checks(source) == lines
