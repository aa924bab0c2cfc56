"""Operations of processes on one machine over memory that all of them have mapped; ``medmpi.parallel`` builds on them.

``RankGroup`` lets ranks meet and exchange small arrays, ``BucketReducer`` sums gradient buckets in rank order. Both
release the interpreter lock while they wait and serve signals meanwhile.
"""

from __future__ import annotations

from . import _core

RankGroup = _core.RankGroup
BucketReducer = _core.BucketReducer
merge_statistics_of = _core.merge_statistics_of
