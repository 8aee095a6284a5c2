// Linear layers: rows of f32 times matrices as they are stored, finished on the way out.

#include "tile.cuh"

// The same numbers as in src/ops/linear.rs.
enum Finish { FINISH_LINEAR, FINISH_ADD, FINISH_SWIGLU, FINISH_GEGLU };

// What becomes of sums, and where they go.
struct Results {
    float *out;
    Wide stride;
    int rows, outputs;
    int finish, act;
    const float *bias, *second_bias;
    float scale;

    __device__ __forceinline__ float one(float sum, int column, const float *to) const {
        if (finish == FINISH_ADD) sum = fmaf(sum, scale, *to);
        else if (bias) sum += bias[column];
        return activate(act, sum);
    }

    __device__ __forceinline__ float both(float first, float second, int column) const {
        if (finish == FINISH_SWIGLU) return activate(ACT_SILU, first) * second;
        return (first + bias[column]) * activate(ACT_GELU, second + second_bias[column]);
    }
};

// Sixteen rows of a warp's sums, as `hand_on` gives them.
template <int N, bool DUAL>
__device__ __forceinline__ void store_rows(const Results &results, int output, int row, const float *from) {
    const int lane = threadIdx.x % 32;
    if (DUAL) {
        // The sums of both matrices lie side by side.
        const int column = output + Share<N>::across() * 16 + lane % 16;
    NO_UNROLL
        for (int i = lane / 16; i < 16; i += 2) {
            const float *sums = from + i * OUT_PITCH + lane % 16;
            if (row + i < results.rows && column < results.outputs) {
                results.out[(row + i) * results.stride + column] = results.both(sums[0], sums[16], column);
            }
        }
        return;
    }
    const int column = output + Share<N>::across() * 32 + lane;
    NO_UNROLL
    for (int i = 0; i < 16; i++) {
        if (row + i < results.rows && column < results.outputs) {
            float *to = results.out + (row + i) * results.stride + column;
            *to = results.one(from[i * OUT_PITCH + lane], column, to);
        }
    }
}

// Which rows of B come how, by the number of results that a tile has across.
template <class E, int N, bool DUAL, template <class, int, bool> class B>
__device__ __forceinline__ void linear(const float *x, Wide x_stride, int x_wide, int rows, int cols, int outputs,
                                       Weight first, Weight second, Results results) {
    constexpr int ACROSS = DUAL ? N / 2 : N;
    Place place = place_of_block(up(rows, TILE_ROWS), up(outputs, ACROSS));
    int row = (int)place.row_tile * TILE_ROWS;
    RowsOfA<E> a;
    a.x = x + row * x_stride, a.stride = x_stride, a.rows = rows - row, a.cols = cols, a.wide = x_wide;
    B<E, N, DUAL> b;
    b.first = first, b.second = second, b.output = place.column_tile * ACROSS, b.outputs = outputs, b.cols = cols;
    __shared__ __align__(16) unsigned char shared[TILE_BYTES<N>];
    Sums<N> sums;
    multiply_tile<E, N, DUAL>(a, b, cols, shared, sums);
    results.out += row * results.stride;
    results.rows = rows - row;
    hand_on<N>(shared, sums, [&](int row, const float *from) { store_rows<N, DUAL>(results, b.output, row, from); });
}

#define LINEAR(name, E, N, DUAL, B)                                                                                     \
    KERNEL(TILE_THREADS, name, const float *x, Wide x_stride, int x_wide, int rows, int cols, int outputs,              \
           const unsigned char *first, const unsigned char *first_scales, int first_kind, const unsigned char *second,  \
           const unsigned char *second_scales, int second_kind, int finish, int act, const float *bias,                 \
           const float *second_bias, float scale, float *out, Wide out_stride) {                                        \
        linear<E, N, DUAL, B>(x, x_stride, x_wide, rows, cols, outputs, {first, first_scales, first_kind},              \
                              {second, second_scales, second_kind},                                                     \
                              {out, out_stride, rows, outputs, finish, act, bias, second_bias, scale});                 \
    }

// Wide and narrow tiles, of one matrix and of two; `type` is as src/ops/linear.rs names it.
#define LINEARS(type, E, B)                                  \
    LINEAR(linear_##type, E, 128, false, B)                  \
    LINEAR(linear_##type##_narrow, E, 64, false, B)          \
    LINEAR(linear_##type##_dual, E, 128, true, B)            \
    LINEAR(linear_##type##_dual_narrow, E, 64, true, B)

LINEARS(bf16_copied, Bf16, Copied)
LINEARS(bf16_widened, Bf16, Widened)
LINEARS(f16_copied, F16, Copied)
LINEARS(f16_widened, F16, Widened)
LINEARS(tf32_widened, Tf32, Widened)
LINEARS(f32_widened, Full, Widened)

// Rows of f32 as rows of the type of a product that lie one behind the other: what cuBLASLt multiplies. They are whole pairs.
template <class E>
__device__ __forceinline__ void round_rows(const float *x, Wide stride, int cols, Wide pairs, unsigned *out) {
    for (Wide i = blockIdx.x * (Wide)blockDim.x + threadIdx.x; i < pairs; i += (Wide)gridDim.x * blockDim.x) {
        Wide row = i / (cols / 2), at = i % (cols / 2) * 2;
        const float *from = x + row * stride + at;
        if constexpr (E::BYTES == 2) {
            out[i] = E::pack(from[0], from[1]);
        } else {
            uint2 two;
            two.x = E::word(from[0]), two.y = E::word(from[1]);
            ((uint2 *)out)[i] = two;
        }
    }
}

#define ROUND_ROWS(name, E)                                                                    \
    KERNEL(256, name, const float *x, Wide stride, int cols, Wide pairs, unsigned *out) {      \
        round_rows<E>(x, stride, cols, pairs, out);                                            \
    }

ROUND_ROWS(round_rows_bf16, Bf16)
ROUND_ROWS(round_rows_f16, F16)
ROUND_ROWS(round_rows_tf32, Tf32)

// What the products above do with sums, where cuBLASLt has left them in `out` (and in `second`, rows without gaps).
KERNEL(256, finish_rows, float *out, Wide stride, int cols, Wide count, const float *second, int finish, int act,
       const float *bias, const float *second_bias) {
    Results results = {out, stride, 0, cols, finish, act, bias, second_bias, 1.0f};
    for (Wide i = blockIdx.x * (Wide)blockDim.x + threadIdx.x; i < count; i += (Wide)gridDim.x * blockDim.x) {
        Wide row = i / cols;
        int column = (int)(i % cols);
        float *to = out + row * stride + column;
        if (finish == FINISH_SWIGLU || finish == FINISH_GEGLU) *to = results.both(*to, second[i], column);
        else if (finish == FINISH_ADD) *to = activate(act, *to);
        else *to = results.one(*to, column, to);
    }
}
