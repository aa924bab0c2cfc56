#include "bind/bucket_reducer.h"

#include <algorithm>

namespace medmpi {

BucketReducer::BucketReducer(RankGroup& group, py::buffer counters, std::vector<float*> segments,
                             std::vector<int64_t> edges, int64_t chunk, int targets)
    : group_(group),
      memory_(counters.request(true)),
      base_(static_cast<char*>(memory_.ptr)),
      segments_(std::move(segments)),
      edges_(std::move(edges)),
      targets_(targets) {
  if (edges_.size() < 2 || !std::is_sorted(edges_.begin(), edges_.end()))
    throw py::value_error("BucketReducer: edges must be ascending and at least two");
  if (static_cast<int>(segments_.size()) != group.size() || targets < 1 || targets > group.size() || chunk < 1)
    throw py::value_error("BucketReducer: segments, targets or chunk do not fit a group of " + text(group.size()));
  if (static_cast<size_t>(memory_.size * memory_.itemsize) < counter_bytes(group.size(), buckets()))
    throw py::value_error("BucketReducer: counters are too short for " + text(buckets()) + " buckets");
  for (int64_t b = 0; b < buckets(); ++b) {
    const auto at = static_cast<size_t>(b);
    first_chunk_.push_back(static_cast<int64_t>(chunks_.size()));
    for (int64_t from = edges_[at]; from < edges_[at + 1]; from += chunk)
      chunks_.push_back({b, from, std::min(from + chunk, edges_[at + 1])});
  }
  first_chunk_.push_back(static_cast<int64_t>(chunks_.size()));
}

void BucketReducer::fill(int64_t bucket) {
  filled(group_.index()).store(step_ * buckets() + bucket, std::memory_order_release);
}

int64_t BucketReducer::ready_buckets() const {
  int64_t least = filled(0).load(std::memory_order_acquire);
  for (int r = 1; r < group_.size(); ++r) least = std::min(least, filled(r).load(std::memory_order_acquire));
  return std::clamp<int64_t>(least - step_ * buckets(), 0, buckets());
}

int64_t BucketReducer::take(int64_t ready_chunks) {
  const int64_t before = step_ * static_cast<int64_t>(chunks_.size());
  int64_t next = claimed().load(std::memory_order_relaxed);
  while (next < before + ready_chunks)
    if (claimed().compare_exchange_weak(next, next + 1, std::memory_order_acq_rel)) return next - before;
  return -1;
}

void BucketReducer::reduce(int64_t chunk) {
  const Chunk& c = chunks_[static_cast<size_t>(chunk)];
  host_ops().collective->reduce(group_.size(), targets_, segments_.data(), c.begin, c.end);
  done(c.bucket).fetch_add(1, std::memory_order_acq_rel);
}

int64_t BucketReducer::poll() {
  const int64_t ready = first_chunk_[static_cast<size_t>(ready_buckets())];
  const int64_t open = step_ * static_cast<int64_t>(chunks_.size()) + ready - claimed().load(std::memory_order_relaxed);
  if (open <= 0) return 0;
  int64_t mine = 0;
#pragma omp parallel reduction(+ : mine) if (open > 1)
  for (int64_t c = take(ready); c >= 0; c = take(ready)) {
    reduce(c);
    ++mine;
  }
  return mine;
}

bool BucketReducer::complete(int64_t bucket) const {
  for (int64_t b = 0; b < bucket; ++b) {
    const auto at = static_cast<size_t>(b);
    const int64_t each = first_chunk_[at + 1] - first_chunk_[at];
    if (done(b).load(std::memory_order_acquire) < (step_ + 1) * each) return false;
  }
  return true;
}

std::pair<double, double> BucketReducer::finish() {
  const int64_t start = monotonic_ns();
  double waited = 0.0;
  fill(buckets());
  while (!complete(buckets())) {
    if (poll()) continue;
    const bool all_filled = ready_buckets() == buckets();
    const int64_t seen = ready_buckets();
    const double seconds = group_.wait([&] { return complete(buckets()) || ready_buckets() > seen; });
    if (!all_filled) waited += seconds;
  }
  return {static_cast<double>(monotonic_ns() - start) * 1e-9 - waited, waited};
}

}  // namespace medmpi
