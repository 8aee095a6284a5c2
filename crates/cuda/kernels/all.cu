// All kernels, as one module.

#include "attention.cu"
#include "conv.cu"
#include "elementwise.cu"
#include "linear.cu"
#include "map.cu"
#include "norm.cu"
