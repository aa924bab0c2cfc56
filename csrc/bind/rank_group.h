#pragma once
// The ranks of one node, meeting in memory that all of them have mapped. Every rank owns a line that only it writes:
// how many meetings it has reached and what it is doing. Waiting means reading the others' lines, so nobody needs a
// lock, and who is late can be read from outside by a watchdog.
#include <time.h>

#include <atomic>
#include <string>
#include <vector>

#include "bind/call.h"

namespace medmpi {

inline int64_t monotonic_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

using Shared = std::atomic<int64_t>;
static_assert(Shared::is_always_lock_free, "counters shared by processes must be lock-free");

class RankGroup {
 public:
  static constexpr size_t kHeader = 4096, kLine = 448, kName = 96;
  static constexpr int64_t kRunning = 0, kLeaving = 1;

  /// What a rank tells the others. What waiting ranks read has a cache line of its own.
  struct Line {
    alignas(64) Shared arrived;     // meetings reached
    Shared tag[2];                  // what they are for, in turn: ranks that meet for different things must not go on
    alignas(64) Shared operations;  // collective operations entered
    Shared since;                   // monotonic ns at which the present one was entered, 0 outside
    Shared state, exit_code, pid, rank;
    char operation[kName];
    char met[2][kName];  // names of the operations that the tags stand for
  };
  static_assert(sizeof(Line) <= kLine, "a line must fit its place");

  static size_t bytes(int size, size_t slot) { return kHeader + static_cast<size_t>(size) * (kLine + 2 * slot); }

  /// `memory` must be zeroed, page-aligned and the same for all ranks of the group.
  RankGroup(py::buffer memory, int index, int size, size_t slot, int64_t rank);

  int index() const { return index_; }
  int size() const { return size_; }
  size_t slot_bytes() const { return slot_; }
  Line& line(int i) const { return *reinterpret_cast<Line*>(base_ + kHeader + static_cast<size_t>(i) * kLine); }
  /// The memory through which rank i hands its part of a small operation to the others at meeting `epoch`. Two, in
  /// turn: a rank that writes the next one may run ahead of readers of this one by one meeting at most.
  char* slot(int i, int64_t epoch) const {
    return base_ + kHeader + static_cast<size_t>(size_) * kLine +
           (static_cast<size_t>(i) * 2 + static_cast<size_t>(epoch & 1)) * slot_;
  }

  /// Begins and ends a collective operation in the eyes of the watchdogs. May nest; one thread only.
  void enter(const char* operation, size_t length);
  void leave();
  int64_t epoch() const { return epoch_; }
  int64_t next_epoch() const { return epoch_ + 1; }
  /// Tells the others that this rank has reached the next meeting.
  void arrive(int64_t bytes = 0);
  /// Waits until all have reached the meeting that this rank has. Returns seconds waited. Throws when another rank has
  /// come for another operation, or with another number of bytes.
  double await(int64_t bytes = 0);
  double meet(int64_t bytes = 0) {
    arrive(bytes);
    return await(bytes);
  }
  Shared& aborted() const { return *reinterpret_cast<Shared*>(base_); }
  void hold_if_aborted() const;

  /// Waits until ready() with the interpreter lock released; it must be held by nobody when this is called. Signals
  /// are served, so Ctrl-C ends it. Returns seconds waited.
  template <typename Ready>
  double wait(const Ready& ready) const {
    if (ready()) return 0.0;
    const int64_t start = monotonic_ns();
    // yielding too early is dear where another program wants the core: it may keep it for milliseconds
    while (monotonic_ns() - start < spin_ns_)
      for (int i = 0; i < 16; ++i) {
        if (ready()) return static_cast<double>(monotonic_ns() - start) * 1e-9;
        relax();
      }
    for (int64_t round = 0; !ready(); ++round) pause(round, start);
    return static_cast<double>(monotonic_ns() - start) * 1e-9;
  }
  /// How long to wait without a system call, and how long before sleeping.
  void set_patience(double spin, double yield) {
    spin_ns_ = static_cast<int64_t>(spin * 1e9);
    yield_ns_ = static_cast<int64_t>(yield * 1e9);
  }

 private:
  Line& mine() const { return line(index_); }
  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  void pause(int64_t round, int64_t start) const;
  [[noreturn]] void mismatch(int other, size_t turn, int64_t bytes) const;

  py::buffer_info memory_;
  char* base_;
  int index_, size_;
  size_t slot_;
  int64_t epoch_ = 0;
  bool arrived_ = false;  // and not yet waited for the others
  struct Outer {
    int64_t since;
    char operation[kName];
  };
  std::vector<Outer> outer_;
  int64_t spin_ns_ = 50'000, yield_ns_ = 2'000'000;
};

/// An operation that lasts as long as this object.
class Operation {
 public:
  Operation(RankGroup& group, const std::string& name) : group_(group) { group_.enter(name.data(), name.size()); }
  ~Operation() { group_.leave(); }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

 private:
  RankGroup& group_;
};

}  // namespace medmpi
