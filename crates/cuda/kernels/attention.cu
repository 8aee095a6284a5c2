// Attention that never holds the matrix of scores: a block goes along the keys with some queries of a head, and keeps for
// each the greatest score so far, the sum of powers and the weighted sum of values.
//
// Keys and values are laid out for it first, by head, rounded to what products are made of, with zeros up to whole tiles. The
// keys of a tile and their order are the same for every query, so its bits depend neither on the other queries nor on the
// strip it comes in.

#include "tile.cuh"

// Rows of heads as `[head][tokens up to whole tiles][parts * D]`, zeros where there is nothing. A thread makes sixteen bytes.
template <class E>
__device__ __forceinline__ void lay_out(const float *x, Wide stride, int tokens, int heads, int head_dim, int rows, int width,
                                        unsigned char *out) {
    const int chunks = width / CHUNK<E>;
    const Wide count = (Wide)heads * rows * chunks;
    for (Wide i = blockIdx.x * (Wide)blockDim.x + threadIdx.x; i < count; i += (Wide)gridDim.x * blockDim.x) {
        Wide line = i / chunks;
        int at = (int)(i % chunks) * CHUNK<E>, token = (int)(line % rows), head = (int)(line / rows);
        float numbers[CHUNK<E>];
        UNROLL
        for (int j = 0; j < CHUNK<E>; j++) {
            bool there = token < tokens && at + j < head_dim;
            numbers[j] = there ? x[token * stride + head * head_dim + at + j] : 0;
        }
        store_chunk<E>(out + i * 16, numbers);
    }
}

#define LAY_OUT(name, E)                                                                                              \
    KERNEL(256, name, const float *x, Wide stride, int tokens, int heads, int head_dim, int rows, int width,          \
           unsigned char *out) {                                                                                      \
        lay_out<E>(x, stride, tokens, heads, head_dim, rows, width, out);                                             \
    }

LAY_OUT(lay_out_bf16, Bf16)
LAY_OUT(lay_out_f16, F16)
LAY_OUT(lay_out_tf32, Tf32)
LAY_OUT(lay_out_f32, Full)

// The shape of tiles: queries of a block, sixteen a warp; keys at once; numbers of a head at once.
template <class E, int D_, int KEYS_, int WARPS_> struct Tiles {
    static constexpr int D = D_, KEYS = KEYS_, WARPS = WARPS_;
    static constexpr int THREADS = WARPS * 32, QUERIES = WARPS * 16;
    static constexpr int ROW_BYTES = D * E::BYTES;
    // Eight rows that follow each other touch all banks.
    static constexpr int PITCH = ROW_BYTES + 16;
    static constexpr int CHUNKS = ROW_BYTES / 16;
    // Where keys and values begin in shared memory, behind the queries.
    static constexpr int KEYS_AT = QUERIES * PITCH, VALUES_AT = KEYS_AT + KEYS * PITCH;
};

struct Heads {
    const float *q;
    Wide q_stride;
    // As `lay_out` left them.
    const unsigned char *keys, *values;
    float *out;
    Wide out_stride;
    int queries, tokens, rows;
    // Query heads that share keys, numbers of a head, and its parts of D.
    int group, head_dim, parts;
    // Of the scores, times log2(e).
    float scale;
    int causal;

    // Keys that a query sees.
    __device__ __forceinline__ int seen(int query) const { return causal ? query + 1 + tokens - queries : tokens; }
};

// Part `part` of the block's queries, to shared memory.
template <class E, class T>
__device__ __forceinline__ void bring_queries(const Heads &heads, int part, unsigned char *to) {
    const float *from = heads.q + (Wide)blockIdx.y * heads.head_dim + part * T::D;
    for (int i = threadIdx.x; i < T::QUERIES * T::CHUNKS; i += T::THREADS) {
        int line = i / T::CHUNKS, at = i % T::CHUNKS * CHUNK<E>, query = blockIdx.x * T::QUERIES + line;
        float numbers[CHUNK<E>];
        UNROLL
        for (int j = 0; j < CHUNK<E>; j++) {
            bool there = query < heads.queries && part * T::D + at + j < heads.head_dim;
            numbers[j] = there ? from[query * heads.q_stride + at + j] : 0;
        }
        store_chunk<E>(to + line * T::PITCH + at * E::BYTES, numbers);
    }
}

// Begins to bring part `part` of a tile of keys or values.
template <class E, class T>
__device__ __forceinline__ void bring_tile(const Heads &heads, const unsigned char *from, int first, int part,
                                           unsigned char *to) {
    const Wide row_bytes = (Wide)heads.parts * T::ROW_BYTES;
    from += (blockIdx.y / heads.group * (Wide)heads.rows + first) * row_bytes + part * T::ROW_BYTES;
    for (int i = threadIdx.x; i < T::KEYS * T::CHUNKS; i += T::THREADS) {
        int line = i / T::CHUNKS, chunk = i % T::CHUNKS;
        copy_async(to + line * T::PITCH + chunk * 16, from + line * row_bytes + chunk * 16, 16);
    }
    copies_end_group();
}

