// Whether costs in float are good enough, or must be in double though the data are float.
//
// A cost c has a relative error of about 2^-24, so scale c an error of scale c 2^-24, for which pair_logsumexp answers:
// up to scale c = 512 for typical pairs, 3e-5. Codes far from all features, a small eps, and high dimensions lead
// beyond; and so does a large eps, which multiplies the error 2^-23 of an exponential, where all scale c are small. Nor
// may squares overflow, or be so small that they underflow.

#pragma once

#include "pair_costs.h"

namespace vqdm::cpu {

// Whether squares neither overflow nor underflow, which is all that pair_argmin asks.
bool float_holds(const PairProblem& problem);
bool float_suffices(const PairProblem& problem, double scale, bool squared);

}  // namespace vqdm::cpu
