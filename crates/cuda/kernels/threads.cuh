// What the threads of a block do together, and how they share long work.

#pragma once

#include "numbers.cuh"

constexpr int ROW_THREADS = 256;

struct Plus {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};

// NaN is kept.
struct Larger {
    __device__ __forceinline__ float operator()(float a, float b) const { return b > a || b != b ? b : a; }
};

// Joins a number of each lane of a warp, in an order that is always the same; all lanes get the result.
template <class Join> __device__ __forceinline__ float join_warp(float value, Join join) {
    UNROLL
    for (int mask = 16; mask > 0; mask /= 2) value = join(value, __shfl_xor_sync(0xffffffff, value, mask));
    return value;
}

// The same for a block of ROW_THREADS.
template <class Join> __device__ __forceinline__ float join_block(float value, Join join) {
    __shared__ float warps[ROW_THREADS / 32];
    value = join_warp(value, join);
    // Nobody may still read what the call before left.
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
    __syncthreads();
    value = warps[0];
    UNROLL
    for (int i = 1; i < ROW_THREADS / 32; i++) value = join(value, warps[i]);
    return value;
}

// Calls `f(first, count)` for the fours of a row that are this thread's; the last may have fewer.
template <class F> __device__ __forceinline__ void each_four(int cols, F f) {
    for (int at = threadIdx.x * 4; at < cols; at += ROW_THREADS * 4) f(at, least(4, cols - at));
}

// Up to four numbers. `wide` promises that whole fours lie at multiples of sixteen bytes.
__device__ __forceinline__ void load_four(float (&to)[4], const float *from, int count, bool wide) {
    if (wide && count == 4) {
        float4 four = *(const float4 *)from;
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        return;
    }
    UNROLL
    for (int i = 0; i < 4; i++) to[i] = i < count ? from[i] : 0;
}

__device__ __forceinline__ void store_four(float *to, const float (&from)[4], int count, bool wide) {
    if (wide && count == 4) {
        float4 four;
        four.x = from[0], four.y = from[1], four.z = from[2], four.w = from[3];
        *(float4 *)to = four;
        return;
    }
    UNROLL
    for (int i = 0; i < 4; i++)
        if (i < count) to[i] = from[i];
}

// Whether rows that are `stride` numbers apart begin at multiples of sixteen bytes.
__device__ __forceinline__ bool is_wide(const void *first, Wide stride) {
    return ((size_t)first & 15) == 0 && (stride & 3) == 0;
}

// Calls `f(i)` for the numbers below `count` that are this thread's, of all blocks'.
template <class F> __device__ __forceinline__ void each(Wide count, F f) {
    for (Wide i = blockIdx.x * (Wide)blockDim.x + threadIdx.x; i < count; i += (Wide)gridDim.x * blockDim.x) f(i);
}

struct Split {
    Wide whole, rest;
};

// Quotient and remainder, which take much longer for numbers of 64 bits.
__device__ __forceinline__ Split split(Wide a, Wide b) {
    if (((a | b) >> 32) == 0) {
        unsigned x = (unsigned)a, y = (unsigned)b;
        return {(Wide)(x / y), (Wide)(x % y)};
    }
    return {a / b, a % b};
}
