"""A typo is refused before torch is imported, in one line that offers the nearest name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TYPOS = {
    "evalute": "Did you mean 'evaluate'?",
    "run cls/linear_vitbb": "did you mean cls/linear_vitb",
    "run cls/linear_vitb base_lrr=1": "did you mean base_lr",
    "run cls/linear_vitb base_lr=fast": "base_lr",
    "run cls/knn data=imagenot": "data=imagenot is neither",
    "evaluate vit.pth --on linaer": "did you mean linear?",
    "evaluate vit.pth --on linear,knn linear.epochz=1": "did you mean",
    "evaluate vit.pth --on linear epochz=1": "did you mean",
    "evaluate vit.pth --on linear --data handwriten": "did you mean handwritten?",
    "evaluate vit.pth --on linear --recipe linear=cls/linear_vitbb": "did you mean cls/linear_vitb",
    "evaluate vitt.pth --on linear": "vitt.pth does not exist",
    "inspect vitt.pth": "vitt.pth does not exist",
    "export vitt.pth --to timm": "vitt.pth does not exist",
    "memory det/mask_rcnn_vitdet_b_100epp": "did you mean det/mask_rcnn_vitdet_b_100ep",
    "memory det/mask_rcnn_vitdet_b_100ep stepz=1": "did you mean steps",
    "flops pretrian": "did you mean pretrain?",
    "flops pretrain --modules pretrain/mae_vitb_1600epp": "did you mean",
    "lazyconfig det/mask_rcnn_vitdet_b_100ep stepz=1": "did you mean steps",
    "table crossmae/tabel2": "crossmae/table2",
    "plan crossmae/tabel2": "did you mean crossmae/table2",
    "submit crossmae/table2 --cluster lokal": "did you mean local?",
    "status --state faild": "did you mean failed?",
    "compare-predictions a b": "a does not exist",
    "predict nothing vit.pth": "nothing does not exist",
}
SCRIPT = """
import contextlib, io, json, shlex, sys
from mimbench.jobs.cli.main import app
said = {}
for command in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
        try:
            app(shlex.split(command), prog_name="mimbench")
            code = 0
        except SystemExit as ended:
            code = ended.code
    said[command] = [code, err.getvalue(), "torch" in sys.modules]
print(json.dumps(said))
"""


def test_typos_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "vit.pth").write_bytes(b"never opened")
    command = [sys.executable, "-c", SCRIPT, json.dumps(list(TYPOS))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for typo, (code, text, torch) in json.loads(done.stdout).items():
        assert code in (1, 2), typo
        assert TYPOS[typo] in text, (typo, text)
        assert "Traceback" not in text, (typo, text)
        assert not torch, f"{typo}: torch was imported"
