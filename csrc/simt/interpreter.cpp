#include "interpreter.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "shared_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace vqdm::simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // reserved, not used, until touched

enum class State { kReady, kAtBlockBarrier, kAtWarpOperation, kDone };

struct Abandon {};  // unwinds the fibres of a kernel that has failed

// A stack and where on it execution stands. ucontext starts it; setjmp and longjmp switch, without its system calls.
struct Fibre {
  ucontext_t start{};
  jmp_buf resume{};
  void* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  bool started = false;
};

struct Thread {
  Fibre fibre;
  State state = State::kDone;
  Site site;
};

struct Warp {
  WarpOperands operands;
  int arrived = 0;
  Site site;
};

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

class Interpreter {
 public:
  void set_schedule(Schedule schedule, uint64_t seed) {
    schedule_ = schedule;
    random_.seed(seed);
  }

  void set_max_shared_bytes(int bytes) {
    if (bytes < 0 || bytes > kMaxSharedBytes) throw std::invalid_argument("max_shared_bytes: " + std::to_string(bytes));
    max_shared_bytes_ = bytes;
  }
  int max_shared_bytes() const { return max_shared_bytes_; }

  void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
    if (threads < kWarpSize || threads > kMaxThreads || threads % kWarpSize != 0) {
      throw std::runtime_error("simt: a block of " + std::to_string(threads) + " threads");
    }
    if (shared_bytes > max_shared_bytes_) throw std::runtime_error("simt: more shared memory than a block can have");
    body_ = &body;
    num_threads_ = threads;
    warps_.resize(threads / kWarpSize);
    while (int(threads_.size()) < threads) threads_.push_back(std::make_unique<Thread>());
    std::vector<int64_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    if (schedule_ == Schedule::kReverse) std::reverse(order.begin(), order.end());
    if (schedule_ == Schedule::kRandom) std::shuffle(order.begin(), order.end(), random_);
    for (int64_t block : order) {
      run_block({0, threads, block, blocks}, shared_bytes);
      if (!failure_.empty()) throw std::runtime_error(std::exchange(failure_, {}));
    }
  }

  const Place& place() const { return place_; }

  void block_barrier(const Site& site) {
    arrive(State::kAtBlockBarrier, site);
    if (++at_barrier_ < num_threads_) return wait();
    at_barrier_ = 0;
    for (int t = 0; t < num_threads_; ++t) {
      const Site& other = threads_[t]->site;
      if (!same(other, site)) {
        fail("divergent barrier: threads wait at " + describe(other) + " and at " + describe(site));
      }
      make_ready(t);
    }
    shared_block_barrier();
    wait();  // any of them may go first
  }

  void warp_barrier(const Site& site) { join_warp(nullptr, 0, nullptr, 0, nullptr, site); }

  void join_warp(const void* in, size_t in_bytes, void* out, size_t out_bytes, void (*combine)(WarpOperands&),
                 const Site& site) {
    const int w = place_.thread / kWarpSize, lane = place_.thread % kWarpSize;
    Warp& warp = warps_[w];
    if (warp.arrived > 0 && !same(warp.site, site)) {
      fail("divergent warp operation: lanes of one warp wait at " + describe(warp.site) + " and at " + describe(site));
    }
    warp.site = site;
    if (in_bytes > 0) std::memcpy(warp.operands.in[lane], in, in_bytes);
    arrive(State::kAtWarpOperation, site);
    if (++warp.arrived == kWarpSize) {
      warp.arrived = 0;
      if (combine != nullptr) {
        combine(warp.operands);
      } else {
        shared_warp_barrier(w);
      }
      for (int l = 0; l < kWarpSize; ++l) make_ready(w * kWarpSize + l);
    }
    wait();
    // The next operation of this warp cannot end, and so not overwrite `out`, before this lane has joined it.
    if (out_bytes > 0) std::memcpy(out, warp.operands.out[lane], out_bytes);
  }

  [[noreturn]] void fail(const std::string& what) {
    if (failure_.empty()) {
      failure_ =
          "simt: block " + std::to_string(place_.block) + ", thread " + std::to_string(place_.thread) + ": " + what;
    }
    throw Abandon{};
  }

 private:
  void run_block(Place place, int shared_bytes) {
    place_ = place;
    start_shared_memory(shared_bytes);
    for (Warp& warp : warps_) warp.arrived = 0;
    at_barrier_ = 0;
    for (int t = 0; t < num_threads_; ++t) make_ready(t);
    for (int next; (next = pick()) >= 0;) enter(next);
  }

  // The thread to run next, or -1 where all are done (or will never be: then failure_ says so).
  int pick() {
    if (failure_.empty()) {
      const int words = (num_threads_ + 63) / 64;
      const int start = schedule_ == Schedule::kRandom ? int(random_() % unsigned(words * 64)) : 0;
      for (int i = 0; i <= words; ++i) {  // the first word twice: all of it at the end
        const int at = schedule_ == Schedule::kReverse ? words - 1 - i : (start / 64 + i) % words;
        uint64_t ready = i == words && schedule_ != Schedule::kRandom ? 0 : ready_[at];
        if (i == 0) ready &= ~uint64_t(0) << start % 64;
        if (ready == 0) continue;
        return at * 64 + (schedule_ == Schedule::kReverse ? 63 - __builtin_clzll(ready) : __builtin_ctzll(ready));
      }
    }
    for (int t = 0; t < num_threads_; ++t) {
      const State state = threads_[t]->state;
      if (state == State::kDone) continue;
      if (failure_.empty()) {
        const char* what = state == State::kAtBlockBarrier ? "divergent barrier: " : "divergent warp operation: ";
        failure_ = "simt: block " + std::to_string(place_.block) + ", thread " + std::to_string(t) + ": " + what +
                   "it waits at " + describe(threads_[t]->site) + " for threads that have ended or wait elsewhere";
      }
      return t;  // to unwind
    }
    return -1;
  }

  void make_ready(int t) {
    threads_[t]->state = State::kReady;
    ready_[t / 64] |= uint64_t(1) << t % 64;
  }

  void leave_ready(int t, State state) {
    threads_[t]->state = state;
    ready_[t / 64] &= ~(uint64_t(1) << t % 64);
  }

  void arrive(State state, const Site& site) {
    leave_ready(place_.thread, state);
    threads_[place_.thread]->site = site;
  }

  // Gives way to another thread, and returns when this one's turn comes again.
  void wait() {
    const int self = place_.thread, next = pick();
    if (next != self) switch_to(&threads_[self]->fibre, next);
    place_.thread = self;
    if (!failure_.empty()) throw Abandon{};
  }

  void enter(int t) { switch_to(&host_, t); }

  void switch_to(Fibre* from, int t) {
    Fibre& to = threads_[t]->fibre;
    if (to.stack == nullptr) give_stack(to);
    place_.thread = t;
    if (_setjmp(from->resume) == 0) {
      before_switch(from, to.stack);
      if (to.started) _longjmp(to.resume, 1);
      begin(to);
    }
    after_switch(from);
  }

  static void give_stack(Fibre& fibre) {
    void* stack =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    fibre.stack = stack;
  }

  static void begin(Fibre& fibre) {
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = fibre.stack;
    fibre.start.uc_stack.ss_size = kStackBytes;
    fibre.start.uc_link = nullptr;
    fibre.started = true;
    makecontext(&fibre.start, &Interpreter::trampoline, 0);
    setcontext(&fibre.start);
  }

  static void trampoline();

  // A fibre outlives its thread: it goes on to be the thread of the same number in the next block.
  [[noreturn]] void fibre_main() {
    const int self = place_.thread;
    after_switch(&threads_[self]->fibre);
    for (;;) {
      try {
        if (failure_.empty()) (*body_)();
      } catch (const Abandon&) {
      } catch (const std::exception& error) {
        if (failure_.empty()) failure_ = error.what();
      }
      leave_ready(self, State::kDone);
      place_.thread = self;
      const int next = pick();
      if (next < 0) {
        leave(threads_[self]->fibre);
      } else {
        switch_to(&threads_[self]->fibre, next);
      }
      place_.thread = self;
    }
  }

  void leave(Fibre& from) {
    if (_setjmp(from.resume) == 0) {
      before_switch(&from, nullptr);
      _longjmp(host_.resume, 1);
    }
    after_switch(&from);
  }

