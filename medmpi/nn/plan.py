"""What follows from a graph's wiring alone: when values die, which memory is free to use, who needs gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    frozen: list[bool]
    _inputs: list[tuple[int, ...]]
    _learns: list[bool]
    _needs: dict[tuple[bool, ...], list[bool]] = field(default_factory=dict)

    def needs_gradient(self, wanted: Sequence[bool]) -> list[bool]:
        """For every value, whether a parameter, or an input whose gradient is ``wanted``, lies behind it."""
        key = tuple(wanted)
        if key not in self._needs:
            needed = list(key)
            for learns, ins in zip(self._learns, self._inputs, strict=True):
                needed.append(learns or any(needed[v] for v in ins))
            self._needs[key] = needed
        return self._needs[key]

    @classmethod
    def of(
        cls,
        layers: Sequence[Layer],
        inputs: Sequence[tuple[int, ...]],
        outputs: Sequence[int],
        wanted: Sequence[bool],
        frozen: Sequence[bool],
    ) -> Plan:
        """The plan of a graph of ``layers``, where layer i reads ``inputs[i]``.

        Of each input, ``wanted`` says whether its gradient is, ``frozen`` whether frozen layers made it.
        """
        n_inputs = len(wanted)
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

        learns = [bool(layer.parameter_specs()) and not layer.frozen for layer in layers]
        behind = list(frozen)
        for layer, ins in zip(layers, inputs, strict=True):
            behind.append(layer.frozen or any(behind[v] for v in ins))
        plan = cls([tuple(d) for d in dies], overwrite(True), overwrite(False), [], behind, list(inputs), learns)
        needed = plan.needs_gradient(wanted)
        plan.settled.extend(f and not n for f, n in list(zip(behind, needed, strict=True))[n_inputs:])
        return plan
