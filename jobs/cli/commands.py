"""The work behind the commands of `mimbench`; `jobs/cli/main.py` declares the commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mimbench.backbones.checkpoints.location import user_code, with_settings
from mimbench.engine.data.shared_images import measured_on
from mimbench.engine.run.bar import working
from mimbench.engine.run.config import leaves, to_text, with_overrides
from mimbench.engine.run.rundir import RunDir
from mimbench.jobs.runs.execute import execute
from mimbench.jobs.runs.recipes import find, recipes
from mimbench.jobs.runs.run_names import find as find_run
from mimbench.jobs.runs.store import config_of, create_or_find, encoder_file, resolve, runs_root

if TYPE_CHECKING:
    from mimbench.backbones.checkpoints.info import EncoderInfo
    from mimbench.backbones.config import ViT
    from mimbench.jobs.local.scheduler import Task
    from mimbench.jobs.studies.evaluate import Request
    from mimbench.jobs.studies.study import Study

IN_A_FILE = 120  # width in characters of a table that does not go to a terminal


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout, for programs."""
    print(json.dumps(value, indent=2))


# ------------------------------------------------------------------------------------------------------------ runs


def run_of(target: str, overrides: Sequence[str]) -> RunDir:
    """Return the run directory of `mimbench run TARGET [KEY=VALUE]...`; create it if it does not exist.

    With overrides, a run directory stands for another run: its config with the overrides.

    Raises:
        ValueError: if `target` is neither a recipe nor a run directory, or an override is bad.
    """
    path, known = Path(target).expanduser(), {recipe.name for recipe in recipes()}
    if target not in known and not path.exists() and target not in {name.rpartition("/")[2] for name in known}:
        with suppress(ValueError):  # then it is no run either: `resolve` offers the nearest recipes
            path = find_run(target, runs_root()).path
    if target not in known and path.exists():
        run = RunDir(path if path.is_dir() else path.parent)
        if not overrides:
            run.read_about()
            return run
        config = with_overrides(config_of(run), overrides)
        return create_or_find(run.read_about()["recipe"], config, runs_root())
    recipe, config = resolve(target, overrides)
    return create_or_find(recipe.name, config, runs_root())


def show_result(run: RunDir, as_json: bool) -> None:
    """Print the metrics and the directory of a finished run."""
    result = run.read_result() or {}
    if as_json:
        print_json({"run": str(run.path), **result})
        return
    metrics = result.get("metrics", {})
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.6g}")
    if told := measured_on(result):
        print(f"warning: {told}", file=sys.stderr)
    print(run.path)


def run_evaluation(checkpoint: Path, request: Request, slots: int | None, as_json: bool, seeds: int = 1) -> int:
    """Do `mimbench evaluate`; return the exit code."""
    from mimbench.jobs.studies.evaluate import check, evaluation
    from mimbench.jobs.studies.seeds import asked_for, seeded

    overrides, seeds = asked_for(request.overrides, seeds)
    location, overrides = with_settings(checkpoint, overrides)
    request = replace(request, overrides=overrides)
    check(request)
    file = encoder_file(Path(location))
    with working(f"reading {file.name}"):
        shape, about = encoder_to_evaluate(file, request)
        study = evaluation(file, shape, request, about)
    for line in study.notes:
        print(line, file=sys.stderr)
    return _run_study(seeded(study, seeds), slots, as_json, seeds)


def encoder_to_evaluate(file: Path, request: Request) -> tuple[ViT | None, EncoderInfo | None]:
    """Return the encoder's shape in `file` and what else it is, after checking that the requested protocols accept it.

    If all protocols belong to one task, `file` may also be a whole model of that task (`Task.input`), of which only the
    shape is returned. Both are None for an encoder built by a user's function, unless it is one of mimbench's encoders.

    Raises:
        ValueError: if `file` holds no encoder, or the protocols do not accept the encoder.
    """
    from mimbench.backbones.weights import open_weights
    from mimbench.jobs.runs.tasks import protocols, role_of

    if user_code(file) is not None:
        from mimbench.backbones.user_encoder import load_user_encoder

        user = load_user_encoder(file)
        return (None, None) if user.ours is None else (user.ours.shape, user.build()[1])
    known = protocols()
    tasks = {known[name][0].name: known[name][0] for name in request.protocols if name in known}
    alone = next(iter(tasks.values())) if len(tasks) == 1 else None
    role = role_of(alone.name) if alone else "encoder"
    found = open_weights(file, role, allow_partial="allow_partial=true" in request.overrides)
    if not found.holds_encoder and alone is not None and alone.input is not None and alone.input.whole is not None:
        return cast("ViT", alone.input.whole(found)), None
    found.require()
    for task in tasks.values():
        if task.input is not None and task.input.refusal is not None and (reason := task.input.refusal(found.traits)):
            raise ValueError(f"{file}: {reason}")
    return found.vit, found.info


