// The product under linear layers and convolutions: a tile of 128 rows of A (activations, f32 in memory) by N rows of B
// (weights as they are stored), both along k.
//
// 256 threads bring 64 bytes of k of every row to shared memory, in the type of the product, while they multiply the 64 bytes that
// came before. The sum of a result goes along k in ascending order, one instruction of a tensor core after another. No other
// row and no size but k has a say in it, so that a row's bits do not depend on its company.

#pragma once

#include "numbers.cuh"

// What products are made of. In shared memory numbers lie as `pack` makes two of them or `word` makes one, so that each is
// rounded once for all warps.

struct Bf16 {
    static constexpr int BYTES = 2;
    static constexpr bool SPLIT = false;

    __device__ static __forceinline__ unsigned pack(float low, float high) { return pack_bf16(low, high); }
};

struct F16 {
    static constexpr int BYTES = 2;
    static constexpr bool SPLIT = false;

    __device__ static __forceinline__ unsigned pack(float low, float high) { return pack_f16(low, high); }
};

struct Tf32 {
    static constexpr int BYTES = 4;
    static constexpr bool SPLIT = false;

    __device__ static __forceinline__ unsigned word(float value) { return to_tf32(value); }
};

// f32, each factor as the sum of two tf32; the product of the lesser two is left out, which is some 2^-22 of the result.
struct Full {
    static constexpr int BYTES = 4;
    static constexpr bool SPLIT = true;

    __device__ static __forceinline__ unsigned word(float value) { return float_bits(value); }
};

constexpr int TILE_ROWS = 128;
constexpr int TILE_THREADS = 256;
// Bytes of k of a row in a step, and from one row to the next: eight rows that follow each other touch all banks.
constexpr int STEP_BYTES = 64;
constexpr int PITCH = STEP_BYTES + 16;

// Numbers in sixteen bytes, and of a step.
template <class E> constexpr int CHUNK = 16 / E::BYTES;
template <class E> constexpr int STEP = STEP_BYTES / E::BYTES;

template <class E> __device__ __forceinline__ void store_chunk(unsigned char *to, const float (&from)[CHUNK<E>]) {
    uint4 four;
    if constexpr (E::BYTES == 2) {
        four.x = E::pack(from[0], from[1]);
        four.y = E::pack(from[2], from[3]);
        four.z = E::pack(from[4], from[5]);
        four.w = E::pack(from[6], from[7]);
    } else {
        four.x = E::word(from[0]), four.y = E::word(from[1]), four.z = E::word(from[2]), four.w = E::word(from[3]);
    }
    *(uint4 *)to = four;
}

// What a lane holds of a factor; of f32 also what is left of it beyond tf32.
template <class E, int N> struct Factor {
    unsigned main[N];
    unsigned rest[E::SPLIT ? N : 1];

    __device__ __forceinline__ void split() {
        constexpr int COUNT = E::SPLIT ? N : 0;
        UNROLL
        for (int i = 0; i < COUNT; i++) {
            float value = bits_float(main[i]);
            main[i] = to_tf32(value);
            rest[i] = to_tf32(value - bits_float(main[i]));
        }
    }
};

__device__ __forceinline__ void multiply(float (&c)[4], const Factor<Bf16, 4> &a, const Factor<Bf16, 2> &b) {
    mma_bf16(c, a.main, b.main);
}

__device__ __forceinline__ void multiply(float (&c)[4], const Factor<F16, 4> &a, const Factor<F16, 2> &b) {
    mma_f16(c, a.main, b.main);
}

__device__ __forceinline__ void multiply(float (&c)[4], const Factor<Tf32, 4> &a, const Factor<Tf32, 2> &b) {
    mma_tf32(c, a.main, b.main);
}

__device__ __forceinline__ void multiply(float (&c)[4], const Factor<Full, 4> &a, const Factor<Full, 2> &b) {
    mma_tf32(c, a.rest, b.main);
    mma_tf32(c, a.main, b.rest);
    mma_tf32(c, a.main, b.main);
}

// Which rows of a square lane l names for ldmatrix_x4, and at which byte, where the four squares are (rows, bytes) of a
// 16 x 32 factor A, or of two 8 x 32 factors B.
struct Corner {
    int row, byte;
};

__device__ __forceinline__ Corner corner_a() {
    int lane = threadIdx.x % 32;
    return {lane % 16, lane / 16 * 16};
}

__device__ __forceinline__ Corner corner_b() {
    int lane = threadIdx.x % 32;
    return {lane / 16 * 8 + lane % 8, lane / 8 % 2 * 16};
}

