#include "code_table.h"

#include <algorithm>
#include <cstring>

namespace vqdm::cpu {

void CodeTable::find_duplicates() {
  struct Key {
    uint64_t hash;
    int64_t k;
  };
  std::vector<Key> keys;
  keys.reserve(K);
  std::vector<double> code(d + 1), other(d + 1);
  const auto load = [&](int64_t k, std::vector<double>& out) {
    e.load(k, d, out.data());
    out[d] = bias_of(k);
  };
  for (int64_t k = 0; k < K; ++k) {
    if (excluded(k)) continue;
    load(k, code);
    uint64_t hash = 0x9e3779b97f4a7c15u;
    for (double value : code) {
      value += 0.0;  // -0.0 and 0.0 are the same number
      uint64_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      hash = (hash ^ bits) * 0xff51afd7ed558ccdu;
      hash ^= hash >> 32;
    }
    keys.push_back({hash, k});
  }
  std::sort(keys.begin(), keys.end(), [](Key a, Key b) { return a.hash != b.hash ? a.hash < b.hash : a.k < b.k; });
  // Equal codes with equal bias stand beside each other, lowest index first.
  for (size_t i = 1; i < keys.size(); ++i) {
    if (keys[i].hash != keys[i - 1].hash) continue;
    load(keys[i].k, code);
    load(keys[i - 1].k, other);
    if (code == other) exclude(keys[i].k);
  }
}

}  // namespace vqdm::cpu