#if defined(__SANITIZE_ADDRESS__)
  void before_switch(Fibre* from, const void* stack) {
    const bool to_host = stack == nullptr && from != &host_;
    __sanitizer_start_switch_fiber(&from->fake_stack, to_host ? host_bottom_ : stack,
                                   to_host ? host_size_ : kStackBytes);
  }
  void after_switch(Fibre* to) {
    const void* bottom = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(to->fake_stack, &bottom, &size);
    if (size != kStackBytes) host_bottom_ = bottom, host_size_ = size;  // came from the host
  }
  const void* host_bottom_ = nullptr;
  size_t host_size_ = 0;
#else
  void before_switch(Fibre*, const void*) {}
  void after_switch(Fibre*) {}
#endif

  Schedule schedule_ = Schedule::kForward;
  int max_shared_bytes_ = kMaxSharedBytes;
  std::mt19937_64 random_;
  const std::function<void()>* body_ = nullptr;
  int num_threads_ = 0;
  Place place_{};
  Fibre host_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  uint64_t ready_[kMaxThreads / 64] = {};  // one bit per thread
  int at_barrier_ = 0;
  std::string failure_;
};

Interpreter& interpreter() {
  static Interpreter one;
  return one;
}

void Interpreter::trampoline() {
  interpreter().fibre_main();
}

}  // namespace

void set_schedule(Schedule schedule, uint64_t seed) {
  interpreter().set_schedule(schedule, seed);
}

void set_max_shared_bytes(int bytes) {
  interpreter().set_max_shared_bytes(bytes);
}

int max_shared_bytes() {
  return interpreter().max_shared_bytes();
}

void run(int64_t blocks, int threads, int shared_bytes, const std::function<void()>& body) {
  interpreter().run(blocks, threads, shared_bytes, body);
}

const Place& place() {
  return interpreter().place();
}

void block_barrier(const Site& site) {
  interpreter().block_barrier(site);
}

void warp_barrier(const Site& site) {
  interpreter().warp_barrier(site);
}

void warp_collective(const void* in, size_t in_bytes, void* out, size_t out_bytes, void (*combine)(WarpOperands&),
                     const Site& site) {
  interpreter().join_warp(in, in_bytes, out, out_bytes, combine, site);
}

void fail(const std::string& what) {
  interpreter().fail(what);
}

std::string describe(const Site& site) {
  const std::string path = site.file_name();
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line());
}

}  // namespace vqdm::simt
