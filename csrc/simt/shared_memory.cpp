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
  uint64_t copied_in_block = 0;  // an asynchronous copy is under way
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

std::string place_of(size_t word) {
  return "byte " + std::to_string(word * kWordBytes);
}

void check_no_copy_under_way(size_t w, const Site& site) {
  if (shared().words[w].copied_in_block == shared().block) {
    fail("shared memory: " + place_of(w) + " is touched while a copy to it is under way, at " + describe(site));
  }
}

// That nothing unordered has touched the word, which is now overwritten.
void check_write(size_t w, const Moment& moment, const Site& site) {
  const Word& word = shared().words[w];
  for (const Moment& other : {word.write, word.read}) {
    if (unordered(other, moment)) {
      fail("shared memory: a race: " + place_of(w) + " was touched by " + name(other) +
           " and is written with no barrier between, at " + describe(site));
    }
  }
}

// Remembers a reader along with those that nothing has ordered before it.
void add_reader(Moment& read, const Moment& moment) {
  if (read.interval != moment.interval) {
    read = moment;
  } else if (read.warp != moment.warp) {
    read.thread = read.warp = kSeveral;
  } else if (read.warp_interval != moment.warp_interval) {
    read = moment;
  } else if (read.thread != moment.thread) {
    read.thread = kSeveral;
  }
}

}  // namespace

void read_shared(int64_t offset, void* value, size_t bytes, const Site& site) {
  check(offset, bytes, site);
  SharedMemory& memory = shared();
  const Moment moment = now();
  for (size_t w = offset / kWordBytes; w < (offset + bytes) / kWordBytes; ++w) {
    Word& word = memory.words[w];
    check_no_copy_under_way(w, site);
    if (word.written_in_block != memory.block) {
      fail("shared memory: " + place_of(w) + " is read before it is written, at " + describe(site));
    }
    if (unordered(word.write, moment)) {
      fail("shared memory: a race: " + place_of(w) + " was written by " + name(word.write) +
           " and is read with no barrier between, at " + describe(site));
    }
    add_reader(word.read, moment);
  }
  std::memcpy(value, memory.bytes + offset, bytes);
}

void write_shared(int64_t offset, const void* value, size_t bytes, const Site& site) {
  check(offset, bytes, site);
  SharedMemory& memory = shared();
  const Moment moment = now();
  for (size_t w = offset / kWordBytes; w < (offset + bytes) / kWordBytes; ++w) {
    check_no_copy_under_way(w, site);
    check_write(w, moment, site);
    memory.words[w].written_in_block = memory.block;
    memory.words[w].write = moment;
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
  for (size_t w = offset / kWordBytes; w < (offset + bytes) / kWordBytes; ++w) {
    check_no_copy_under_way(w, site);
    check_write(w, now(), site);
    shared().words[w].copied_in_block = shared().block;
  }
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
    for (const QueuedCopy& copy : groups.front()) {
      for (size_t w = copy.offset / kWordBytes; w < (copy.offset + copy.bytes) / kWordBytes; ++w) {
        shared().words[w].copied_in_block = 0;
      }
      write_shared(copy.offset, copy.from, copy.bytes, site);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace vqdm::simt
