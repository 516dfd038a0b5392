"""Studies by name: files of users, ready studies in jobs/studies/ready, and sweeps of the command line.

    mimbench plan my_study.py        a file with `study`, a Study or a function that returns one
    mimbench plan crossmae/table2    jobs/studies/ready/crossmae/table2.py
    mimbench plan sweep-lr           the sweep of `mimbench sweep ... --name sweep-lr`, under the runs root

An error in a file is reported in one line, with the file and the line number.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mimbench.jobs.studies.study import Study

READY = Path(__file__).parent / "ready"


def load_study(name: str, root: Path) -> Study:
    """Return the study called `name`.

    Raises:
        ValueError: if it does not exist (the message offers the nearest names), or its file does not define one.
    """
    from mimbench.jobs.studies.sweep import saved, saved_names

    file = Path(name).expanduser()
    if file.suffix == ".py":
        return _study_in(file, file.stem)
    if name in ready_studies():
        return _study_in(READY / f"{name}.py", name)
    if (sweep := saved(name, root)) is not None:
        return sweep
    known = [*ready_studies(), *saved_names(root)]
    near = [full for full in known if full.rpartition("/")[2] == name] or difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`mimbench studies` lists them; a file's name ends in .py"
    raise ValueError(f"unknown study {name!r}; {hint}")


def ready_studies() -> dict[str, str]:
    """Return the ready studies by name, each with a description in one line; no study is run."""
    files = sorted(file for file in READY.glob("*/*.py") if not file.name.startswith("_"))
    return {file.relative_to(READY).with_suffix("").as_posix(): _about(file) for file in files}


def _about(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _study_in(file: Path, name: str) -> Study:
    made = getattr(_module(file), "study", None)
    if callable(made):
        try:
            made = made()
        except Exception as error:
            raise ValueError(_where(error, file)) from error
    if not isinstance(made, Study):
        what = "is missing" if made is None else f"is of type {type(made).__name__}"
        raise ValueError(f"{file}: `study` {what}; define it as a Study or a function that returns one")
    return made if made.name else Study(name, made.runs)


def _module(file: Path) -> ModuleType:
    """Return the file as a module; it can import the files beside it."""
    if not file.is_file():
        raise ValueError(f"study {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"study_{abs(hash(file.absolute()))}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(_where(error, file)) from error
    finally:
        sys.path.remove(str(file.absolute().parent))
    return module


def _where(error: Exception, file: Path) -> str:
    """Return the error in one line, with its line in the study's file."""
    names = (str(file), str(file.absolute()))
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in names:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename in names:
        line = error.lineno
    said = (error.msg if isinstance(error, SyntaxError) else str(error)).partition("\n")[0]
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    if isinstance(error, ModuleNotFoundError) and _is_former(error.name or "", file.absolute().parent):
        said += "; write `from mimbench import Run, Study`, and import other modules of mimbench as mimbench.NAME"
    return f"{file}:{line}: {kind}{said}" if line else f"{file}: {kind}{said}"


def _is_former(module: str, beside: Path) -> bool:
    """Return whether `module` is a folder of mimbench named without `mimbench.`, and not a module beside the study."""
    name = module.partition(".")[0]
    spec = importlib.util.find_spec(f"mimbench.{name}")
    own = (beside / f"{name}.py").exists() or (beside / name).exists()
    former = spec is not None and spec.submodule_search_locations is not None
    return module in ("jobs.study", "jobs.studies.study") or (former and not own)
