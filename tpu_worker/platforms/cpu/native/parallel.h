// Work shared with the thread pool that XLA already has.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "call.h"

namespace twodeep {

[[gnu::always_inline]] inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Tasks [begin, end) that are still to be claimed: the thread at home here takes the first one, others the last.
class Range {
 public:
  void set(int begin, int end) { both_.store(pack(begin, end), std::memory_order_relaxed); }
  bool move_in() { return !taken_.exchange(true, std::memory_order_relaxed); }

  // A task, or -1 if none is left.
  int claim(bool at_home) {
    uint64_t both = both_.load(std::memory_order_relaxed);
    for (;;) {
      const int begin = static_cast<int>(both >> 32), end = static_cast<int>(both & 0xffffffffu);
      if (begin >= end) return -1;
      const uint64_t rest = at_home ? pack(begin + 1, end) : pack(begin, end - 1);
      if (both_.compare_exchange_weak(both, rest, std::memory_order_relaxed)) return at_home ? begin : end - 1;
    }
  }

 private:
  static uint64_t pack(int begin, int end) { return static_cast<uint64_t>(begin) << 32 | static_cast<uint32_t>(end); }
  alignas(64) std::atomic<uint64_t> both_{0};
  std::atomic<bool> taken_{false};
};

// Runs body(0) … body(tasks - 1) on the caller and on up to `threads` - 1 threads of the pool, and returns when all have run.
//
// The tasks are cut into as many ranges as there are threads. A thread works through the range of the core it runs on, so that what
// one call wrote there is in that core's caches in the next; then it helps in the others. A helper that wakes late costs nothing.
template <class Body>
void parallel_for(const Pool& pool, int tasks, int threads, const Body& body) {
  threads = std::min({threads, tasks, pool.num_threads()});
  if (threads <= 1) {
    for (int i = 0; i < tasks; ++i) body(i);
    return;
  }
  struct State {
    explicit State(int threads) : ranges(threads) {}
    std::vector<Range> ranges;
    alignas(64) std::atomic<int> done{0};
  };
  // Shared, because a helper may wake after this call has returned. It then touches the counters only, never the body.
  auto state = std::make_shared<State>(threads);
  const auto share = [&](int i) { return static_cast<int>(static_cast<int64_t>(tasks) * i / threads); };
  for (int i = 0; i < threads; ++i) state->ranges[i].set(share(i), share(i + 1));
  auto work = [state, threads, &body] {
    int home = std::max(0, sched_getcpu()) % threads;
    for (int i = 0; i < threads && !state->ranges[home].move_in(); ++i) home = (home + 1) % threads;
    for (int i = 0; i < threads; ++i)
      for (int task; (task = state->ranges[(home + i) % threads].claim(i == 0)) >= 0;) {
        body(task);
        state->done.fetch_add(1, std::memory_order_release);
      }
  };
  for (int i = 1; i < threads; ++i) pool.schedule(work);
  work();
  // What is left are tasks that helpers are in the middle of: shorter than a sleep, unless the system took their core away.
  for (int spins = 0; state->done.load(std::memory_order_acquire) < tasks; ++spins) {
    if (spins < 2000) {
      pause();
    } else {
      sched_yield();
    }
  }
}

// A thread's scratch memory, aligned to cache lines, kept between calls and grown on demand. One user at a time per thread and use.
template <int kUse = 0>
float* scratch(size_t floats) {
  struct Buffer {
    float* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffer;
  if (buffer.size < floats) {
    std::free(buffer.data);
    buffer.size = (floats + 1023) / 1024 * 1024;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, buffer.size * sizeof(float)));
    if (buffer.data == nullptr) throw std::bad_alloc();
  }
  return buffer.data;
}

}  // namespace twodeep
