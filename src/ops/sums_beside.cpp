// The scope that leaves sums to the side stream.
#include "src/ops/graph.h"

namespace dmamba::ops {
namespace {

thread_local SideStream* current_side = nullptr;

}  // namespace

SumsBeside::SumsBeside(SideStream* side) : outer_(current_side) { current_side = side; }
SumsBeside::~SumsBeside() { current_side = outer_; }
SideStream* SumsBeside::current() { return current_side; }

}  // namespace dmamba::ops
