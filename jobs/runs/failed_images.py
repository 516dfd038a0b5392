"""Record at which image an attempt failed, so that a repeated failure at the same image is reported as such.

The image is kept in the attempt's own record (`attempts/3.json`, key `image`).
"""

from __future__ import annotations

from contextlib import suppress

from mimbench.engine.run.rundir import RunDir


def failed_before(run: RunDir, number: int, image: str | None) -> str:
    """Return text to add to the failure message of attempt `number` if earlier attempts failed at the same image."""
    before = [str(n) for n, attempt in enumerate(run.attempts(), 1) if n != number and attempt.get("image") == image]
    if image is None or not before:
        return ""
    earlier = f"attempt {before[0]}" if len(before) == 1 else f"attempts {', '.join(before)}"
    return f"; {earlier} failed at this image as well, so retrying the run will not help"


def note_image(run: RunDir, number: int, image: str | None) -> None:
    """Record at which image attempt `number` failed, if any."""
    if image is not None:
        with suppress(OSError):  # a full disk: the end of the attempt could not be recorded either
            run.amend_attempt(number, {"image": image})