// Adds a part's products of queries and keys to the scores of a warp.
template <class E, class T>
__device__ __forceinline__ void add_scores(const unsigned char *shared, float (&scores)[T::KEYS / 8][4]) {
    const Corner ca = corner_a(), cb = corner_b();
    const unsigned char *q = shared + (threadIdx.x / 32 * 16 + ca.row) * T::PITCH + ca.byte;
    const unsigned char *k = shared + T::KEYS_AT + cb.row * T::PITCH + cb.byte;
    UNROLL
    for (int part = 0; part < T::ROW_BYTES / 32; part++) {
        Factor<E, 4> left;
        ldmatrix_x4(left.main, q + part * 32);
        left.split();
        UNROLL
        for (int pair = 0; pair < T::KEYS / 16; pair++) {
            unsigned four[4];
            ldmatrix_x4(four, k + pair * 16 * T::PITCH + part * 32);
            UNROLL
            for (int i = 0; i < 2; i++) {
                Factor<E, 2> right;
                right.main[0] = four[i * 2], right.main[1] = four[i * 2 + 1];
                right.split();
                multiply(scores[pair * 2 + i], left, right);
            }
        }
    }
}

// What is rounded next need not be exact to the last bit.
template <class E> __device__ __forceinline__ float power(float x) { return E::SPLIT ? exp2f(x) : fast_exp2(x); }

// What is known of two queries of a lane: rows lane / 4 and 8 further on.
struct Softmax {
    // The greatest score, not scaled yet, and the sum of powers that this lane has.
    float top[2], total[2];
};

// Scores become powers; returns by what earlier sums are multiplied. Key `first` is the lane's first.
template <class E, int N>
__device__ __forceinline__ void take_powers(const Heads &heads, int query, int first, float (&scores)[N][4], Softmax &state,
                                            float (&correction)[2]) {
    UNROLL
    for (int half = 0; half < 2; half++) {
        const int seen = heads.seen(query + half * 8);
        float top = state.top[half];
        UNROLL
        for (int i = 0; i < N * 2; i++) {
            float &score = scores[i / 2][half * 2 + i % 2];
            if (first + i / 2 * 8 + i % 2 >= seen) score = bits_float(0xff800000);
            top = fmaxf(top, score);
        }
        // The four lanes of a row. The scale is positive, so that the greatest stays the greatest.
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, 2));
        const float away = -top * heads.scale;
        // Exactly 1 where nothing greater came: a tile of which a query sees nothing must change nothing.
        correction[half] = power<E>((state.top[half] - top) * heads.scale);
        float sum = 0;
        UNROLL
        for (int i = 0; i < N * 2; i++) {
            float &score = scores[i / 2][half * 2 + i % 2];
            score = power<E>(fmaf(score, heads.scale, away));
            sum += score;
        }
        state.top[half] = top;
        state.total[half] = fmaf(state.total[half], correction[half], sum);
    }
}

