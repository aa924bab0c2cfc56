"""What follows from a graph's wiring alone: when values die, which memory is free to use, who needs gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .layer import Layer


@dataclass(frozen=True)
class Plan:
    """``dies[i]`` are the values node i reads last; ``overwrite_*[i]``: whether it may use its first input's memory.

    ``settled[i]``: node i is frozen or behind frozen ones, and no parameter that is trained lies behind it.
    """

    dies: list[tuple[int, ...]]
    overwrite_train: list[bool]
    overwrite_infer: list[bool]
    settled: list[bool]
    _needs: list[bool]
    _needs_with_inputs: list[bool]

    def needs_gradient(self, input_gradients: bool) -> list[bool]:
        """For every value, whether a parameter (or, with ``input_gradients``, an input) lies behind it."""
        return self._needs_with_inputs if input_gradients else self._needs

    @classmethod
    def of(
        cls, layers: Sequence[Layer], inputs: Sequence[tuple[int, ...]], n_inputs: int, outputs: Sequence[int]
    ) -> Plan:
        """The plan of a graph of ``layers``, where layer i reads ``inputs[i]``."""
        readers: dict[int, list[int]] = {}
        for i, values in enumerate(inputs):
            for v in values:
                readers.setdefault(v, []).append(i)
        dies: list[list[int]] = [[] for _ in layers]
        for v, nodes in readers.items():
            if v not in outputs:
                dies[nodes[-1]].append(v)

        def free(v: int, train: bool) -> bool:
            """Whether the memory of value ``v`` belongs to its only reader."""
            if v < n_inputs or v in outputs or len(readers[v]) > 1:
                return False
            producer = layers[v - n_inputs]
            if train and producer.keeps_output:
                return False
            return not producer.aliases or free(inputs[v - n_inputs][0], train)

        def overwrite(train: bool) -> list[bool]:
            return [
                layer.can_overwrite(train) and free(ins[0], train) for layer, ins in zip(layers, inputs, strict=True)
            ]

        def needs(given: bool) -> list[bool]:
            needed = [given] * n_inputs
            for layer, ins in zip(layers, inputs, strict=True):
                trained = bool(layer.parameter_specs()) and not layer.frozen
                needed.append(trained or any(needed[v] for v in ins))
            return needed

        frozen = [False] * n_inputs
        for layer, ins in zip(layers, inputs, strict=True):
            frozen.append(layer.frozen or any(frozen[v] for v in ins))
        needed = needs(False)
        settled = [f and not n for f, n in zip(frozen, needed, strict=True)][n_inputs:]

        return cls([tuple(d) for d in dies], overwrite(True), overwrite(False), settled, needed, needs(True))
