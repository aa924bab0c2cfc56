"""Operations of processes on one machine over memory that all of them have mapped; ``medmpi.parallel`` builds on them.

``RankGroup`` lets ranks meet and exchange small arrays, ``BucketReducer`` sums gradient buckets in rank order. Both
release the interpreter lock while they wait and serve signals meanwhile. ``to_bfloat16(x, out)`` rounds float32 to its
upper half (uint16), to the nearest, ties to even; ``sum_bfloat16(parts, out)`` adds the rows of such in float32.

``Vigil(what, allowed, longest, code)`` is a thread that needs no interpreter lock. It ends this process, with that exit
code and a message, when a rank of the same launcher on this machine has been stopped by a signal for ``allowed``
seconds, or when ``longest`` seconds have passed; until ``end()``.
"""

from __future__ import annotations

from . import _core

RankGroup = _core.RankGroup
BucketReducer = _core.BucketReducer
Vigil = _core.Vigil
merge_statistics_of = _core.merge_statistics_of
yield_core = _core.yield_core
to_bfloat16 = _core.to_bfloat16
sum_bfloat16 = _core.sum_bfloat16
