"""What the autograd functions of this folder have in common."""

from collections.abc import Callable
from typing import Any

from torch.autograd import function


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's decorator of the same name. Its own type makes the context positional only, which a `backward` is not."""
    return function.once_differentiable(backward)
