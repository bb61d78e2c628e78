"""A training step as one CUDA graph: hundreds of launches become one, where Python is slower than the device.

Not tried on a GPU yet, and off by default (`--cuda-graphs`). What it rests on is tested: a step asks for no number,
writes in place, and draws no random numbers of torch's.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Steps before a capture, in which libraries allocate what they need."""

Step = Callable[..., None]
"""A step of its tensors: images of the source, of the target, learning rates."""


def capture(step: Step, *inputs: Tensor) -> Step:
    """Return a step that replays this one, for inputs of the same shapes.

    The state that the step changes is no longer what it was: the caller restores it. Raises RuntimeError where the step
    does what a graph cannot.
    """
    static = [tensor.clone() for tensor in inputs]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step(*static)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*static)

    def replay(*given: Tensor) -> None:
        for mine, other in zip(static, given, strict=True):
            mine.copy_(other)
        graph.replay()

    return replay