def execute_on(run: RunDir, gpus: int) -> int:
    """Execute a run in a process on each of `gpus` GPUs of this machine; return the exit code.

    Raises:
        ValueError: if this machine has fewer GPUs.
    """
    from mimbench.jobs.local import torchrun
    from mimbench.jobs.runs.devices import visible_devices

    torchrun.must_be_here(gpus, visible_devices())
    if run.state() == "done":
        return execute(run)
    words = torchrun.command(run.path.absolute(), gpus)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)  # the result is printed here
    with passing_on(process):
        code = process.wait()
    state = run.state()
    return {"done": 0, "interrupted": 130}.get(state, code or 1)


@contextmanager
def passing_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGTERM to the process within the block; a terminal sends Ctrl-C to all of its processes."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number)),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_seeds(target: str, overrides: Sequence[str], seeds: int, as_json: bool, gpus: int = 1) -> int:
    """Do `mimbench run RECIPE --seeds N`; return the exit code."""
    from mimbench.jobs.studies.seeds import study_of

    return _run_study(study_of(target, overrides, seeds), None, as_json, seeds, gpus)


def _run_study(study: Study, slots: int | None, as_json: bool, seeds: int, gpus: int = 1) -> int:
    """Run a study here and print every result; with several seeds, also the mean and standard deviation."""
    from mimbench.jobs.local.scheduler import Local
    from mimbench.jobs.runs.devices import visible_devices
    from mimbench.jobs.studies import seeds as spread

    slots = slots or len(visible_devices()) or 1  # full-size models do not share a CPU
    tasks = Local(study, runs_root(), slots, gpus=gpus).run()
    each, over_seeds = [_as_json(task) for task in tasks], spread.spreads(tasks) if seeds > 1 else []
    if as_json:
        print_json({"runs": each, "over_seeds": spread.to_json(over_seeds)} if seeds > 1 else each)
        return _code(tasks)
    for task in tasks:
        if task.fate == "done" and task.directory is not None:
            show_result(task.directory, as_json=False)
    if over_seeds:
        print(spread.to_text(over_seeds))
    return _code(tasks)


def _as_json(task: Task) -> dict[str, Any]:
    run = task.directory
    result = run.read_result() if run is not None else None
    return {
        "protocol": task.run.name,
        "recipe": task.run.recipe,
        "run": str(run.path) if run is not None else None,
        "state": task.fate,
        "why": task.why,
        "metrics": (result or {}).get("metrics", {}),
    }


def _code(tasks: Sequence[Task]) -> int:
    return 0 if all(task.is_well for task in tasks) else 1


def run_demo(study: Study, slots: int | None) -> int:
    """Do `mimbench demo`; return the exit code."""
    from mimbench.engine.data.datasets import HANDWRITTEN, locate
    from mimbench.engine.run.cores import available_cores
    from mimbench.jobs.local.scheduler import Local

    began, root = time.monotonic(), runs_root()
    print(f"data: {locate(HANDWRITTEN)}", file=sys.stderr)
    local = Local(
        study, root, slots or min(4, available_cores())
    )  # the models are small: several runs can also share a GPU
    tasks = local.run()
    show_table(root, as_json=False)
    write_report(root, None)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    print(f"{minutes} min {seconds} s; peak memory of all processes: {local.peak_memory / 2**30:.2f} GiB")
    return _code(tasks)


def explain_run(name: str, overrides: Sequence[str], as_json: bool) -> None:
    """Print which settings distinguish a run, existing or planned (a recipe with `overrides`), from other runs.

    Raises:
        ValueError: if `name` is neither a run nor a recipe, or an override is bad.
    """
    from mimbench.jobs.runs import explain, run_names
    from mimbench.jobs.runs.store import place

    root = runs_root()
    if overrides or name in {recipe.name for recipe in recipes()}:
        recipe, config = resolve(name, overrides)
        found = explain.explain_place(place(recipe.name, config, root, strict=False), root)
    else:
        found = explain.explain_run(run_names.find(name, root), root)
    if as_json:
        print_json(found.as_json())
    else:
        print(found.text)


