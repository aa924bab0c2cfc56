"""Schedules against torch, and eq. 9 in its two readings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from medmpi.nn import schedule


def _torch_rates(make: Callable[[Any, Any], Any], rate: float, steps: int) -> list[float]:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the schedules")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


CASES: dict[str, tuple[schedule.Schedule, Callable[[Any, Any], Any]]] = {
    "constant": (schedule.constant(0.4), lambda s, o: s.LambdaLR(o, lambda t: 1)),
    "milestones": (schedule.milestones(0.4, [3, 3, 10], 0.2), lambda s, o: s.MultiStepLR(o, [3, 3, 10], 0.2)),
    "cosine": (schedule.cosine(0.4, 19, 0.01), lambda s, o: s.CosineAnnealingLR(o, 19, 0.01)),
    "inverse": (schedule.inverse_time(0.4, 0.3), lambda s, o: s.LambdaLR(o, lambda t: 1 / (1 + 0.3 * t))),
    "compound": (
        schedule.inverse_time_compound(0.4, 0.03),
        lambda s, o: s.MultiplicativeLR(o, lambda t: 1 / (1 + 0.03 * t)),
    ),
    "warmup": (
        schedule.warmup(schedule.milestones(0.4, [8]), 5, 0.2),
        lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.2, 1, 5), s.MultiStepLR(o, [8])], [5]),
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's SequentialLR calls step with a deprecated argument
@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_equal_torch(name: str) -> None:
    mine, make = CASES[name]
    assert [mine(t) for t in range(20)] == pytest.approx(_torch_rates(make, 0.4, 20), rel=1e-9)


def test_equation_9() -> None:
    """eta_new = eta_old / (1 + lambda t): from the first rate, or step after step."""
    assert [schedule.inverse_time(1.0, 0.5)(t) for t in range(4)] == pytest.approx([1, 1 / 1.5, 1 / 2, 1 / 2.5])
    compound = schedule.inverse_time_compound(1.0, 0.5)
    assert compound(3) == pytest.approx(1 / 1.5 / 2 / 2.5)  # whatever was asked before
    assert [compound(t) for t in range(3)] == pytest.approx([1, 1 / 1.5, 1 / 1.5 / 2])


def test_cosine_stays_at_its_floor() -> None:
    rates = schedule.cosine(1.0, 10, 0.1)
    assert rates(5) == pytest.approx(0.55)
    assert rates(10) == rates(25) == pytest.approx(0.1)


@pytest.mark.parametrize("options", [{}, {"cooldown": 2}, {"mode": "max"}, {"threshold": 0.2, "floor": 0.01}], ids=str)
def test_plateau_equals_torch(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="torch is the oracle of the schedules")
    metrics = [5, 4, 4.1, 4.2, 3.9, 3.9, 3.9, 3.9, 3.9, float("nan"), 3.8, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 3.9, 1, 1]
    mine = schedule.Plateau(0.4, factor=0.5, patience=1, **options)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    floor = {"min_lr": options["floor"]} if "floor" in options else {}
    rest = {key: value for key, value in options.items() if key != "floor"}
    twin = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, **rest, **floor)
    rates = set()
    for step, metric in enumerate(metrics):
        mine.observe(metric)
        twin.step(metric)
        assert mine(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        rates.add(mine(step))
    assert len(rates) > 2


def test_plateau_resumes_inside_a_warmup() -> None:
    first = schedule.warmup(schedule.Plateau(0.4, factor=0.5, patience=0), 3)
    for metric in (1.0, 2.0, 3.0):
        first.observe(metric)
    assert first(3) == 0.1
    second = schedule.warmup(schedule.Plateau(0.4, factor=0.5, patience=0), 3)
    second.load_state_dict(first.state_dict())
    assert second(7) == first(7) == 0.1
    second.observe(1.5)
    assert second(7) == 0.05
    with pytest.raises(ValueError, match="Plateau: state has"):
        second.load_state_dict({"rate": 1.0})
    with pytest.raises(ValueError, match="expected nothing"):
        schedule.constant(1.0).load_state_dict({"rate": 1.0})


def test_wrong_arguments_are_named() -> None:
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: schedule.constant(0), "rate is 0"),
        (lambda: schedule.cosine(0.1, 0), "steps is 0"),
        (lambda: schedule.milestones(0.1, [5, 2]), "expected rising"),
        (lambda: schedule.inverse_time(0.1, -1), "decay is -1"),
        (lambda: schedule.inverse_time_compound(0.1, float("inf")), "decay is inf"),
        (lambda: schedule.warmup(schedule.constant(1), -1), "steps is -1"),
        (lambda: schedule.Plateau(0.1, factor=1.0), "factor 1.0"),
        (lambda: schedule.constant(0.1)(-1), "step is -1"),
    ]
    for call, text in wrong:
        with pytest.raises(ValueError, match=text):
            call()
