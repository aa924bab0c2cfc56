// Blocks, threads as fibers, barriers. A thread that has run to its end gives its stack to the next one: a kernel
// without barriers runs on one stack.
#include "cuda/emulate/execute.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace medmpi::emulate {

const Thread* current = nullptr;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr size_t kGuard = 4096;
constexpr size_t kMargin = 64;  // watched bytes behind shared memory
constexpr unsigned kLanes = 32;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating type

// --- a switch of stacks ---------------------------------------------------------------------------------------------

#if defined(__x86_64__)
extern "C" void medmpi_emulate_switch(void** from, void* to);
asm(R"(
.text
.type medmpi_emulate_switch,@function
medmpi_emulate_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size medmpi_emulate_switch,.-medmpi_emulate_switch
)");

/// A place to run: a stack pointer with the saved registers on top.
struct Context {
  void* top = nullptr;
};
void switch_to(Context& from, Context& to) { medmpi_emulate_switch(&from.top, to.top); }
void prepare(Context& c, char* stack, void (*entry)()) {
  auto** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;  // keeps the stack as the calling convention wants it at a function's entry
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  c.top = top;
}
#else
struct Context {
  ucontext_t context;
};
void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
void prepare(Context& c, char* stack, void (*entry)()) {
  getcontext(&c.context);
  c.context.uc_stack.ss_sp = stack;
  c.context.uc_stack.ss_size = kStack;
  c.context.uc_link = nullptr;
  makecontext(&c.context, entry, 0);
}
#endif

// --- one block ------------------------------------------------------------------------------------------------------

enum class State { kReady, kBarrier, kWarp, kDone };

struct Fiber {
  Thread me;
  Context context;
  char* stack = nullptr;
  State state = State::kReady;
  Site site{};
  unsigned mask = 0;
  void* posted = nullptr;
};

struct Variable {
  const void* key;
  size_t bytes;
  const char* name;
  char* data;
};

struct Machine {
  Context scheduler;
  std::vector<Fiber> fibers;
  std::vector<unsigned> order;
  std::vector<char*> stacks;  // free ones
  const std::function<void()>* body = nullptr;
  unsigned running = 0;
  size_t left = 0, waiting = 0;
  char* shared = nullptr;  // dynamic, and kMargin bytes beyond it
  size_t shared_bytes = 0, shared_room = 0;
  std::vector<Variable> variables;
  std::string error;
};
Machine machine;

char* take_stack() {
  if (machine.stacks.empty()) {
    void* p =
        mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      std::fprintf(stderr, "CUDA emulation: no memory for a stack\n");
      std::abort();
    }
    mprotect(p, kGuard, PROT_NONE);
    return static_cast<char*>(p) + kGuard;
  }
  char* stack = machine.stacks.back();
  machine.stacks.pop_back();
  return stack;
}

void wait_for_turn() {
  Fiber& f = machine.fibers[machine.running];
  switch_to(f.context, machine.scheduler);
}

void enter() {
  (*machine.body)();
  Fiber& f = machine.fibers[machine.running];
  f.state = State::kDone;
  --machine.left;
  wait_for_turn();
  std::abort();
}

std::string describe(const Fiber& f) {
  char text[400];
  const auto &t = f.me.thread, &b = f.me.block;
  const char* file = f.site.file ? std::strrchr(f.site.file, '/') : nullptr;
  file = file ? file + 1 : f.site.file;
  if (f.state == State::kDone)
    std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u) has ended", t.x, t.y, t.z, b.x, b.y, b.z);
  else
    std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u) waits in %s at %s:%d", t.x, t.y, t.z, b.x,
                  b.y, b.z, f.state == State::kBarrier ? "__syncthreads" : f.site.what, file, f.site.line);
  return text;
}

/// Names two threads that do not wait for the same thing.
void report_divergence() {
  const Fiber& first = machine.fibers[0];
  for (const Fiber& f : machine.fibers)
    if (f.state != first.state || f.site.line != first.site.line || f.site.file != first.site.file) {
      machine.error = "divergent barrier: " + describe(first) + ", " + describe(f);
      return;
    }
  machine.error = "threads wait for each other: " + describe(first);
}

bool same_place(const Fiber& a, const Fiber& b) { return a.site.line == b.site.line && a.site.file == b.site.file; }

/// Lets all go on when all of the block wait at one barrier.
bool release_barrier() {
  for (const Fiber& f : machine.fibers)
    if (f.state != State::kBarrier || !same_place(f, machine.fibers[0])) return false;
  for (Fiber& f : machine.fibers) f.state = State::kReady;
  return true;
}

