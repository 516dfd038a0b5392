"""The pictures of README.md, from the runs of a `mimbench demo`: docs/images/{report,reconstructions,detections}.png.

    python docs/record_pictures.py [RUNS]       default: ./runs

Needs Chromium, and Pillow to make them small: 256 colours, about a thousand pixels wide.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.jobs.browser import Browser  # noqa: E402

IMAGES = ROOT / "docs" / "images"
WIDTH, REPORT_HEIGHT, ROW = 1028, 1145, 1 / 3  # pixels; of the detections the first of three rows


def main(runs: Path) -> None:
    """Write all three."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, Browser(Path(home)) as browser:
        whole = Path(home) / "report.png"
        browser.open((runs / "report.html").resolve(), dark=False, width=WIDTH).picture(whole)
        _keep(Image.open(whole), "report", REPORT_HEIGHT)
    [rebuilt] = runs.glob("pretrain/crossmae_handwritten-*/plots/reconstructions.png")
    _keep(Image.open(rebuilt), "reconstructions")
    detector = next(run for run in runs.glob("det/mask_rcnn_handwritten-*") if _pretrained(run))
    found = Image.open(detector / "plots" / "detections.png")
    _keep(found.crop((0, 0, found.width, round(found.height * ROW))), "detections")


def _pretrained(run: Path) -> bool:
    return 'checkpoint = "none"' not in (run / "config.txt").read_text(encoding="utf-8")


def _keep(picture: Image.Image, name: str, height: int | None = None) -> None:
    """At most `WIDTH` wide, its top `height`, in few colours."""
    shrunk = picture.convert("RGB")
    if shrunk.width > WIDTH:
        shrunk = shrunk.resize((WIDTH, round(shrunk.height * WIDTH / shrunk.width)), Image.Resampling.LANCZOS)
    kept = shrunk.crop((0, 0, shrunk.width, min(height or shrunk.height, shrunk.height)))
    kept.quantize(256).save(IMAGES / f"{name}.png", optimize=True)
    print(IMAGES / f"{name}.png", (IMAGES / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs"))
