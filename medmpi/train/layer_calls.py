"""Puts something around every piece of work that a pass through a graph has its layers do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from medmpi import nn

# the ways in which a pass has a layer compute, and what each is called
_METHODS = {
    "forward": "forward", "forward_meet": "forward, sums", "forward_after": "forward", "backward": "backward",
    "backward_inputs": "backward", "start_backward_meet": "backward, sums", "backward_after": "backward",
}  # fmt: skip


def wrap_layers(graph: nn.Graph, around: Callable[[str], AbstractContextManager[Any]]) -> Callable[[], None]:
    """From now on each piece runs within ``around("LAYER WHAT")``; the call that it returns takes that off again.

    Of a piece within a piece the outer one's alone. What a layer leaves for later (``Layer.backward_inputs``) is a
    piece of its own.
    """
    inside = False

    def wrapped(method: Callable[..., Any], node: str, name: str, what: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return method(*args, **named)
            inside = True
            try:
                with around(f"{node} {what}"):
                    result = method(*args, **named)
            finally:
                inside = False
            if name == "backward_inputs" and result[1] is not None:
                return result[0], wrapped(result[1], node, "", "weights' gradients")
            return result

        return call

    before = [(node.layer, name, getattr(node.layer, name)) for node in graph.nodes for name in _METHODS]
    for node in graph.nodes:
        for name, what in _METHODS.items():
            setattr(node.layer, name, wrapped(getattr(node.layer, name), node.name, name, what))

    def unwrap() -> None:
        for layer, name, method in before:
            setattr(layer, name, method)

    return unwrap
