"""What reading COCO's annotations costs: the first time, and from the arrays kept beside the file (B26).

    python benchmarks/annotations.py [--images 118287] [--folder DIR] [--json]

A file like instances_train2017.json is made up: 7.3 objects an image with polygons of 22 numbers, .6 % crowd regions as
run lengths, 80 categories; 118,287 images are 285 MB and need as many (empty) files. Three sides, each a fresh process:

    parse     json.loads alone, for comparison: the standard library
    first     read_split: parse (msgspec), check every entry, arrange as arrays, keep them
    again     read_split from what is kept; its arrays must equal those of `first`, by a digest of all of them

Seconds are the processor's, so that other work on the machine does not count; peak memory is above that of the imports.
Floors at full size: first 10 s, again 1 s. Status 1 if one does not hold. Linux only, for it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FULL = 118_287
FLOORS = {"first": 10.0, "again": 1.0}  # seconds at full size
PEAK = "next(int(line.split()[1]) << 10 for line in open('/proc/self/status') if line.startswith('VmHWM'))"
READ = f"""
import hashlib, json, sys, time
from dataclasses import fields
from pathlib import Path
from mimbench.det.data.coco import read_split
import numpy as np
before, begun = {PEAK}, time.process_time()
split = read_split(Path(sys.argv[1]), "train")
seconds, peak = time.process_time() - begun, {PEAK} - before
digest = hashlib.sha256(split.encoded)
for field in fields(split):
    value = getattr(split, field.name)
    if isinstance(value, np.ndarray):
        digest.update(np.ascontiguousarray(value))
digest.update("".join(map(split.paths.name, range(len(split)))).encode())
print(json.dumps([seconds, peak, digest.hexdigest()]))
"""
PARSE = f"""
import json, sys, time
from pathlib import Path
before, begun = {PEAK}, time.process_time()
content = json.loads((Path(sys.argv[1]) / "annotations/instances_train2017.json").read_bytes())
print(json.dumps([time.process_time() - begun, {PEAK} - before, ""]))
"""
SIDES = {"parse": PARSE, "first": READ, "again": READ}


def write(root: Path, images: int) -> Path:
    """Write the data set; return its annotation file."""
    draw, annotations = random.Random(0), []
    listed = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": 480, "width": 640, "license": 3}
        for number in range(images)
    ]
    for number in range(int(7.3 * images)):
        x, y = draw.randrange(500), draw.randrange(400)
        corners = [round((x, y)[axis % 2] + 60 * draw.random(), 2) for axis in range(22)]
        left, top, right, bottom = min(corners[::2]), min(corners[1::2]), max(corners[::2]), max(corners[1::2])
        crowd = draw.random() < 0.006
        annotations.append({
            "segmentation": {"counts": [1000, 306_200], "size": [480, 640]} if crowd else [corners],
            "area": round(1800 * draw.random(), 4), "iscrowd": int(crowd), "image_id": draw.randrange(images),
            "bbox": [2, 0, 638, 480] if crowd else [left, top, round(right - left, 2), round(bottom - top, 2)],
            "category_id": draw.randrange(1, 81), "id": 900_100_000 + number,
        })  # fmt: skip
    categories = [{"id": number, "name": f"class {number}", "supercategory": "thing"} for number in range(1, 81)]
    file = root / "annotations" / "instances_train2017.json"
    for folder in (file.parent, root / "train2017"):
        folder.mkdir()
    file.write_text(json.dumps({"images": listed, "annotations": annotations, "categories": categories}))
    for image in listed:
        os.close(os.open(root / "train2017" / str(image["file_name"]), os.O_CREAT))
    return file


def run(side: str, root: Path) -> tuple[float, int, str]:
    """Seconds, bytes at the peak and the digest of one side."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SIDES[side], str(root)]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak, digest = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak, digest


def main() -> int:
    """Measure, print, and say by the exit status whether the floors hold."""
    parser = argparse.ArgumentParser(description="What reading COCO's annotations costs (B26).")
    parser.add_argument("--images", type=int, default=FULL)
    parser.add_argument("--folder", help="where the data set is written (default: the temporary one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = write(Path(folder), options.images).stat().st_size
        costs = {side: run(side, Path(folder)) for side in SIDES}
    assert costs["first"][2] == costs["again"][2], "what is kept differs"
    full = options.images >= FULL
    failed = [side for side, floor in FLOORS.items() if full and costs[side][0] > floor]
    if options.json:
        print(json.dumps({"size": size, "costs": costs, "floors": FLOORS, "failed": failed}, indent=2))
    else:
        print(f"B26 {options.images:,} images, {size / 1e6:.0f} MB; arrays equal to the bit")
        for side, (seconds, peak, _) in costs.items():
            asked = f"(floor {FLOORS[side]:g} s{': MISSED' if side in failed else ''})" if side in FLOORS else ""
            print(f"{side:<7} {seconds:6.2f} s {peak / 2**20:6.0f} MiB  {asked}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
