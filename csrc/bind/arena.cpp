#include "bind/arena.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace medmpi {
namespace {

constexpr size_t kAlign = 64;
constexpr int64_t kPatience = 3;  // strayed passes in a row after which the plan is made anew

thread_local Arena* current = nullptr;

size_t aligned(size_t bytes) { return (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign; }

}  // namespace

Arena* Arena::active() { return current; }

void Arena::begin() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (running_ || current) throw std::logic_error("Arena: a pass is on already, expected one at a time in a thread");
  current = this;
  running_ = true;
  ++pass_;
  cursor_ = 0;
  // an array of an earlier pass that lives on may lie where this pass would put another
  astray_ = planned_ && live_ > 0;
  if (!planned_) {
    arrays_.clear();
    order_.clear();
  }
}

void Arena::end() {
  std::lock_guard<std::mutex> lock(mutex_);
  current = nullptr;
  running_ = false;
  if (!planned_) return plan();
  if (grown_ && !astray_ && cursor_ == order_.size()) return plan();
  strays_ = astray_ || cursor_ != order_.size() ? strays_ + 1 : 0;
  if (strays_ < kPatience) return;
  planned_ = false;
  strays_ = live_ = 0;
  memory_.reset();
}

Arena::Claim Arena::take(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!running_) return {};
  if (!planned_) {
    const auto index = static_cast<int64_t>(arrays_.size());
    arrays_.push_back({aligned(bytes), static_cast<int64_t>(order_.size()), -1, -1});
    order_.push_back(index + 1);
    return {index, pass_, nullptr, nullptr};
  }
  if (astray_) return {};
  const int64_t index = cursor_ < order_.size() ? order_[cursor_] - 1 : -1;
  if (index < 0) {
    astray_ = true;
    return {};
  }
  ++cursor_;
  Array& mine = arrays_[static_cast<size_t>(index)];
  if (mine.bytes < aligned(bytes)) {
    mine.bytes = aligned(bytes);
    mine.offset = -1;  // its place is too small until there is a new plan
    grown_ = true;
    return {index, pass_, nullptr, nullptr};
  }
  if (mine.offset < 0) return {index, pass_, nullptr, nullptr};
  ++live_;
  return {index, pass_, memory_, memory_->data() + mine.offset};
}

void Arena::give(const Claim& claim) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (claim.memory && claim.memory == memory_) --live_;
  if (!running_ || claim.pass != pass_ || claim.index < 0) return;
  if (!planned_) {
    arrays_[static_cast<size_t>(claim.index)].end = static_cast<int64_t>(order_.size());
    order_.push_back(-(claim.index + 1));
    return;
  }
  if (!astray_ && cursor_ < order_.size() && order_[cursor_] == -(claim.index + 1))
    ++cursor_;
  else
    astray_ = true;
}

/// Largest first, each at the lowest place that is free during its whole life.
void Arena::plan() {
  std::vector<size_t> by_size(arrays_.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(),
                   [this](size_t a, size_t b) { return arrays_[a].bytes > arrays_[b].bytes; });
  std::vector<size_t> placed;  // by offset
  size_t total = 0;
  for (size_t i : by_size) {
    Array& mine = arrays_[i];
    if (mine.end < 0) continue;  // outlived the pass
    size_t offset = 0;
    for (size_t j : placed) {
      const Array& other = arrays_[j];
      if (other.end < mine.begin || mine.end < other.begin) continue;
      const auto at = static_cast<size_t>(other.offset);
      if (at >= offset + mine.bytes) break;
      offset = std::max(offset, at + other.bytes);
    }
    mine.offset = static_cast<int64_t>(offset);
    total = std::max(total, offset + mine.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [this](size_t a, size_t b) { return arrays_[a].offset < arrays_[b].offset; }),
                  i);
  }
  memory_.reset();
  memory_pool().trim();  // most of what the first pass took is not needed beside the block
  memory_ = total ? std::make_shared<Memory>(total) : nullptr;
  live_ = strays_ = 0;
  planned_ = true;
  grown_ = false;
}

size_t Arena::size() {
  std::lock_guard<std::mutex> lock(mutex_);
  return memory_ ? memory_->size() : 0;
}

bool Arena::holds(const void* data) {
  std::lock_guard<std::mutex> lock(mutex_);
  const char* at = static_cast<const char*>(data);
  return memory_ && at >= memory_->data() && at < memory_->data() + memory_->size();
}

}  // namespace medmpi
