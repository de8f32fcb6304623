// Compiled with AVX-512 F/VL/DQ/BW; called only where cpu_features() finds them.

#include "pair_scan_loops.h"

namespace vqdm::cpu {

const PairScan<float> kPairScanAvx512_32 = make_pair_scan<float, 64, 4>();
const PairScan<double> kPairScanAvx512_64 = make_pair_scan<double, 64, 4>();

}  // namespace vqdm::cpu
