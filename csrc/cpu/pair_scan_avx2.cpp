// Compiled with AVX2 and FMA; called only where cpu_features() finds them.

#include "pair_scan_loops.h"

namespace vqdm::cpu {

const PairScan<float> kPairScanAvx2_32 = make_pair_scan<float, 32, 2>();
const PairScan<double> kPairScanAvx2_64 = make_pair_scan<double, 32, 2>();

}  // namespace vqdm::cpu
