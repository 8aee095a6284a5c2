// Numbers as checkpoints store them, and functions of one variable.

#pragma once

#include "device.cuh"

typedef long long Wide;

// The same numbers as in src/ops/launch.rs.
enum Stored { STORED_F32, STORED_F16, STORED_BF16, STORED_E4M3, STORED_E5M2, STORED_I8 };
enum Per { PER_NOTHING, PER_MATRIX, PER_ROW, PER_BLOCK };
enum Activation { ACT_NONE, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU };

// Numbers of a row that share a scale.
constexpr int BLOCK = 32;

__device__ __forceinline__ int least(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ Wide least(Wide a, Wide b) { return a < b ? a : b; }
__device__ __forceinline__ int up(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ int stored_bytes(int stored) {
    return stored == STORED_F32 ? 4 : stored == STORED_F16 || stored == STORED_BF16 ? 2 : 1;
}

__device__ __forceinline__ float e4m3_float(unsigned bits) {
    // Exponent and fraction take the places of an f32's lowest; its exponent begins 120 later. Subnormals come out right.
    float value = bits_float((bits & 0x7f) << 20) * bits_float((127 + 120) << 23);
    value = (bits & 0x7f) == 0x7f ? bits_float(0x7fc00000) : value;
    return bits & 0x80 ? -value : value;
}

// Number `at` of those that lie in `words`, one behind the other.
template <int WORDS>
__device__ __forceinline__ float widen_word(const unsigned (&words)[WORDS], int stored, int at) {
    switch (stored) {
    case STORED_F32: return bits_float(words[at]);
    case STORED_F16: return f16_float(words[at / 2] >> (at % 2 * 16) & 0xffff);
    case STORED_BF16: return bits_float((words[at / 2] >> (at % 2 * 16)) << 16);
    case STORED_E4M3: return e4m3_float(words[at / 4] >> (at % 4 * 8) & 0xff);
    case STORED_E5M2: return f16_float((words[at / 4] >> (at % 4 * 8) & 0xff) << 8);
    default: return (float)(signed char)(words[at / 4] >> (at % 4 * 8) & 0xff);
    }
}

// `COUNT` numbers that lie in `words`. The kind is looked at once.
template <int COUNT>
__device__ __forceinline__ void widen_words(float (&to)[COUNT], const unsigned (&words)[COUNT], int stored) {
#define WIDEN_AS(kind)                                                      \
    case kind:                                                              \
        UNROLL                                                              \
        for (int i = 0; i < COUNT; i++) to[i] = widen_word(words, kind, i); \
        break;
    switch (stored) {
        WIDEN_AS(STORED_F32)
        WIDEN_AS(STORED_F16)
        WIDEN_AS(STORED_BF16)
        WIDEN_AS(STORED_E4M3)
        WIDEN_AS(STORED_E5M2)
        WIDEN_AS(STORED_I8)
    }
#undef WIDEN_AS
}

// One number anywhere in memory, of any alignment.
__device__ __forceinline__ float widen_at(const unsigned char *data, int stored, Wide at) {
    int bytes = stored_bytes(stored);
    const unsigned char *from = data + at * bytes;
    unsigned words[1] = {0};
    for (int i = 0; i < 4; i++) {
        if (i < bytes) words[0] |= (unsigned)from[i] << (8 * i);
    }
    return widen_word(words, stored, 0);
}

// Bytes of `COUNT` numbers into words, zeros instead of what is not among the first `left`. `wide` promises that whole ones
// lie at multiples of their size (and of 16 at most).
template <int COUNT>
__device__ __forceinline__ void load_words(unsigned (&to)[COUNT], const unsigned char *from, int bytes, int left,
                                           bool wide) {
    UNROLL
    for (int i = 0; i < COUNT; i++) to[i] = 0;
    if (wide && left >= COUNT) {
        if (bytes == 4) {
            UNROLL
            for (int i = 0; i < COUNT; i += 4) {
                uint4 four = *(const uint4 *)(from + i * 4);
                to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
            }
        } else if (bytes * COUNT == 16) {
            uint4 four = *(const uint4 *)from;
            to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
        } else if (bytes * COUNT == 8) {
            uint2 two = *(const uint2 *)from;
            to[0] = two.x, to[1] = two.y;
        } else {
            to[0] = *(const unsigned *)from;
        }
        return;
    }
    int count = least(left, COUNT) * bytes;
    UNROLL
    for (int i = 0; i < COUNT * 4; i++) {
        if (i < count) to[i / 4] |= (unsigned)from[i] << (i % 4 * 8);
    }
}

// `x / (1 + e^-argument)`.
__device__ __forceinline__ float gated(float x, float argument) { return x / (1.0f + expf(-argument)); }

__device__ __forceinline__ float activate(int act, float x) {
    switch (act) {
    case ACT_SILU: return gated(x, x);
    case ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case ACT_GELU_TANH: return gated(x, 1.595769f * x * (1.0f + 0.044715f * x * x));
    case ACT_QUICK_GELU: return gated(x, 1.702f * x);
    default: return x;
    }
}

// The same within 1e-6 relatively, for what is rounded next.
__device__ __forceinline__ float activate_fast(int act, float x) {
    if (act == ACT_SILU) return x * fast_reciprocal(1.0f + fast_exp2(-1.44269504f * x));
    return activate(act, x);
}

// Numbers a matrix' stored ones are multiplied by, and the rest of what is known of it. `kind` is packed by src/ops/launch.rs.
struct Weight {
    const unsigned char *data;
    const unsigned char *scales;
    int kind;

    __device__ __forceinline__ int stored() const { return kind & 15; }
    __device__ __forceinline__ int scale_stored() const { return kind >> 4 & 15; }
    __device__ __forceinline__ int per() const { return kind >> 8 & 15; }
    // Whether rows begin at multiples of sixteen bytes.
    __device__ __forceinline__ bool wide() const { return kind >> 12 & 1; }

    // The scale of column `k` of row `n`, of rows of `cols`.
    __device__ __forceinline__ float scale(Wide n, Wide k, Wide cols) const {
        Wide at = per() == PER_ROW ? n : per() == PER_BLOCK ? n * (cols / BLOCK) + k / BLOCK : 0;
        return per() == PER_NOTHING ? 1.0f : widen_at(scales, scale_stored(), at);
    }

    __device__ __forceinline__ float at(Wide n, Wide k, Wide cols) const {
        return widen_at(data, stored(), n * cols + k) * scale(n, k, cols);
    }
};