# ------------------------------------------------------------------------------------------------ table and report


def show_table(root: Path, as_json: bool) -> None:
    """Print the table of every finished run under `root`."""
    from mimbench.jobs.tables import sections, table

    rows = table.rows(root)
    if as_json:
        print_json(table.to_json(rows))
    elif not rows:
        print(f"no finished runs under {root.absolute()}; `mimbench demo` makes some", file=sys.stderr)
    else:
        from rich.console import Console

        console, shown = Console(width=None if sys.stdout.isatty() else IN_A_FILE), sections.render(rows)
        console.width = max(console.width, console.measure(shown).minimum)  # names are not cut
        console.print(shown)


def write_report(root: Path, path: Path | None, study: str | None = None) -> None:
    """Write the report of all runs under `root`, or of one study, and print its path."""
    with working("writing the report"):
        from mimbench.jobs.tables import report

        written = report.write_report(root, path or root / "report.html", study)
    print(f"report: {written.absolute()}")


# --------------------------------------------------------------------------------------------------------- recipes


def show_recipes(name: str | None, as_json: bool) -> None:
    """List recipes, or print all settings of one."""
    chosen = [find(name)] if name else list(recipes())
    if as_json:
        print_json(
            [{"name": recipe.name, "about": recipe.about, "config": to_text(recipe.build())} for recipe in chosen]
        )
    elif name:
        _show_recipe(name)
    else:
        width = max(len(recipe.name) for recipe in chosen)
        for recipe in chosen:
            print(f"{recipe.name:<{width}}  {recipe.about}")


def _show_recipe(name: str) -> None:
    recipe = find(name)
    print("\n".join(f"# {line}".rstrip() for line in recipe.description.splitlines()))
    print("\n" + to_text(recipe.build()), end="")


def keys_of(name: str) -> list[str]:
    """Return the keys of a recipe's config, for completion; an empty list if `name` is not a recipe."""
    known = {recipe.name: recipe for recipe in recipes()}
    return [leaf.key for leaf in leaves(known[name].build())] if name in known else []


# ------------------------------------------------------------------------------------------------------------ data


def show_data(as_json: bool) -> None:
    """List the data sets with a name."""
    from mimbench.engine.data.datasets import listing

    known = {name: (path, path.is_dir()) for name, path in listing().items()}
    if as_json:
        print_json({name: {"path": str(path), "exists": there} for name, (path, there) in known.items()})
        return
    for name, (path, there) in known.items():
        note = "" if there else "  (written when first used)" if name == "handwritten" else "  (does not exist)"
        print(f"{name:<16} {path}{note}")


def shrink_data(source: str, out: Path, short: int, quality: int, workers: int | None, as_json: bool) -> None:
    """Shrink and pack every split of a data set; print the images and bytes of each split.

    Raises:
        FileNotFoundError: if the data set does not exist.
        ValueError: if `out` holds other files.
    """
    from dataclasses import asdict

    from mimbench.engine.data.datasets import locate
    from mimbench.engine.run.cores import available_cores

    directory = locate(source)
    with working(f"shrinking {source}"):
        from mimbench.engine.data.shrink import Shrinking, shrink

        workers = available_cores() if workers is None else workers
        splits = list(shrink(directory, out, Shrinking(short, quality), workers))
    if as_json:
        print_json([asdict(split) for split in splits])
        return
    for split in splits:
        for fault in split.left_out:
            print(f"left out: {fault}", file=sys.stderr)
        print(f"{split.split}: {split.images:,} images, {split.bytes / 2**20:,.1f} MiB")
    print(out)


def check_data(kind: str, path: str, as_json: bool) -> int:
    """Check a data set of one of `kinds_of_data` and print the findings; return 1 if it is unfit for runs."""
    from mimbench.engine.data.datasets import locate
    from mimbench.jobs.runs.tasks import kinds_of_data

    directory = locate(path)
    with working(f"checking {path}"):
        report = kinds_of_data()[kind].check(directory, kind)
    if as_json:
        findings = [vars(finding) for finding in report.findings]
        print_json({"path": str(directory), "ok": not report.failed, "facts": report.facts, "findings": findings})
    else:
        for finding in report.findings:
            print(f"{finding.severity}: {finding}")
        for name, count in report.facts.items():
            print(f"{count:>12,} {name}")
        print("failed: fix the errors above before running on this data set" if report.failed else "ok")
    return 1 if report.failed else 0
