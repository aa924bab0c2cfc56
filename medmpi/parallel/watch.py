"""What a watchdog sees of one world: which ranks of its node are late, gone or have left."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from .guard import EXIT_ERROR, EXIT_REQUEUE, EXIT_WATCHDOG, host_name, process_state

if TYPE_CHECKING:
    from .world import World

Line = dict[str, Any]


def failure(code: int) -> int:
    """The exit code of a job in which a rank left too early with this one; 85 would promise a complete checkpoint."""
    return EXIT_ERROR if code in (0, EXIT_REQUEUE) else code


class Watch:
    """One world as its guard sees it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.group = world.group
        self._farewell: Any = None
        self.peer: int | None = None  # the rank that this one exchanges messages with, when it waits for one alone

    @property
    def timeout(self) -> float:
        """Seconds that a rank may be waited for."""
        return self._world.timeout

    def problem(self) -> tuple[int, str] | None:
        """Exit code and message when the job must end now."""
        lines: list[Line] = self.group.lines()
        me = lines[self._world.local_rank]
        # each rank looks after the next one, so that a full node does not read every state from every rank
        neighbour = lines[(self._world.local_rank + 1) % len(lines)]
        if neighbour is not me and not neighbour["leaving"] and process_state(neighbour["pid"]) in ("", "Z", "X"):
            return EXIT_ERROR, f"{self._name(neighbour)} has disappeared{self._doing(neighbour)}{self.place()}"
        if me["seconds"] < 0:
            return None
        peer = self.peer
        if peer is None:
            late = [line for line in lines if line["operations"] < me["operations"]]
        else:
            here = self._world.node_ranks[self._world.node]
            late = [lines[here.index(peer)]] if peer in here else []
        for line in late:
            if line["leaving"]:
                return failure(line["exit_code"]), (
                    f"{self._name(line)} has ended with exit code {line['exit_code']} while rank {me['rank']} waits "
                    f"for it in '{me['operation']}' (operation {me['operations']}){self.place()}"
                )
        # a rank that sees who is late speaks before one that only sees that it waits
        if me["seconds"] <= self._world.timeout + (0.0 if late else 0.4):
            return None
        return EXIT_WATCHDOG, self._overdue(me, lines, late)

    def _overdue(self, me: Line, lines: list[Line], late: list[Line]) -> str:
        text = (
            f"watchdog: '{me['operation']}' (operation {me['operations']}) has waited {me['seconds']:.1f} s, more than "
            f"the {self._world.timeout:g} s allowed{self.place()}"
        )
        peer = self.peer
        other = [
            x
            for x in lines
            if peer is None and x["operations"] == me["operations"] and x["operation"] != me["operation"]
        ]
        if late:
            text += "; not arrived: " + "; ".join(f"{self._name(x)}{self._doing(x)}" for x in late)
            self._show_stacks(late)
        elif other:
            text += "; " + "; ".join(f"{self._name(x)} is in '{x['operation']}' instead" for x in other)
        elif peer is not None:
            text += f"; look at rank {peer} of this group, on {self._world.hosts[peer]}"
        elif self._world.nodes > 1:
            missing = [r for i, node in enumerate(self._world.node_ranks) if i != self._world.node for r in node]
            text += f"; all ranks of {host_name()} have arrived, look at the other nodes: ranks " + ", ".join(
                f"{r} on {self._world.hosts[r]}" for r in missing
            )
        elif stopped := [x for x in lines if process_state(x["pid"]) in ("T", "t")]:  # with the others inside MPI
            text += "; " + "; ".join(f"{self._name(x)}{self._doing(x)}" for x in stopped)
        else:
            text += "; all ranks have arrived: it is stuck inside MPI"
            self._show_stacks([x for x in lines if x is me])
        return text

    def place(self) -> str:
        """Where the program is, as the end of a sentence."""
        return f" at {self._world.place}" if self._world.place else ""

    def _name(self, line: Line) -> str:
        return f"rank {line['rank']} (process {line['pid']} on {host_name()})"

    @staticmethod
    def _doing(line: Line) -> str:
        state = " is stopped by a signal," if process_state(line["pid"]) in ("T", "t") else ""
        if line["seconds"] >= 0:
            return f",{state} in '{line['operation']}' for {line['seconds']:.1f} s"
        return f",{state} outside collective operations after {line['operations']} of them"

    @staticmethod
    def _show_stacks(lines: list[Line]) -> None:
        """Lets the processes print where they are, as far as they can."""
        for line in lines:
            if process_state(line["pid"]) not in ("T", "t", ""):
                os.kill(line["pid"], signal.SIGUSR2)
        time.sleep(0.1)

    def staying(self) -> str:
        """Names of the ranks that have not begun to leave; empty when all have."""
        stay = [str(line["rank"]) for line in self.group.lines() if not line["leaving"]]
        if stay:
            return f"rank{'s' if len(stay) > 1 else ''} {', '.join(stay)}"
        if self._world.nodes > 1:
            if self._farewell is None:
                self._farewell = self._world.comm.Ibarrier()
            if not self._farewell.Test():
                return "ranks of other nodes"
        return ""

    def exit_codes(self) -> list[int]:
        """The ranks' exit codes; only when all are leaving."""
        return [int(line["exit_code"]) for line in self.group.lines()]