void run_block(bool reverse, std::minstd_rand* shuffle) {
  std::memset(machine.shared, kPoison, machine.shared_bytes + kMargin);
  machine.variables.clear();
  machine.left = machine.fibers.size();
  for (Fiber& f : machine.fibers) {
    f.state = State::kReady;
    f.stack = nullptr;
    f.site = {};
  }
  while (machine.left && machine.error.empty()) {
    if (shuffle)
      for (size_t i = machine.order.size(); i > 1; --i)
        std::swap(machine.order[i - 1], machine.order[(*shuffle)() % i]);
    bool ran = false;
    for (size_t k = 0; k < machine.order.size(); ++k) {
      const unsigned i = machine.order[reverse ? machine.order.size() - 1 - k : k];
      Fiber& f = machine.fibers[i];
      if (f.state != State::kReady) continue;
      ran = true;
      if (!f.stack) {
        f.stack = take_stack();
        prepare(f.context, f.stack, enter);
      }
      machine.running = i;
      current = &f.me;
      switch_to(machine.scheduler, f.context);
      if (f.state == State::kDone) {
        machine.stacks.push_back(f.stack);
        f.stack = nullptr;
      }
      if (!machine.error.empty()) break;
    }
    if (!ran && !release_barrier()) report_divergence();
  }
  current = nullptr;
  for (Fiber& f : machine.fibers)  // what an error left behind
    if (f.stack) machine.stacks.push_back(f.stack);
  for (const Variable& v : machine.variables)
    for (size_t i = 0; i < kMargin && machine.error.empty(); ++i)
      if (static_cast<unsigned char>(v.data[v.bytes + i]) != kPoison)
        machine.error = std::string("shared variable ") + v.name + " is written beyond its end";
  for (size_t i = machine.shared_bytes; i < machine.shared_bytes + kMargin && machine.error.empty(); ++i)
    if (static_cast<unsigned char>(machine.shared[i]) != kPoison)
      machine.error = "dynamic shared memory is written beyond its end";
}

}  // namespace

void block_barrier(const Site& site) {
  Fiber& f = machine.fibers[machine.running];
  f.state = State::kBarrier;
  f.site = site;
  wait_for_turn();
}

void meet(const Site& site, unsigned mask, void* mine, void (*body)(void* const* lanes, void* context), void* context) {
  Fiber& f = machine.fibers[machine.running];
  f.site = site;
  f.mask = mask;
  f.posted = mine;
  f.state = State::kWarp;
  const unsigned first = f.me.warp * kLanes;
  void* lanes[kLanes] = {};
  bool all = true;
  if (!(mask >> f.me.lane & 1)) machine.error = "a lane calls " + std::string(site.what) + " that its mask leaves out";
  for (unsigned i = 0; i < kLanes && first + i < machine.fibers.size(); ++i) {
    if (!(mask >> i & 1)) continue;
    const Fiber& other = machine.fibers[first + i];
    if (other.state != State::kWarp || other.mask != mask || !same_place(other, f)) all = false;
    lanes[i] = other.posted;
  }
  if (!all || !machine.error.empty()) {
    wait_for_turn();
    return;
  }
  body(lanes, context);
  for (unsigned i = 0; i < kLanes && first + i < machine.fibers.size(); ++i)
    if (mask >> i & 1) machine.fibers[first + i].state = State::kReady;
}

unsigned active_lanes() {
  const Fiber& f = machine.fibers[machine.running];
  return 1u << f.me.lane;  // what __activemask may return under independent scheduling
}

void* dynamic_shared() { return machine.shared; }

void* shared_variable(const void* key, size_t bytes, const char* name) {
  for (const Variable& v : machine.variables)
    if (v.key == key) return v.data;
  // the storage of one key stays the same from block to block
  static std::vector<std::pair<const void*, char*>> storage;
  char* data = nullptr;
  for (const auto& s : storage)
    if (s.first == key) data = s.second;
  if (!data) {
    data = static_cast<char*>(std::aligned_alloc(128, (bytes + kMargin + 127) / 128 * 128));
    storage.emplace_back(key, data);
  }
  std::memset(data, kPoison, bytes + kMargin);
  machine.variables.push_back({key, bytes, name, data});
  return data;
}

const char* run_grid(const Index& grid, const Index& block, size_t shared_bytes, const std::function<void()>& body) {
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const unsigned threads = block.x * block.y * block.z;
  const char* wish = std::getenv("MEDMPI_EMULATE_ORDER");
  const bool shuffled = wish && !std::strcmp(wish, "shuffle"), forward = wish && !std::strcmp(wish, "forward");
  std::minstd_rand random(20);

  machine.error.clear();
  machine.body = &body;
  machine.shared_bytes = shared_bytes;
  if (machine.shared_room < shared_bytes + kMargin) {
    std::free(machine.shared);
    machine.shared_room = (shared_bytes + kMargin + 1023) / 1024 * 1024;
    machine.shared = static_cast<char*>(std::aligned_alloc(1024, machine.shared_room));
  }
  machine.fibers.resize(threads);
  machine.order.resize(threads);
  std::iota(machine.order.begin(), machine.order.end(), 0u);
  for (unsigned i = 0; i < threads; ++i) {
    Thread& t = machine.fibers[i].me;
    t.thread = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    t.block_size = block;
    t.grid_size = grid;
    t.lane = i % kLanes;
    t.warp = i / kLanes;
  }
  uint64_t step = 1;
  if (shuffled)
    for (step = blocks / 3 * 2 + 1; std::gcd(step, blocks) != 1; ++step) {
    }
  for (uint64_t k = 0; k < blocks && machine.error.empty(); ++k) {
    const uint64_t b = forward ? k : shuffled ? k * step % blocks : blocks - 1 - k;
    for (Fiber& f : machine.fibers)
      f.me.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y)};
    run_block(!forward, shuffled ? &random : nullptr);
  }
  return machine.error.c_str();
}

}  // namespace medmpi::emulate
