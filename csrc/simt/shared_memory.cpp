#include "shared_memory.h"

#include <cstring>
#include <string>
#include <vector>

namespace vqdm::simt {
namespace {

constexpr int kWordBytes = 4;
constexpr int kNobody = -1, kSeveral = -2;

// When a thread touched a word. `interval` counts block barriers over all blocks, so those of earlier blocks never
// match; `warp_interval` counts barriers of the thread's warp.
struct Moment {
  uint64_t interval = 0, warp_interval = 0;
  int thread = kNobody, warp = kNobody;
};
struct Word {
  uint64_t written_in_block = 0;
  Moment write, read;
};

struct QueuedCopy {
  int64_t offset;
  const void* from;
  size_t bytes;
};
struct CopyQueue {
  std::vector<QueuedCopy> open;
  std::vector<std::vector<QueuedCopy>> groups;
};

struct SharedMemory {
  alignas(16) unsigned char bytes[kMaxSharedBytes];
  std::vector<Word> words = std::vector<Word>(kMaxSharedBytes / kWordBytes);
  int size = 0;
  uint64_t block = 0, interval = 0;
  uint64_t warp_interval[kMaxThreads / kWarpSize] = {};
  std::vector<CopyQueue> copies = std::vector<CopyQueue>(kMaxThreads);
};

SharedMemory& shared() {
  static SharedMemory one;
  return one;
}

Moment now() {
  const int thread = place().thread, warp = thread / kWarpSize;
  return {shared().interval, shared().warp_interval[warp], thread, warp};
}

// Whether nothing orders the two: no barrier of the block since, nor one of a warp that holds them both.
bool unordered(const Moment& before, const Moment& after) {
  if (before.interval != after.interval || before.thread == after.thread) return false;
  return before.warp != after.warp || before.warp_interval == after.warp_interval;
}

std::string name(const Moment& moment) {
  return moment.thread == kSeveral ? "several threads" : "thread " + std::to_string(moment.thread);
}

void check(int64_t offset, size_t bytes, const Site& site) {
  if (offset < 0 || offset + int64_t(bytes) > shared().size || offset % kWordBytes != 0) {
    fail("shared memory: an access at byte " + std::to_string(offset) + " of " + std::to_string(shared().size) +
         ", at " + describe(site));
  }
}

}  // namespace

void read_shared(int64_t offset, void* value, size_t bytes, const Site& site) {
  check(offset, bytes, site);
  SharedMemory& memory = shared();
  const Moment moment = now();
  for (size_t w = offset / kWordBytes; w < (offset + bytes) / kWordBytes; ++w) {
    Word& word = memory.words[w];
    if (word.written_in_block != memory.block) {
      fail("shared memory: byte " + std::to_string(w * kWordBytes) + " is read before it is written, at " +
           describe(site));
    }
    if (unordered(word.write, moment)) {
      fail("shared memory: a race: byte " + std::to_string(w * kWordBytes) + " was written by " + name(word.write) +
           " and is read with no barrier between, at " + describe(site));
    }
    Moment& read = word.read;
    if (!unordered(read, moment)) {
      if (read.interval != moment.interval || read.thread != kSeveral) read = moment;
    } else {
      read.thread = kSeveral;
      if (read.warp != moment.warp) read.warp = kSeveral;
    }
  }
  std::memcpy(value, memory.bytes + offset, bytes);
}

void write_shared(int64_t offset, const void* value, size_t bytes, const Site& site) {
  check(offset, bytes, site);
  SharedMemory& memory = shared();
  const Moment moment = now();
  for (size_t w = offset / kWordBytes; w < (offset + bytes) / kWordBytes; ++w) {
    Word& word = memory.words[w];
    for (const Moment& other : {word.write, word.read}) {
      if (unordered(other, moment)) {
        fail("shared memory: a race: byte " + std::to_string(w * kWordBytes) + " was touched by " + name(other) +
             " and is written with no barrier between, at " + describe(site));
      }
    }
    word.written_in_block = memory.block;
    word.write = moment;
  }
  std::memcpy(memory.bytes + offset, value, bytes);
}

void check_shared_size(int64_t bytes, const Site& site) {
  if (bytes > shared().size) {
    fail("shared memory: " + std::to_string(bytes) + " bytes are taken of the " + std::to_string(shared().size) +
         " that the launch gave, at " + describe(site));
  }
}

void start_shared_memory(int shared_bytes) {
  SharedMemory& memory = shared();
  memory.size = shared_bytes;
  ++memory.block;
  ++memory.interval;
  std::memset(memory.bytes, 0xa5, size_t(shared_bytes));
  for (CopyQueue& queue : memory.copies) queue = {};
}

void shared_block_barrier() {
  ++shared().interval;
}

void shared_warp_barrier(int warp) {
  ++shared().warp_interval[warp];
}

void queue_copy(int64_t offset, const void* from, size_t bytes, const Site& site) {
  check(offset, bytes, site);
  shared().copies[place().thread].open.push_back({offset, from, bytes});
}

void commit_queued_copies() {
  CopyQueue& queue = shared().copies[place().thread];
  queue.groups.push_back(std::move(queue.open));
  queue.open.clear();
}

void land_copies(size_t groups_left, const Site& site) {
  auto& groups = shared().copies[place().thread].groups;
  while (groups.size() > groups_left) {
    for (const QueuedCopy& copy : groups.front()) write_shared(copy.offset, copy.from, copy.bytes, site);
    groups.erase(groups.begin());
  }
}

}  // namespace vqdm::simt
