// Any processor: the compiler lowers the vectors to SSE2, NEON or scalar code.

#include "pair_scan_loops.h"

namespace vqdm::cpu {

const PairScan<float> kPairScanPortable32 = make_pair_scan<float, 16, 2>();
const PairScan<double> kPairScanPortable64 = make_pair_scan<double, 16, 2>();

}  // namespace vqdm::cpu
