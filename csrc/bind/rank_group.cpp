#include "bind/rank_group.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>

namespace medmpi {
namespace {

/// FNV-1a of an operation's name and size.
int64_t tag_of(const char* name, int64_t bytes) {
  uint64_t hash = 1469598103934665603u ^ static_cast<uint64_t>(bytes);
  for (; *name; ++name) hash = (hash ^ static_cast<unsigned char>(*name)) * 1099511628211u;
  return static_cast<int64_t>(hash);
}

}  // namespace

RankGroup::RankGroup(py::buffer memory, int index, int size, size_t slot, int64_t rank)
    : memory_(memory.request(true)), base_(static_cast<char*>(memory_.ptr)), index_(index), size_(size), slot_(slot) {
  if (size < 1 || index < 0 || index >= size)
    throw py::value_error("RankGroup: index is " + text(index) + " of " + text(size) + " ranks");
  if (slot % 64)
    throw py::value_error("RankGroup: slot is " + text(static_cast<int64_t>(slot)) +
                          " bytes, expected a multiple of 64");
  if (static_cast<size_t>(memory_.size * memory_.itemsize) < bytes(size, slot))
    throw py::value_error("RankGroup: memory has " + text(memory_.size * memory_.itemsize) + " bytes, expected " +
                          text(static_cast<int64_t>(bytes(size, slot))));
  mine().pid.store(getpid());
  mine().rank.store(rank);
}

void RankGroup::enter(const char* operation, size_t length) {
  Line& l = mine();
  outer_.push_back({l.since.load(std::memory_order_relaxed), {}});
  std::memcpy(outer_.back().operation, l.operation, kName);
  length = std::min(length, kName - 1);
  std::memcpy(l.operation, operation, length);
  l.operation[length] = '\0';
  l.operations.store(l.operations.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  l.since.store(monotonic_ns(), std::memory_order_release);
}

void RankGroup::leave() {
  if (outer_.empty()) return;
  std::memcpy(mine().operation, outer_.back().operation, kName);
  mine().since.store(outer_.back().since, std::memory_order_release);
  outer_.pop_back();
}

void RankGroup::arrive(int64_t bytes) {
  Line& l = mine();
  if (arrived_) throw std::logic_error(std::string(l.operation) + ": a sum that was begun has not been finished");
  arrived_ = true;
  const int64_t epoch = ++epoch_;
  const auto turn = static_cast<size_t>(epoch & 1);
  std::memcpy(l.met[turn], l.operation, kName);
  l.tag[turn].store(tag_of(l.operation, bytes), std::memory_order_relaxed);
  l.arrived.store(epoch, std::memory_order_release);
}

double RankGroup::await(int64_t bytes) {
  if (!arrived_) throw std::logic_error(std::string(mine().operation) + ": no sum has been begun");
  arrived_ = false;
  const int64_t epoch = epoch_;
  const auto turn = static_cast<size_t>(epoch & 1);
  const int64_t tag = mine().tag[turn].load(std::memory_order_relaxed);
  const double waited = wait([&] {
    for (int i = 0; i < size_; ++i)
      if (line(i).arrived.load(std::memory_order_acquire) < epoch) return false;
    return true;
  });
  // nobody can overwrite the tag of this turn before this rank has come to the next meeting
  for (int i = 0; i < size_; ++i)
    if (line(i).tag[turn].load(std::memory_order_relaxed) != tag) mismatch(i, turn, bytes);
  return waited;
}

void RankGroup::mismatch(int other, size_t turn, int64_t bytes) const {
  char theirs[kName];
  std::memcpy(theirs, line(other).met[turn], kName);
  theirs[kName - 1] = '\0';
  const std::string mine_is = line(index_).operation, what = std::string("rank ") + text(line(other).rank.load());
  hold_if_aborted();
  if (mine_is == theirs)
    throw std::runtime_error(mine_is + ": " + what + " has another number of bytes than the " + text(bytes) + " here");
  throw std::runtime_error(mine_is + ": " + what + " is in '" + theirs +
                           "' instead; all ranks must do the same operations in the same order");
}

void RankGroup::pause(int64_t round, int64_t start) const {
  const int64_t waited = round < 64 ? 0 : monotonic_ns() - start;
  const bool yields = waited < yield_ns_;
  if (yields)
    sched_yield();
  else
    usleep(waited < 20'000'000 ? 30 : 200);
  if (round % (yields ? 1 << 14 : 64) == 0 && waited > 20'000'000) {
    hold_if_aborted();
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

void RankGroup::hold_if_aborted() const {
  // The process is about to be ended by its watchdog or the launcher; going on with half a result would only add noise.
  for (int i = 0; aborted().load(std::memory_order_acquire) != 0; ++i) {
    if (i == 300) throw std::runtime_error("the job has been ended by another rank");
    usleep(10'000);
  }
}

}  // namespace medmpi
