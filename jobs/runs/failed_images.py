"""At which image a run's attempts failed, so that one that fails at the same image again can say so.

The image is kept in the attempt's own record (`attempts/3.json`, key `image`).
"""

from __future__ import annotations

from contextlib import suppress

from mimbench.engine.run.rundir import RunDir


def failed_before(run: RunDir, number: int, image: str | None) -> str:
    """What to add to the reason for which attempt `number` failed at `image`, if earlier ones failed there as well."""
    before = [str(n) for n, attempt in enumerate(run.attempts(), 1) if n != number and attempt.get("image") == image]
    if image is None or not before:
        return ""
    earlier = f"attempt {before[0]}" if len(before) == 1 else f"attempts {', '.join(before)}"
    return f"; {earlier} failed at this image as well, so starting the run once more will not help"


def note_image(run: RunDir, number: int, image: str | None) -> None:
    """Record at which image attempt `number` failed, if at one."""
    if image is not None:
        with suppress(OSError):  # a full disk: the end of the attempt could not be recorded either
            run.amend_attempt(number, {"image": image})
