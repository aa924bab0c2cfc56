"""The planner's model against cases that can be computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medmpi.parallel.plan import LayerCost, Machine, Network, choose, predict, shapes

MB = 1 << 20
IDEAL = Network(0.0, 1e18, 0.0, 1e18, 64, 0.0, 1e18)
MACHINE = Machine((1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0))


def layers(n: int, *, meets: bool = False) -> list[LayerCost]:
    """n equal layers of 1 ms forward and 2 ms backward an image, 1 MiB of parameters, 2 MiB of values an image."""
    return [LayerCost(f"l{i}", (0, 1), (0, 1e-3), (0, 2e-3), MB, 2 * MB, 1000, meets) for i in range(n)]


def test_one_rank_takes_the_sum_of_its_layers() -> None:
    plan = predict(layers(8), 10, (1, 1, 1), IDEAL, replace(MACHINE, update=(1e-9,)))
    assert plan.seconds == pytest.approx(8 * 10 * 3e-3 + 8 * MB * 1e-9)
    assert plan.memory == 3 * 8 * MB + 8 * 10 * 2 * MB
    assert plan.cuts == ()


def test_replicas_share_the_images_and_pay_for_sums() -> None:
    network = replace(IDEAL, sum_bandwidth=1e9, meeting=1e-4, node_size=2, far_bandwidth=2e9, far_latency=1e-5)
    alone = predict(layers(4), 12, (1, 1, 1), network, MACHINE).seconds
    two = predict(layers(4), 12, (2, 1, 1), network, MACHINE).seconds
    assert two == pytest.approx(alone / 2 + 1e-4 + 4 * MB / 1e9)
    four = predict(layers(4), 12, (4, 1, 1), network, MACHINE).seconds
    assert four == pytest.approx(alone / 4 + 1e-4 + 4 * MB / 1e9 + 4 * MB / 2e9 + 2e-5)
    crowded = predict(layers(4), 12, (2, 1, 1), IDEAL, replace(MACHINE, crowding=(1.0, 1.5))).seconds
    assert crowded == pytest.approx(alone / 2 * 1.5)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "pieces"), [(2, 1), (2, 4), (4, 8)])
def test_a_balanced_pipeline_takes_its_bubble(schedule: str, stages: int, pieces: int) -> None:
    """(micro-batches + stages - 1) times a stage's micro-batch, the classical result (Huang et al. 2019)."""
    plan = predict(layers(8), 16, (1, stages, pieces), IDEAL, MACHINE, schedule=schedule)
    piece = 8 / stages * 16 / pieces * 3e-3
    assert plan.seconds == pytest.approx((pieces + stages - 1) * piece)
    held = pieces if schedule == "gpipe" else min(stages, pieces)
    assert plan.memory == 8 / stages * (3 * MB + 16 / pieces * held * 2 * MB)
    assert len(plan.cuts) == stages - 1


def test_whole_batch_statistics_make_stages_work_in_turn() -> None:
    one = predict(layers(8, meets=True), 16, (1, 1, 1), IDEAL, MACHINE).seconds
    for pieces in (1, 2, 4):
        plan = predict(layers(8, meets=True), 16, (1, 2, pieces), IDEAL, MACHINE)
        assert plan.seconds <= one * 1.001
        assert plan.seconds > 0.75 * one
    free = predict(layers(8, meets=True), 16, (1, 2, 4), IDEAL, MACHINE, whole_batch=False).seconds
    assert free == pytest.approx(one / 2 * 5 / 4)


def test_messages_delay_the_pipeline() -> None:
    slow = replace(IDEAL, latency=0.1)
    fast = predict(layers(4), 4, (1, 2, 1), IDEAL, MACHINE).seconds
    assert predict(layers(4), 4, (1, 2, 1), slow, MACHINE).seconds == pytest.approx(fast + 0.2)


def test_shapes_and_choice() -> None:
    found = list(shapes(4, 8, 10, whole_batch=False))
    assert {(r, s) for r, s, _ in found} == {(4, 1), (2, 2), (1, 4)}
    assert all(r * s == 4 and m <= -(-8 // r) for r, s, m in found)
    assert {r for r, _, _ in shapes(8, 2, 10, whole_batch=True)} <= {1, 2}
    plans = [predict(layers(8), 8, shape, IDEAL, MACHINE) for shape in found]
    best = choose(plans, float("inf"))
    assert best is not None
    assert best.seconds == min(p.seconds for p in plans)
    least = min(p.memory for p in plans)
    smallest = choose(plans, least)
    assert smallest is not None
    assert smallest.memory == least
    assert choose(plans, least - 1) is None


def test_more_replicas_than_images() -> None:
    with pytest.raises(ValueError, match="3 replicas share 2 images"):
        predict(layers(4), 2, (3, 1, 1), IDEAL, MACHINE)