// How the eight warps share a tile: each has ROWS x 32 results, in squares of 16 x 8.
template <int N> struct Share {
    static constexpr int ACROSS = N / 32;
    static constexpr int ROWS = TILE_ROWS / (8 / ACROSS);
    static constexpr int TALL = ROWS / 16;
    static constexpr int WIDE = 4;

    // `across` is the place in a row of warps.
    __device__ static __forceinline__ int across() { return threadIdx.x / 32 % ACROSS; }

    __device__ static __forceinline__ int first_row() { return threadIdx.x / 32 / ACROSS * ROWS; }

    // The first of the rows of B that square pair `pair` (0 or 1) multiplies with. Of two matrices, each has half a tile, and
    // a warp the same rows of both.
    template <bool DUAL> __device__ static __forceinline__ int column(int pair) {
        return DUAL ? pair * (N / 2) + across() * 16 : across() * 32 + pair * 16;
    }
};

template <int N> using Sums = float[Share<N>::TALL][4][4];

// The sums of one step, from shared memory.
template <class E, int N, bool DUAL>
__device__ __forceinline__ void multiply_step(const unsigned char *a, const unsigned char *b, Sums<N> &sums) {
    constexpr int TALL = Share<N>::TALL;
    const Corner ca = corner_a(), cb = corner_b();
    UNROLL
    for (int part = 0; part < STEP_BYTES / 32; part++) {
        Factor<E, 2> right[4];
        UNROLL
        for (int pair = 0; pair < 2; pair++) {
            unsigned four[4];
            int row = Share<N>::template column<DUAL>(pair) + cb.row;
            ldmatrix_x4(four, b + row * PITCH + part * 32 + cb.byte);
            UNROLL
            for (int i = 0; i < 4; i++) right[pair * 2 + i / 2].main[i % 2] = four[i];
        }
        UNROLL
        for (int i = 0; i < 4; i++) right[i].split();
        UNROLL
        for (int tall = 0; tall < TALL; tall++) {
            Factor<E, 4> left;
            int row = Share<N>::first_row() + tall * 16 + ca.row;
            ldmatrix_x4(left.main, a + row * PITCH + part * 32 + ca.byte);
            left.split();
            UNROLL
            for (int wide = 0; wide < 4; wide++) multiply(sums[tall][wide], left, right[wide]);
        }
    }
}

// Shared memory of a tile: two steps.
template <int N> constexpr int TILE_BYTES = 2 * (TILE_ROWS + N) * PITCH;

// The product of a tile along `k` numbers. `A` and `B` bring a step: `begin` asks for it, `end` puts it to shared memory.
template <class E, int N, bool DUAL, class A, class B>
__device__ __forceinline__ void multiply_tile(A &a, B &b, int k, unsigned char *shared, Sums<N> &sums) {
    unsigned char *const stages[2] = {shared, shared + (TILE_ROWS + N) * PITCH};
    UNROLL
    for (int i = 0; i < Share<N>::TALL * 16; i++) sums[i / 16][i / 4 % 4][i % 4] = 0;
    const int steps = up(k, STEP<E>);
    const int b_side = TILE_ROWS * PITCH;
    a.begin(0);
    b.begin(0, stages[0] + b_side);
    a.end(stages[0]);
    b.end(stages[0] + b_side);
    copies_wait<0>();
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        unsigned char *here = step % 2 ? stages[1] : stages[0], *next = step % 2 ? stages[0] : stages[1];
        bool more = step + 1 < steps;
        if (more) {
            a.begin(step + 1);
            b.begin(step + 1, next + b_side);
        }
        multiply_step<E, N, DUAL>(here, here + b_side, sums);
        if (more) {
            a.end(next);
            b.end(next + b_side);
        }
        copies_wait<0>();
        __syncthreads();
    }
}

// Sixteen rows of a warp's sums on their way out: 32 columns, and one to spare so that columns are in different banks.
constexpr int OUT_PITCH = 33;

// Hands sums on by way of shared memory, where any lane can have any of them: `f(row, sums)` for sixteen rows of the tile from
// `row` on. What follows for each number is much code, and is there once for sixteen.
template <int N, class F> __device__ __forceinline__ void hand_on(unsigned char *shared, const Sums<N> &sums, F f) {
    float *mine = (float *)shared + threadIdx.x / 32 * (16 * OUT_PITCH);
    const int lane = threadIdx.x % 32;
    UNROLL
    for (int tall = 0; tall < Share<N>::TALL; tall++) {
        __syncwarp();
        UNROLL
        for (int i = 0; i < 16; i++) {
            int row = i / 2 % 2 * 8 + lane / 4, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            mine[row * OUT_PITCH + column] = sums[tall][i / 4][i % 4];
        }
        __syncwarp();
        f(Share<N>::first_row() + tall * 16, mine);
    }
}

