#pragma once
// Sums the gradient buckets of a node's ranks while backward is still filling later ones. Nobody waits for a bucket:
// whoever looks in and finds that all ranks have filled it takes chunks of it, one at a time, from a shared counter.
// Which rank adds a chunk has no influence on its bits. All counters only grow, so steps need no reset between them.
#include <vector>

#include "bind/rank_group.h"

namespace medmpi {

class BucketReducer {
 public:
  /// `counters` is shared and zeroed, of counter_bytes(); `segments` are the ranks' arrays; bucket i spans
  /// [edges[i], edges[i + 1]). The sum is stored in the first `targets` segments.
  BucketReducer(RankGroup& group, py::buffer counters, std::vector<float*> segments, std::vector<int64_t> edges,
                int64_t chunk, int targets);

  static size_t counter_bytes(int ranks, int64_t buckets) { return 64 * static_cast<size_t>(ranks + 1 + buckets); }

  /// Buckets before `bucket` are final on this rank.
  void fill(int64_t bucket);
  /// Reduces what all ranks have filled; returns the chunks done here.
  int64_t poll();
  /// Whether the sums of all buckets before `bucket` have been stored.
  bool complete(int64_t bucket) const;
  /// Fills the rest and helps until all is complete. Returns seconds of (work, waiting for ranks that fill).
  std::pair<double, double> finish();
  void next_step() { ++step_; }
  int64_t buckets() const { return static_cast<int64_t>(edges_.size()) - 1; }

 private:
  Shared& counter(int64_t i) const { return *reinterpret_cast<Shared*>(base_ + 64 * i); }
  Shared& filled(int rank) const { return counter(rank); }
  Shared& claimed() const { return counter(group_.size()); }
  Shared& done(int64_t bucket) const { return counter(group_.size() + 1 + bucket); }
  int64_t ready_buckets() const;
  int64_t take(int64_t ready_chunks);
  void reduce(int64_t chunk);

  struct Chunk {
    int64_t bucket, begin, end;
  };
  RankGroup& group_;
  py::buffer_info memory_;
  char* base_;
  std::vector<float*> segments_;
  std::vector<int64_t> edges_, first_chunk_;
  std::vector<Chunk> chunks_;
  int targets_;
  int64_t step_ = 0;
};

}  // namespace medmpi
