"""docs/families.md is what its script writes."""

from __future__ import annotations

import runpy
from pathlib import Path

from mimbench.backbones.checkpoints.families import FAMILIES

SCRIPT = Path(__file__).parents[1] / "docs" / "record_families.py"


def test_the_table_of_families_is_what_the_code_says() -> None:
    script = runpy.run_path(str(SCRIPT))
    written = script["PAGE"].read_text(encoding="utf-8")
    assert written == script["page"](), "run: python docs/record_families.py"
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in written.splitlines() if line.startswith("| ")}
    assert {family.title for family in FAMILIES} <= set(rows)
    assert rows["MAE (He et al., 2022), with its decoder"].count("✓") >= 5
    assert "no: 4 registers, LayerScale" in rows["DINOv2 with registers (Darcet et al., 2023)"]