// Rows of f32 as they lie.
template <class E> struct RowsOfA {
    static constexpr int HERE = TILE_ROWS * 4 / TILE_THREADS;
    const float *x;
    Wide stride;
    // How many rows are left from the tile's first, and the numbers of each.
    int rows, cols;
    // Whether rows begin at multiples of sixteen bytes.
    bool wide;
    unsigned held[HERE][CHUNK<E>];

    __device__ __forceinline__ void begin(int step) {
        UNROLL
        for (int i = 0; i < HERE; i++) {
            int chunk = threadIdx.x + i * TILE_THREADS, row = chunk / 4, at = step * STEP<E> + chunk % 4 * CHUNK<E>;
            int left = row < rows ? cols - at : 0;
            load_words(held[i], (const unsigned char *)(x + row * stride + at), 4, left, wide);
        }
    }

    __device__ __forceinline__ void end(unsigned char *to) {
        UNROLL
        for (int i = 0; i < HERE; i++) {
            int chunk = threadIdx.x + i * TILE_THREADS;
            float numbers[CHUNK<E>];
            UNROLL
            for (int j = 0; j < CHUNK<E>; j++) numbers[j] = bits_float(held[i][j]);
            store_chunk<E>(to + chunk / 4 * PITCH + chunk % 4 * 16, numbers);
        }
    }
};

// Rows of one weight matrix, or of two in halves of the tile.
template <class E, int N, bool DUAL> struct RowsOfB {
    static constexpr int HERE = N * 4 / TILE_THREADS;
    // Outputs of the tile.
    static constexpr int OUTPUTS = DUAL ? N / 2 : N;
    Weight first, second;
    // The tile's first output, of how many, and the numbers of each.
    int output, outputs, cols;

    __device__ __forceinline__ Weight of_row(int row) const {
        bool two = DUAL && row >= OUTPUTS;
        return {two ? second.data : first.data, two ? second.scales : first.scales, two ? second.kind : first.kind};
    }
};

// Weights of any kind, widened on their way.
template <class E, int N, bool DUAL> struct Widened : RowsOfB<E, N, DUAL> {
    static constexpr int HERE = RowsOfB<E, N, DUAL>::HERE;
    unsigned held[HERE][CHUNK<E>];
    float scales[HERE];

    __device__ __forceinline__ void begin(int step, unsigned char *) {
        UNROLL
        for (int i = 0; i < HERE; i++) {
            int chunk = threadIdx.x + i * TILE_THREADS, row = chunk / 4, at = step * STEP<E> + chunk % 4 * CHUNK<E>;
            const Weight weight = this->of_row(row);
            int n = this->output + row % this->OUTPUTS, bytes = stored_bytes(weight.stored());
            int left = n < this->outputs ? this->cols - at : 0;
            load_words(held[i], weight.data + ((Wide)n * this->cols + at) * bytes, bytes, left, weight.wide());
            scales[i] = left > 0 ? weight.scale(n, at, this->cols) : 1.0f;
        }
    }

    __device__ __forceinline__ void end(unsigned char *to) {
        UNROLL
        for (int i = 0; i < HERE; i++) {
            int chunk = threadIdx.x + i * TILE_THREADS, row = chunk / 4;
            float numbers[CHUNK<E>];
            widen_words(numbers, held[i], this->of_row(row).stored());
            UNROLL
            for (int j = 0; j < CHUNK<E>; j++) numbers[j] *= scales[i];
            store_chunk<E>(to + row * PITCH + chunk % 4 * 16, numbers);
        }
    }
};

// Weights in the type of a product of two bytes whose rows begin at multiples of sixteen bytes: they need not pass through registers.
template <class E, int N, bool DUAL> struct Copied : RowsOfB<E, N, DUAL> {
    __device__ __forceinline__ void begin(int step, unsigned char *to) {
        UNROLL
        for (int i = 0; i < this->HERE; i++) {
            int chunk = threadIdx.x + i * TILE_THREADS, row = chunk / 4, at = step * STEP<E> + chunk % 4 * CHUNK<E>;
            const unsigned char *data = this->of_row(row).data;
            int n = this->output + row % this->OUTPUTS;
            // Rows are whole chunks.
            bool there = n < this->outputs && at < this->cols;
            const unsigned char *from = there ? data + ((Wide)n * this->cols + at) * 2 : data;
            copy_async(to + row * PITCH + chunk % 4 * 16, from, there ? 16 : 0);
        }
        copies_end_group();
    }

    __device__ __forceinline__ void end(unsigned char *) {}
};

// Which tile a block computes: eight tiles along the rows share what they read of B before the next columns' turn.
struct Place {
    Wide row_tile;
    int column_tile;
};

__device__ __forceinline__ Place place_of_block(Wide row_tiles, int column_tiles) {
    constexpr int TOGETHER = 8;
    Wide group = blockIdx.x / (TOGETHER * (Wide)column_tiles), within = blockIdx.x % (TOGETHER * (Wide)column_tiles);
    int tall = (int)least((Wide)TOGETHER, row_tiles - group * TOGETHER);
    return {group * TOGETHER + within % tall, (int)(within / tall)};
}
