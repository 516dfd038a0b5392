"""A hook of mkdocs: writes the search index as a script, so that the search answers on pages opened from the disk too.

A browser lets no page from the disk fetch a file, but it loads scripts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_post_build(config: Any, **_: Any) -> None:
    """Write `site/search_index.js` beside the pages, from the index of mkdocs's search plugin."""
    site = Path(config["site_dir"])
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    (site / "site" / "search_index.js").write_text(f"window.searchIndex = {index};\n", encoding="utf-8")
