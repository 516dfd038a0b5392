"""Execute a run directory in this process: `execute(run)` returns the exit code.

    0 done (now or before)   1 failed   130 interrupted by Ctrl-C   143 stopped by SIGTERM

Reads config.txt and run.json; writes attempts/, log.txt and, when the stage is done, result.json. After any
interruption, the same call resumes from the newest checkpoint. Bad input ends in one line; the traceback is in the log.

Under torchrun and in a SLURM job of several processes every rank does the stage's work, and only rank 0 writes
records. SLURM's warning of a preemption or the time limit ends the run like SIGTERM (140 or 138).
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from mimbench.engine.data.faults import LoadingError
from mimbench.engine.run.atomic import sweep
from mimbench.engine.run.bar import working
from mimbench.engine.run.rundir import HEARTBEAT, RunDir, State
from mimbench.engine.run.rungs import StoppedEarly
from mimbench.jobs.runs.data_content import again, changed, require_same_data
from mimbench.jobs.runs.devices import gpus_in_use
from mimbench.jobs.runs.failed_images import failed_before, note_image
from mimbench.jobs.runs.heartbeat import every
from mimbench.jobs.runs.lineage import encoder_taken, take
from mimbench.jobs.runs.store import config_of
from mimbench.jobs.runs.tasks import task_of
from mimbench.jobs.slurm import job as slurm_job

if TYPE_CHECKING:
    from mimbench.engine.run.result import Outcome

log = logging.getLogger(__name__)

OURS = "mimbench"
PEER_GONE = 5.0  # seconds within which SLURM signals the other processes after one has ended
FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
IN_FILE_ONLY = {"in_file_only": True}


def execute(run: RunDir) -> int:
    """Start or resume `run`; return the exit code (see above).

    Raises:
        ValueError: if it is not a run directory, or is being run by another process.
        OSError: if its files cannot be written.
    """
    config = config_of(run)
    if _is_done(run, config) or _is_stopped(run):
        return 0
    slurm_job.take_ranks()
    with _signals() as signals:
        if int(os.environ.get("RANK", "0")):
            return _follow(run, config, signals)
        slurm_job.settle(run)
        try:
            size = {"processes": int(os.environ.get("WORLD_SIZE", "1")), "gpus": gpus_in_use(config.compute.device)}
            number = run.begin_attempt(step=slurm_job.steps_done(run), **slurm_job.facts(), **size)
        except ValueError:
            if _is_done(run, config):  # another process has just finished it
                return 0
            raise
        parent = os.getppid()
        with _logging(run.log), _heartbeat(run, number, parent), slurm_job.releasing(run):
            code = _attempt(run, number, config, signals)
        if slurm_job.is_orphan(parent):
            slurm_job.end_srun()
        return code


def _is_done(run: RunDir, config: Any) -> bool:
    """Return whether the run is done, and say so on stderr, with a warning if its data have changed since."""
    done = run.state() == "done"
    if done:
        print(f"{run.path} is already done and is not repeated", file=sys.stderr)
        with suppress(OSError):
            if warning := changed(run, config):
                print(f"warning: {warning}; {again(run, config)} uses them as they are now", file=sys.stderr)
    return done


def _is_stopped(run: RunDir) -> bool:
    """Return whether the run stopped early and may not go on, and say so on stderr."""
    stopped = run.state() == "stopped"
    if stopped:
        print(f"{run.path}: {run.attempts()[-1]['why']}", file=sys.stderr)
    return stopped


def go_on_with(run: RunDir) -> None:
    """Replace this process by one that goes on with the run that `run`, which stopped early, has promoted, if any.

    Every rank comes here; those other than 0 first wait for rank 0 to record the end.
    """
    deadline = time.monotonic() + PEER_GONE
    while run.state() == "running" and os.environ.get("RANK", "0") != "0" and time.monotonic() < deadline:
        time.sleep(0.1)
    following = slurm_job.last_of(run)
    if following.state() in ("interrupted", "lost"):
        print(f"going on with {following.path}, which may go on beyond its rung", file=sys.stderr, flush=True)
        os.execv(sys.executable, [sys.executable, "-P", "-u", "-m", "mimbench", "run", str(following.path)])


def _follow(run: RunDir, config: Any, signals: Signals) -> int:
    """Do the work of a rank other than 0."""
    signals.listen()
    try:
        slurm_job.meet(run)
        _staged(config, run)
    except (ValueError, OSError, MemoryError, LoadingError) as error:
        if not signals.received:
            slurm_job.note_rank_error(run, explained(error), getattr(error, "image", None))
        raise
    except KeyboardInterrupt:
        slurm_job.note_signal(run)
        raise
    except StoppedEarly:
        return 0
    except RuntimeError as error:
        if not slurm_job.is_loss_of_peer(error):
            raise
        print(f"process {os.environ['RANK']} lost the others ({explained(error)})", file=sys.stderr)
        return 1
    return 0


def _staged(config: Any, run: RunDir) -> Outcome:
    """Do the stage's work in this rank, and leave the process group when it is done or stopped early.

    After an error it is left as it is: leaving may wait for ranks that have already ended.
    """
    stage = task_of(run.read_about()["stage"])
    from mimbench.engine.run.process import leave

    try:
        outcome = stage.run(config, run)
    except StoppedEarly:
        leave()
        raise
    leave()
    return outcome


def _attempt(run: RunDir, number: int, config: Any, signals: Signals) -> int:
    try:
        signals.listen()
        sweep(run.path)
        log.info("%s, attempt %d: %s", run.read_about()["recipe"], number, run.path)
        if why := slurm_job.no_progress(run):
            raise ValueError(why)
        require_same_data(run, config)
        taken = take(run, number)
        slurm_job.meet(run)
        _run_stage(run, config, taken)
        _end(run, number, "done")
        slurm_job.part(run)
        return 0
    except BaseException as error:
        signals.deaf = True
        if slurm_job.is_loss_of_peer(error):
            signals.wait(PEER_GONE)  # SLURM ends the remaining processes of the run
        state, code, why = _ending(error, signals.received, run)
        if isinstance(error, StoppedEarly) and error.heir is not None:
            run.amend_attempt(number, {"heir": f"{error.heir.parent.name}/{error.heir.name}"})
        image = getattr(error, "image", None) if state == "failed" else None
        why += failed_before(run, number, image)
        _end(run, number, state, why)
        note_image(run, number, image)
        print(f"error: {why}" if state == "failed" else why, file=sys.stderr)
        if state == "interrupted":
            slurm_job.requeue_without_shell(run, number)
        return code


def _run_stage(run: RunDir, config: Any, taken: str | None) -> None:
    """Run the stage and write its result."""
    recipe = str(run.read_about()["recipe"])
    with _bar(recipe):
        outcome = _staged(config, run)
    from mimbench.engine.run.result import write_result

    seconds = _seconds(run)
    write_result(run, outcome, seconds, taken, encoder_taken(run, config))
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in outcome.metrics.items())
    log.info("done in %.0f s: %s", seconds, metrics)
    with _bar("drawing pictures"):
        outcome.draw()


def _bar(what: str) -> AbstractContextManager[None]:
    """Return a bar for a terminal; elsewhere the lines of the log show progress."""
    return working(what) if sys.stderr.isatty() else nullcontext()


def _seconds(run: RunDir) -> float:
    """Return the wall time of all attempts except lost ones, whose end is unknown."""
    *before, now = run.attempts()
    ended = [attempt for attempt in before if "ended" in attempt]
    return sum(attempt["ended"] - attempt["started"] for attempt in ended) + time.time() - now["started"]


# ------------------------------------------------------------------------------------------------------ how it ended


def _ending(error: BaseException, received: list[int], run: RunDir) -> tuple[State, int, str]:
    """Return the state, the exit code and the message for people.

    A signal may appear as another error (for example of a data loader whose workers it stopped), so `received` decides.
    """
    go_on = f"`mimbench run {shlex.quote(str(run.path))}` resumes from the last checkpoint"
    if received or isinstance(error, KeyboardInterrupt):
        number = received[0] if received else signal.SIGINT
        log.info("stopped by %s", signal.Signals(number).name, exc_info=error, extra=IN_FILE_ONLY)
        how = "interrupted" if number != slurm_job.warning() else "interrupted by SLURM: preemption or time limit"
        return "interrupted", 128 + number, f"{how}; {go_on}"
    if isinstance(error, StoppedEarly):
        log.info("%s", error, extra=IN_FILE_ONLY)
        return "stopped", 0, str(error)
    why = explained(error)
    expected = isinstance(error, ValueError | OSError | MemoryError)
    log.log(logging.DEBUG if expected else logging.CRITICAL, "traceback", exc_info=error, extra=IN_FILE_ONLY)
    log.error("%s", why, extra=IN_FILE_ONLY)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = f"{why}; free disk space, then {go_on}"
    return "failed", 1, why if expected else f"{why} (unexpected error; the traceback is in {run.log})"


def explained(error: BaseException) -> str:
    """Return an error as one line for people."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    line = _last_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({line}); increase compute.accumulate to process fewer images at a time"
    return line if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {line}"


