// Norms and softmax of rows. A block takes a row, a warp a head; the order of a sum follows from its length alone.

#include "threads.cuh"

// `out = x * factor * weight * scale`, or that added to `out`.
KERNEL(ROW_THREADS, rms_rows, const float *x, Wide x_stride, int cols, const float *weight, float eps, const float *scale,
       int add, float *out, Wide out_stride) {
    x += blockIdx.x * x_stride;
    out += blockIdx.x * out_stride;
    const bool wide = is_wide(x, 0), wide_out = is_wide(out, 0);
    const bool wide_weights = is_wide(weight, 0) && is_wide(scale, 0);
    float squares = 0;
    each_four(cols, [&](int at, int count) {
        float v[4];
        load_four(v, x + at, count, wide);
        UNROLL
        for (int i = 0; i < 4; i++) squares = fmaf(v[i], v[i], squares);
    });
    const float factor = 1.0f / sqrtf(join_block(squares, Plus()) / cols + eps);
    each_four(cols, [&](int at, int count) {
        float v[4], w[4], old[4];
        load_four(v, x + at, count, wide);
        UNROLL
        for (int i = 0; i < 4; i++) v[i] *= factor;
        if (weight) {
            load_four(w, weight + at, count, wide_weights);
            UNROLL
            for (int i = 0; i < 4; i++) v[i] *= w[i];
        }
        if (scale) {
            load_four(w, scale + at, count, wide_weights);
            UNROLL
            for (int i = 0; i < 4; i++) v[i] *= w[i];
        }
        if (add) {
            load_four(old, out + at, count, wide_out);
            UNROLL
            for (int i = 0; i < 4; i++) v[i] += old[i];
        }
        store_four(out + at, v, count, wide_out);
    });
}

// `out = (x - mean) * factor * weight * scale + bias`.
KERNEL(ROW_THREADS, layer_rows, const float *x, Wide x_stride, int cols, const float *weight, const float *bias, float eps,
       const float *scale, float *out, Wide out_stride) {
    x += blockIdx.x * x_stride;
    out += blockIdx.x * out_stride;
    const bool wide = is_wide(x, 0), wide_out = is_wide(out, 0);
    float sum = 0;
    each_four(cols, [&](int at, int count) {
        float v[4];
        load_four(v, x + at, count, wide);
        UNROLL
        for (int i = 0; i < 4; i++) sum += v[i];
    });
    const float mean = join_block(sum, Plus()) / cols;
    float squares = 0;
    each_four(cols, [&](int at, int count) {
        float v[4];
        load_four(v, x + at, count, wide);
        UNROLL
        for (int i = 0; i < 4; i++) {
            float distance = i < count ? v[i] - mean : 0.0f;
            squares = fmaf(distance, distance, squares);
        }
    });
    const float factor = 1.0f / sqrtf(join_block(squares, Plus()) / cols + eps);
    each_four(cols, [&](int at, int count) {
        float v[4];
        load_four(v, x + at, count, wide);
        UNROLL
        for (int i = 0; i < 4; i++) {
            if (i >= count) continue;
            v[i] = (v[i] - mean) * factor;
            if (weight) v[i] *= weight[at + i];
            if (scale) v[i] *= scale[at + i];
            if (bias) v[i] += bias[at + i];
        }
        store_four(out + at, v, count, wide_out);
    });
}

// Softmax of each row, in place.
KERNEL(ROW_THREADS, softmax_lines, float *x, Wide stride, int cols) {
    x += blockIdx.x * stride;
    float top = -INFINITY;
    for (int i = threadIdx.x; i < cols; i += ROW_THREADS) top = x[i] > top ? x[i] : top;
    top = join_block(top, Larger());
    float sum = 0;
    for (int i = threadIdx.x; i < cols; i += ROW_THREADS) {
        float power = expf(x[i] - top);
        x[i] = power;
        sum += power;
    }
    sum = join_block(sum, Plus());
    for (int i = threadIdx.x; i < cols; i += ROW_THREADS) x[i] /= sum;
}

// How rotary embeddings pair the numbers of a head: the same numbers as in src/ops/norm.rs.
enum Rotary { ROTARY_NOTHING, ROTARY_INTERLEAVED, ROTARY_HALVES };

// A norm of each head where there is a weight, then its rotation by the token's angles, in place. A warp takes a head.
KERNEL(128, norm_rotate_heads, float *x, Wide stride, Wide tokens, int heads, int head_dim, const float *weight, float eps,
       int rotary, const float *cos, const float *sin) {
    Wide item = blockIdx.x * (Wide)4 + threadIdx.x / 32;
    // Whole warps go, and no warp waits for another.
    if (item >= tokens * heads) return;
    Split place = split(item, heads);
    float *head = x + place.whole * stride + place.rest * head_dim;
    const int lane = threadIdx.x % 32, half = head_dim / 2;
    float factor = 1;
    if (weight) {
        float squares = 0;
        for (int i = lane; i < head_dim; i += 32) squares = fmaf(head[i], head[i], squares);
        factor = 1.0f / sqrtf(join_warp(squares, Plus()) / head_dim + eps);
    }
    if (rotary == ROTARY_NOTHING) {
        for (int i = lane; i < head_dim; i += 32) head[i] *= weight ? factor * weight[i] : 1.0f;
        return;
    }
    for (int i = lane; i < half; i += 32) {
        int first = rotary == ROTARY_INTERLEAVED ? 2 * i : i, second = rotary == ROTARY_INTERLEAVED ? 2 * i + 1 : i + half;
        float a = head[first], b = head[second];
        if (weight) {
            a = a * factor * weight[first];
            b = b * factor * weight[second];
        }
        float c = cos[place.whole * half + i], s = sin[place.whole * half + i];
        head[first] = a * c - b * s;
        head[second] = a * s + b * c;
    }
}
