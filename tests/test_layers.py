"""The laws of the house: imports point downwards, heavy packages stay behind their doors, the package itself loads nothing."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "llmops_workbench"

HEAVY = ["torch", "transformers", "datasets", "evaluate", "mlflow", "plotly", "ray", "scipy", "sklearn", "numba", "matplotlib", "optuna"]

# Only these modules may import the package at all; a stage may import plotly inside a function that draws a figure.
DOORS = {
    "ipywidgets": ("display", "widgets."),
    "anywidget": ("display", "widgets."),
    "IPython": ("display", "widgets."),
    "mlflow": ("store",),
    "plotly": ("display", "widgets."),
}

STAGES = range(10, 22)
# `Result.log()` without a store opens the workspace's own, on use.
UPWARD = {("display", "store")}
# A stage imports the kit, not another stage, save these.
ALLOWED_BETWEEN_STAGES = {("tuning", "finetuning"), ("finetuning", "training"), ("readiness", "finetuning"), ("readiness", "training"), ("prompting", "grids"), ("matrices", "grids"), ("optimization", "gains"), ("monitoring", "drift"), ("monitoring", "labeling")}


def floors():
    "Module name -> (floor, file name) from the notebooks; the file name orders the modules of one floor."
    found = {}
    for path in sorted((ROOT / "nbs").rglob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            match = re.search(r"^#\|\s*default_exp\s+(\S+)", "".join(cell["source"]), re.M)
            if match:
                found[match[1]] = (int(path.name[:2]), path.name)
    return found


FLOORS = floors()


def module_path(module):
    return PACKAGE / (module.replace(".", "/") + ".py")


def imports(module):
    "Yield (imported name, inside a function, names of the enclosing functions) for every import of the module."
    tree = ast.parse(module_path(module).read_text(encoding="utf-8"))
    depth = module.count(".")

    def visit(node, functions):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, functions
            elif isinstance(child, ast.ImportFrom):
                if child.level:
                    prefix = module.split(".")[:depth - child.level + 1] if child.level <= depth + 1 else []
                    base = ".".join(["llmops_workbench", *prefix, *([child.module] if child.module else [])])
                    if child.module:
                        yield base, functions
                    else:
                        for alias in child.names:
                            yield f"{base}.{alias.name}", functions
                else:
                    yield child.module, functions
            name = [child.name] if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
            yield from visit(child, functions + name)
    yield from visit(tree, [])


def own(name):
    "The workbench's own module that an imported name means, or None."
    if not name.startswith("llmops_workbench."):
        return None
    rest = name.removeprefix("llmops_workbench.")
    return next((m for m in (rest, rest.rpartition(".")[0]) if m in FLOORS), None)


def test_every_module_comes_from_a_notebook():
    written = {str(p.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for p in PACKAGE.rglob("*.py")}
    assert {m for m in written if not m.endswith("__init__") and m != "_modidx"} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(FLOORS))
def test_imports_point_downwards(module):
    floor = FLOORS[module]
    for name, _ in imports(module):
        target = own(name)
        if target is None or target == module or (module, target) in UPWARD:
            continue
        assert FLOORS[target][0] <= floor[0], f"{module} ({floor[1]}) imports {target} ({FLOORS[target][1]}), which stands above it"
        if floor[0] in STAGES and FLOORS[target][0] in STAGES:
            assert (module, target) in ALLOWED_BETWEEN_STAGES, f"the stage {module} imports the stage {target}"


def test_no_two_modules_need_each_other():
    "Modules of one floor may lean on one another, but not in a circle."
    needs = {m: {t for name, functions in imports(m) if not functions and (t := own(name)) and t != m} for m in FLOORS}
    while free := {m for m, targets in needs.items() if not targets}:
        needs = {m: targets - free for m, targets in needs.items() if m not in free}
    assert not needs, f"these import each other in a circle: {sorted(needs)}"


@pytest.mark.parametrize("module", sorted(FLOORS))
def test_heavy_packages_stay_behind_their_doors(module):
    for name, functions in imports(module):
        top = (name or "").split(".")[0]
        if top in HEAVY:
            assert functions, f"{module} imports {name} at its top: import it inside the function that needs it"
        if top in DOORS and not any(module == d or (d.endswith(".") and module.startswith(d)) for d in DOORS[top]):
            drawn = top == "plotly" and any("figure" in f or "chart" in f for f in functions)
            assert drawn, f"{module} imports {name}, which only {', '.join(DOORS[top])} may"


def loaded_after(code):
    "The heavy packages in sys.modules after `code` ran in a process of its own."
    done = subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nprint([m for m in {HEAVY + ['pandas']!r} if m in sys.modules])"],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.strip().splitlines()[-1])


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import llmops_workbench") == []


def test_every_public_name_is_reachable():
    import llmops_workbench
    for name in llmops_workbench.__all__:
        assert getattr(llmops_workbench, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    import llmops_workbench
    with pytest.raises(AttributeError, match="no attribute 'proflie'"):
        _ = llmops_workbench.proflie


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda p: p.name)
def test_no_notebook_carries_machine_state(path):
    "Widget state, papermill's metadata and absolute paths stay out of the sources; a notebook stays readable in a diff."
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert "widgets" not in notebook["metadata"] and "papermill" not in notebook["metadata"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len(text) < 400_000


def test_a_module_has_one_subject():
    "A module over about 400 lines or a notebook over about 80 cells has two subjects."
    long = {m: n for m in FLOORS if (n := len(module_path(m).read_text(encoding="utf-8").splitlines())) > 480}
    assert not long, f"split these modules: {long}"
