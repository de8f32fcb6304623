// Code sums: for every code, the sum and the number of the rows assigned to it.
//
//   sums[k]   = sum_{i : indices_i = k} z_i        counts[k] = #{i : indices_i = k}
//
// The order of the additions is part of the definition. The rows of a code, in the order of the rows, are cut into
// chunks of kChunkRows. Each chunk is summed from left to right in float64, starting from 0; the sums of the chunks are
// added from left to right in float64; the total is rounded once to the output type. So the bits depend on the code's
// own rows alone, not on the number of threads, and a code with many rows can still be summed by many threads.
// A code without rows has 0.
//
// Method: a stable counting sort of the row numbers by code, then each thread sums codes of its own. Beside the outputs
// it takes 8 bytes per row, 24 per code, and for the codes of many rows d numbers per chunk.

#pragma once

#include <cstdint>
#include <vector>

#include "matrix.h"
#include "parallel_for.h"

namespace vqdm::cpu {

constexpr int kChunkRows = 256;

struct CodeSumsParams {
  std::vector<Matrix> z;                // of each head, [N, d]
  std::vector<const int64_t*> indices;  // of each head, [N]
  int64_t index_stride = 1;
  int64_t N = 0;
  int64_t K = 0;  // at least 1
  int d = 0;
  int threads = 1;  // how many to cut the sort for; any number gives the same result
};

// sums [heads, K, d] and counts [heads, K], both dense and wholly written. Out is float or double.
// Throws std::invalid_argument, before anything is written, where an index lies outside [0, K).
template <typename Out>
void code_sums(const CodeSumsParams& params, Out* sums, int64_t* counts, const ParallelFor& parallel_for);

}  // namespace vqdm::cpu
