"""A typo is refused, and a command shows that it works, before torch or another heavy package is imported."""

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
WORKS = {  # with what its first words on a terminal are
    "inspect vit.pth": "reading vit.pth",
    "evaluate vit.pth --on knn": "reading vit.pth",
    "run cls/knn data=digits checkpoint=vit.pth": "reading vit.pth",
    "embed vit.pth photographs -o features.safetensors": "encoding photographs with vit.pth",
    "embed vit.pth handwritten -o features.safetensors": "writing handwritten",
    "export vit.pth --to timm": "writing vit.pth for timm",
    "predict vit.pth photograph.png": "reading vit.pth",
    "card vit.pth": "writing the card",
    "memory det/mask_rcnn_vitdet_b_100ep": "estimating the memory",
    "flops pretrain": "counting operations",
    "flops pretrain --modules pretrain/mae_vitb_1600ep": "counting the operations",
    "table crossmae/compute": "counting in models",
}
SCRIPT = """
import contextlib, io, json, shlex, sys
from mimbench.jobs.cli.main import app
HEAVY = {"torch", "torchvision", "timm", "mmengine", "numpy", "scipy", "matplotlib", "PIL", "rich"}

class Terminal(io.StringIO):  # interrupts the command at its first words
    def isatty(self):
        return True
    def write(self, text):
        super().write(text)
        raise KeyboardInterrupt

said = {}
for command in json.loads(sys.argv[1]) + json.loads(sys.argv[2]):
    err = io.StringIO() if command in json.loads(sys.argv[1]) else Terminal()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(err):
        try:
            app(shlex.split(command), prog_name="mimbench")
            code = 0
        except SystemExit as ended:
            code = ended.code
    said[command] = [code, err.getvalue(), sorted(HEAVY & sys.modules.keys())]
print(json.dumps(said))
"""


def test_typos_are_refused_and_work_is_shown_before_torch_is_imported(tmp_path: Path) -> None:
    for folder in ("photographs", "digits/train/one", "digits/val/one"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("vit.pth", "photograph.png"):
        (tmp_path / name).write_bytes(b"never opened")
    command = [sys.executable, "-c", SCRIPT, json.dumps(list(TYPOS)), json.dumps(list(WORKS))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    for typo, text in TYPOS.items():
        code, err, heavy = told[typo]
        assert code in (1, 2), typo
        assert text in err, (typo, err)
        assert "Traceback" not in err, (typo, err)
        assert not heavy, f"{typo}: {heavy} imported"
    for work, text in WORKS.items():
        code, err, heavy = told[work]
        assert (code, text in err) == (130, True), (work, err)
        assert not heavy, f"{work}: {heavy} imported before the first words"
