"""The precision of evaluations: `with evaluating_in("bf16", device): ...`. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

EvaluatePrecision = Literal["fp32", "tf32", "bf16"]
ABOUT = (
    "of matrix products: fp32 as the originals evaluate; on a GPU, tf32 (a 10-bit mantissa) is about 3 times and bf16 "
    "about 6 times faster"
)


@contextmanager
def evaluating_in(precision: EvaluatePrecision, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in `precision` within this context; tf32 changes nothing on a CPU."""
    import torch

    if precision == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
        return
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        if precision == "tf32":
            products.allow_tf32 = convolutions.allow_tf32 = True
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