def _last_line(error: BaseException) -> str:
    """Return the message; for an error of a data loading process, the last line of its traceback."""
    text = str(error).strip()
    if "Original Traceback" not in text:
        return text.partition("\n")[0]
    last = text.splitlines()[-1]
    name, separator, message = last.partition(": ")
    return message if separator and name.replace(".", "").isidentifier() else last


def _end(run: RunDir, number: int, state: State, why: str = "") -> None:
    """Record the end of an attempt; on a full disk the record stays as it is, and the run will show as lost."""
    try:
        run.end_attempt(number, state, why)
    except OSError as error:
        log.error("%s", explained(error), extra=IN_FILE_ONLY)


# ------------------------------------------------------------------------------------- signals, heartbeat and the log


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SLURM's warning: like Ctrl-C, it leaves a run that can be continued."""


@dataclass
class Signals:
    """The received signals. While deaf (a start or an end is being recorded), signals wait."""

    received: list[int] = field(default_factory=list)
    deaf: bool = True

    def listen(self) -> None:
        """From now on, raise on every signal; raise now if one has already come."""
        self.deaf = False
        self._heed()

    def take(self, number: int) -> None:
        """Record a signal: its exception may be swallowed by other code or appear as another error."""
        self.received.append(number)
        self._heed()

    def _heed(self) -> None:
        if self.received and not self.deaf:
            raise KeyboardInterrupt if self.received[-1] == signal.SIGINT else Terminated

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, at most `seconds`."""
        deadline = time.monotonic() + seconds
        while not self.received and time.monotonic() < deadline:
            time.sleep(0.1)


@contextmanager
def _signals() -> Iterator[Signals]:
    """Within, SIGINT, SIGTERM and SLURM's warning are taken in this process, and left to it by those that it forks."""
    signals, mine = Signals(), os.getpid()
    heard, warning = {signal.SIGINT, signal.SIGTERM}, slurm_job.warning()

    def take(number: int, frame: FrameType | None) -> None:
        if os.getpid() == mine:
            if number != warning or os.environ.get("RANK", "0") == "0":  # the other ranks end after rank 0
                signals.take(number)
        elif number == signal.SIGTERM:
            os._exit(128 + number)

    before = {number: signal.signal(number, take) for number in heard | ({warning} if warning else set())}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heartbeat(run: RunDir, number: int, parent: int) -> AbstractContextManager[None]:
    """Renew the time of the attempt's file regularly within the block, so that other machines see that it is alive.

    The run stops if another start has taken over, or if SLURM's process of its step, `parent`, was killed: its job
    could not end.
    """

    def beat() -> None:
        try:
            run.beat(number)
            if run.is_superseded(number):
                log.error("attempt %d stops: a later attempt of this run has started", number)
                os.kill(os.getpid(), signal.SIGTERM)
            elif slurm_job.is_orphan(parent):
                log.error("attempt %d stops: SLURM's process of its step was killed; the job is requeued", number)
                os.kill(os.getpid(), signal.SIGTERM)
        except OSError as error:
            log.warning("the heartbeat could not be written: %s", explained(error))

    return every(HEARTBEAT, beat, "heartbeat")


class _LogFile(logging.FileHandler):
    """`log.txt`. A failure to write it (full disk) must not hide the error of the run itself."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Do nothing: the run itself fails on the same fault."""


class _Screen(logging.Handler):
    """Log to the current stderr, so that lines appear above a progress bar and not inside it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print only the message. Warnings of libraries go to the file only."""
        if not hasattr(record, "in_file_only") and record.name != "py.warnings":
            stream: TextIO = sys.stderr
            print(record.getMessage(), file=stream, flush=True)


@contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Send the logs of our modules to the file at `path` within the block, and the important ones also to stderr.

    On a terminal only warnings go to stderr, because the progress bar shows the rest.
    """
    file, screen = _LogFile(path, encoding="utf-8"), _Screen(logging.WARNING if sys.stderr.isatty() else logging.INFO)
    file.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    for handler in (file, screen):
        root.addHandler(handler)
    logging.getLogger(OURS).setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in (file, screen):
            root.removeHandler(handler)
            handler.close()
