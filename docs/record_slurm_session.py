"""Make docs/slurm-session.md: a study on a real SLURM, from plan to table, with a preemption on the way.

    python docs/record_slurm_session.py [OUT]      # needs root, slurm-wlm and munge; takes some minutes

Every command is run as it stands, on a cluster of two small nodes that is started for this and stopped afterwards;
what it prints is what the page shows. Paths of the scratch directory are shortened to `~`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

STUDY = '''\
"""Two pretrainings, and a k-NN evaluation of each."""

from mimbench import Run, Study

SHORT = ("epochs=10", "warmup_epochs=1", "batch=20", "compute.save_every=5", "monitor.images=0", "monitor.every=99")
pretrain = [Run("pretrain/crossmae_handwritten", (*SHORT, f"seed={seed}")) for seed in (0, 1)]
study = Study("seeds", [*pretrain, *(Run("cls/knn_handwritten", ("neighbours=10,20",), run) for run in pretrain)])
'''
PATIENCE = 600.0  # seconds for each thing that is waited for


class Session:
    """A terminal: commands, what they print, and remarks between them."""

    def __init__(self, home: Path, conf: Path) -> None:
        self.home = home
        self.page: list[str] = []
        scratch = {"MIMBENCH_HOME": str(home / ".mimbench"), "MIMBENCH_RUNS": str(home / "runs"), "HOME": str(home)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, **scratch, "SLURM_CONF": str(conf), "PATH": path, "OMP_NUM_THREADS": "1"}
        self.environment |= {"COLUMNS": "110", "NO_COLOR": "1"}

    def say(self, text: str) -> None:
        """A remark."""
        self.page.append(f"\n{text}\n")

    def run(self, command: str, keep: int | None = None) -> str:
        """A command, and the first `keep` lines of what it prints."""
        done = subprocess.run(
            command, shell=True, cwd=self.home, env=self.environment, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stdout}")
        lines = self._plain(done.stdout).splitlines()
        cut = [*lines[:keep], "..."] if keep is not None and len(lines) > keep else lines
        self.page.append("```console\n$ " + "\n".join([command, *cut]) + "\n```\n")
        return done.stdout

    def _plain(self, text: str) -> str:
        text = text.replace(str(self.home), "~").replace(str(ROOT), "~/mimbench")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)

    def states(self) -> list[str]:
        """Of all runs, by mimbench."""
        done = subprocess.run(
            ["mimbench", "status", "--json"], cwd=self.home, env=self.environment, capture_output=True, check=True
        )
        return [each["state"] for each in json.loads(done.stdout)]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until something holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not within {PATIENCE:.0f} s; {self.states()}")
            time.sleep(2)


def record(session: Session) -> None:
    """The session."""
    home = session.home
    (home / "seeds.py").write_text(STUDY)
    session.say("Create a profile of the site. It holds everything that differs between sites.")
    session.run("mimbench cluster add site partition=low gpus_per_node=0 cpus_per_task=1 minutes=30 signal_seconds=60")
    session.run("mimbench cluster check site")
    session.say("Write a study, and see which runs it would start.")
    session.run("cat seeds.py")
    session.run("mimbench plan seeds.py")
    session.run("mimbench submit seeds.py --cluster site --dry-run", keep=40)
    session.say("Submit it: one call of sbatch for the pretrainings, and one for the evaluations, which wait for them.")
    session.run("mimbench submit seeds.py --cluster site")
    session.run("squeue -r -o '%.8i %.10P %.36j %.10T %.20r'")
    checkpoints = home / "runs" / "pretrain"
    session.wait(lambda: len(list(checkpoints.glob("*/checkpoints/step-*.pt"))) >= 4, "checkpoints")
    session.run("mimbench status")
    session.say("A job with a higher priority preempts both nodes.")
    session.run("sbatch -p high -N 2 --exclusive -o /dev/null --wrap 'sleep 5'")
    session.wait(lambda: session.states().count("queued") == 4, "the preemption")
    session.run("mimbench status")
    session.run("cat runs/pretrain/*/attempts/1.json", keep=12)
    session.say("Submitting again submits nothing twice.")
    session.run("mimbench submit seeds.py --cluster site")
    session.say("The jobs restart under their old ids and resume from their last checkpoints.")
    session.wait(lambda: session.states().count("done") == 4, "the end")
    session.run("mimbench status")
    session.run("grep -h 'resumes after' runs/.mimbench/jobs/*/*_log.out")
    session.run("mimbench plan seeds.py")
    session.run("mimbench table")


def main(out: Path) -> int:
    """Start the cluster, record, write the page."""
    from mimbench.engine.data.handwritten import Sizes, make_handwritten
    from tests.slurm.cluster import Cluster, missing

    if why := missing():
        raise SystemExit(f"error: {why}")
    with tempfile.TemporaryDirectory(prefix="mimbench-session-") as scratch:
        home = Path(scratch) / "home"
        home.mkdir()
        cluster = Cluster(Path(scratch) / "slurm")
        digits = make_handwritten(Path(scratch) / "digits", 0, Sizes(100, 20, coco_train=8, coco_val=8))
        os.environ["MIMBENCH_DATA_HANDWRITTEN"] = str(digits)
        try:
            cluster.start()
            session = Session(home, cluster.conf)
            record(session)
        finally:
            cluster.stop()
    head = (
        "# A study on SLURM: plan, submit, preempted, status, table\n\n"
        "Recorded by `python docs/record_slurm_session.py` on SLURM 22.05 with two nodes of two cores: all commands "
        "below were run, and the page shows their real output.\n"
    )
    out.write_text(head + "\n".join(session.page), encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "slurm-session.md"))
