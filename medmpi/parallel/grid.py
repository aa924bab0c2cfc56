"""Which part of which model copy a rank holds: world = replicas x stages x tiles."""

from __future__ import annotations

from .world import World


class Grid:
    """The ranks of ``world`` as copies of a model, each split into ``stages`` of layers and ``tiles`` of image rows.

    Ranks count tiles fastest, then stages, then replicas, so that those that talk most are neighbours. ``data`` joins
    the ranks with the same layers: they sum gradients and batch statistics. ``copies`` joins the replicas of a stage
    and tile, ``pipe`` the stages of a replica and tile, ``rows`` the tiles of a stage. ``data`` and ``copies`` may be
    ``world`` itself, ``pipe`` and ``rows`` are None where there is no split. Collective; ValueError where the ranks do
    not divide.
    """

    def __init__(self, world: World, *, stages: int = 1, tiles: int = 1) -> None:
        if stages < 1 or tiles < 1:
            raise ValueError(f"Grid: stages is {stages} and tiles {tiles}, expected at least 1")
        if world.size % (stages * tiles):
            raise ValueError(
                f"Grid: {world.size} ranks do not divide into {stages} stages x {tiles} tiles,"
                f" expected a multiple of {stages * tiles}"
            )
        self.world, self.stages, self.tiles = world, stages, tiles
        self.replicas = world.size // (stages * tiles)
        column, self.tile = divmod(world.rank, tiles)
        self.replica, self.stage = divmod(column, stages)
        self.data = world if stages == 1 else self._part(self.stage)
        self.copies = self.data if tiles == 1 else self._part(self.stage * tiles + self.tile)
        self.pipe = None if stages == 1 else self._part(self.replica * tiles + self.tile)
        self.rows = None if tiles == 1 else self._part(self.replica * stages + self.stage)

    def _part(self, color: int) -> World:
        """The ranks of one color; what they wait and send counts as time of ``world``."""
        part = self.world.split(color)
        part.seconds, part.reproducible = self.world.seconds, self.world.reproducible
        part.observers = self.world.observers
        return part

    @property
    def first(self) -> bool:
        """Whether this rank reads images."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether this rank computes the loss."""
        return self.stage == self.stages - 1

    def describe(self) -> str:
        """``2 replicas x 3 stages``: what there is more than one of."""
        sizes = {"replica": self.replicas, "stage": self.stages, "tile": self.tiles}
        parts = [f"{n} {name}{'s' * (n > 1)}" for name, n in sizes.items() if n > 1]
        return " x ".join(parts) or "1 replica"
