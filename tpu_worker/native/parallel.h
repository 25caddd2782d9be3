// Work shared with the thread pool that XLA already has.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "call.h"

namespace twodeep {

[[gnu::always_inline]] inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Runs body(0) … body(tasks - 1) on the caller and on up to `threads` - 1 threads of the pool, and returns when all have run.
// Tasks are claimed one by one and in order, so that a helper that wakes late costs nothing: it finds no task left.
template <class Body>
void parallel_for(const Pool& pool, int tasks, int threads, const Body& body) {
  threads = std::min({threads, tasks, pool.num_threads()});
  if (threads <= 1) {
    for (int i = 0; i < tasks; ++i) body(i);
    return;
  }
  struct State {
    alignas(64) std::atomic<int> next{0};
    alignas(64) std::atomic<int> done{0};
  };
  // Shared, because a helper may wake after this call has returned. It then touches the counters only, never the body.
  auto state = std::make_shared<State>();
  auto work = [state, tasks, &body] {
    for (int i; (i = state->next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      body(i);
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
