"""A Jupyter-first workbench for LLMOps: explore in a live panel, freeze the parameters, run the same notebook headlessly.

Modules:

- `llmops_workbench.errors`: One line that says what was given, what is allowed and what to do"""

__version__ = "0.1.0"

import importlib

# Public name -> the module that defines it. Names load on first use (PEP 562), so importing the package costs nothing.
_PUBLIC = {
    "WorkbenchError": "errors",
    "UserError": "errors",
    "load_settings": "settings",
    "read_dataset": "datasets",
    "Dataset": "datasets",
    "open_store": "store",
    "start_job": "jobs",
    "attach_job": "jobs",
    "load_model": "models",
    "score": "metrics",
    "profile": "profiling",
    "prepare": "preparation",
    "Prompt": "prompting",
    "run_grid": "prompting",
    "compare": "comparison",
    "finetune": "finetuning",
    "detect_drift": "drift",
    "run_workflow": "runner",
    "run_pipeline": "pipeline",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__():
    return sorted([*globals(), *__all__])