// Adds powers times values of two bytes: the powers of sixteen keys lie in a lane as a factor has them.
template <class E, class T>
__device__ __forceinline__ void add_pairs(const unsigned char *values, const float (&powers)[T::KEYS / 8][4],
                                          float (&sums)[T::D / 8][4]) {
    const int lane = threadIdx.x % 32;
    const unsigned char *v = values + (lane / 8 % 2 * 8 + lane % 8) * T::PITCH + lane / 16 * 16;
    UNROLL
    for (int keys = 0; keys < T::KEYS / 16; keys++) {
        Factor<E, 4> left;
        UNROLL
        for (int i = 0; i < 4; i++) {
            const float(&from)[4] = powers[keys * 2 + i / 2];
            left.main[i] = E::pack(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
        UNROLL
        for (int pair = 0; pair < T::D / 16; pair++) {
            unsigned four[4];
            ldmatrix_x4_turned(four, v + keys * 16 * T::PITCH + pair * 32);
            UNROLL
            for (int i = 0; i < 2; i++) {
                Factor<E, 2> right;
                right.main[0] = four[i * 2], right.main[1] = four[i * 2 + 1];
                multiply(sums[pair * 2 + i], left, right);
            }
        }
    }
}

// The same of four bytes. A lane has the powers of keys 2t and 2t + 1 where a factor wants t and t + 4: the values are read in that
// order too.
template <class E, class T>
__device__ __forceinline__ void add_words(const unsigned char *values, const float (&powers)[T::KEYS / 8][4],
                                          float (&sums)[T::D / 8][4]) {
    const int lane = threadIdx.x % 32;
    const unsigned char *v = values + lane % 4 * 2 * T::PITCH + lane / 4 * 4;
    UNROLL
    for (int keys = 0; keys < T::KEYS / 8; keys++) {
        Factor<E, 4> left;
        UNROLL
        for (int i = 0; i < 4; i++) left.main[i] = E::word(powers[keys][i % 2 * 2 + i / 2]);
        left.split();
        UNROLL
        for (int wide = 0; wide < T::D / 8; wide++) {
            Factor<E, 2> right;
            UNROLL
            for (int i = 0; i < 2; i++) right.main[i] = *(const unsigned *)(v + (keys * 8 + i) * T::PITCH + wide * 32);
            right.split();
            multiply(sums[wide], left, right);
        }
    }
}

// The block's results: the part of the values that blockIdx.z says.
template <class T>
__device__ __forceinline__ void store_results(const Heads &heads, int query, const float (&sums)[T::D / 8][4],
                                              const Softmax &state) {
    const int first = blockIdx.z * T::D + threadIdx.x % 4 * 2;
    UNROLL
    for (int half = 0; half < 2; half++) {
        float total = state.total[half];
        total += __shfl_xor_sync(0xffffffff, total, 1);
        total += __shfl_xor_sync(0xffffffff, total, 2);
        if (query + half * 8 >= heads.queries) continue;
        float *to = heads.out + (query + half * 8) * heads.out_stride + (Wide)blockIdx.y * heads.head_dim;
        UNROLL
        for (int i = 0; i < T::D / 4; i++) {
            int at = first + i / 2 * 8 + i % 2;
            if (at < heads.head_dim) to[at] = sums[i / 2][half * 2 + i % 2] / total;
        }
    }
}

// Blocks: queries, heads, parts of the values. Heads too large for registers have several parts: every block then goes
// through all parts of queries and keys, and sums one part of the values.
template <class E, class T> __device__ __forceinline__ void attend(const Heads &heads, unsigned char *shared) {
    unsigned char *keys = shared + T::KEYS_AT, *values = shared + T::VALUES_AT;
    const int first_query = blockIdx.x * T::QUERIES;
    const int query = first_query + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    const int tiles = up(heads.seen(least(first_query + T::QUERIES, heads.queries) - 1), T::KEYS);
    const bool whole = heads.parts == 1;
    Softmax state = {{bits_float(0xff800000), bits_float(0xff800000)}, {0, 0}};
    float sums[T::D / 8][4];
    UNROLL
    for (int i = 0; i < T::D / 2; i++) sums[i / 4][i % 4] = 0;
    if (whole) {
        bring_queries<E, T>(heads, 0, shared);
        bring_tile<E, T>(heads, heads.keys, 0, 0, keys);
    }
    for (int tile = 0; tile < tiles; tile++) {
        float scores[T::KEYS / 8][4];
        UNROLL
        for (int i = 0; i < T::KEYS / 2; i++) scores[i / 4][i % 4] = 0;
        for (int part = 0; part < heads.parts; part++) {
            if (!whole) {
                __syncthreads();
                bring_queries<E, T>(heads, part, shared);
                bring_tile<E, T>(heads, heads.keys, tile * T::KEYS, part, keys);
            }
            copies_wait<0>();
            // Also: nobody reads the values of the tile before any more.
            __syncthreads();
            if (part + 1 == heads.parts) bring_tile<E, T>(heads, heads.values, tile * T::KEYS, blockIdx.z, values);
            add_scores<E, T>(shared, scores);
        }
        float correction[2];
        take_powers<E>(heads, query, tile * T::KEYS + threadIdx.x % 4 * 2, scores, state, correction);
        copies_wait<0>();
        __syncthreads();
        if (whole && tile + 1 < tiles) bring_tile<E, T>(heads, heads.keys, (tile + 1) * T::KEYS, 0, keys);
        UNROLL
        for (int i = 0; i < T::D / 2; i++) sums[i / 4][i % 4] *= correction[i % 4 / 2];
        if constexpr (E::BYTES == 2) add_pairs<E, T>(values, scores, sums);
        else add_words<E, T>(values, scores, sums);
    }
    store_results<T>(heads, query, sums, state);
}

#define ATTEND(name, E, D, KEYS, WARPS)                                                                                \
    KERNEL(WARPS * 32, name, const float *q, Wide q_stride, const unsigned char *keys, const unsigned char *values,    \
           float *out, Wide out_stride, int queries, int tokens, int rows, int group, int head_dim, int parts,         \
           float scale, int causal) {                                                                                  \
        DYNAMIC_SHARED(shared);                                                                                        \
        attend<E, Tiles<E, D, KEYS, WARPS>>({q, q_stride, keys, values, out, out_stride, queries, tokens, rows, group, \
                                             head_dim, parts, scale, causal},                                          \
                                            shared);                                                                   \
    }

// The same shapes as in src/ops/attention.rs.
#define ATTEND_PAIRS(type, E)                   \
    ATTEND(attend_##type##_48, E, 48, 64, 8)    \
    ATTEND(attend_##type##_64, E, 64, 64, 8)    \
    ATTEND(attend_##type##_80, E, 80, 64, 8)    \
    ATTEND(attend_##type##_128, E, 128, 64, 8)  \
    ATTEND(attend_##type##_160, E, 160, 64, 8)

#define ATTEND_WORDS(type, E)                   \
    ATTEND(attend_##type##_64, E, 64, 32, 4)    \
    ATTEND(attend_##type##_128, E, 128, 32, 4)  \
    ATTEND(attend_##type##_160, E, 160, 32, 4)

ATTEND_PAIRS(bf16, Bf16)
ATTEND_PAIRS(f16, F16)
ATTEND_WORDS(tf32, Tf32)
ATTEND_WORDS(f32, Full)
