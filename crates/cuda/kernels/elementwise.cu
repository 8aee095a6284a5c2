// Numbers one by one, and copies of them.

#include "threads.cuh"

// The same numbers as in src/ops/elementwise.rs.
enum Combine { COMBINE_ADD, COMBINE_MUL, COMBINE_COPY };
enum Function { FUNCTION_ACT, FUNCTION_TANH, FUNCTION_PLUS };

__device__ __forceinline__ float combined(int op, float x, float y, float s) {
    return op == COMBINE_ADD ? fmaf(y, s, x) : op == COMBINE_MUL ? x * y : y;
}

// `x = x + s * y`, `x * y` or `y`.
KERNEL(256, combine, float *x, const float *y, float s, int op, Wide count) {
    const bool wide = is_wide(x, 0) && is_wide(y, 0);
    each((count + 3) / 4, [&](Wide i) {
        float a[4], b[4];
        int here = (int)least((Wide)4, count - i * 4);
        load_four(b, y + i * 4, here, wide);
        if (op != COMBINE_COPY) load_four(a, x + i * 4, here, wide);
        UNROLL
        for (int j = 0; j < 4; j++) a[j] = combined(op, op == COMBINE_COPY ? 0.0f : a[j], b[j], s);
        store_four(x + i * 4, a, here, wide);
    });
}

// `x = act(x)`, `tanh(x)` or `x + constant`.
KERNEL(256, apply, float *x, int function, int act, float constant, Wide count) {
    const bool wide = is_wide(x, 0);
    each((count + 3) / 4, [&](Wide i) {
        float v[4];
        int here = (int)least((Wide)4, count - i * 4);
        load_four(v, x + i * 4, here, wide);
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (function == FUNCTION_ACT) v[j] = activate(act, v[j]);
            else v[j] = function == FUNCTION_TANH ? tanhf(v[j]) : v[j] + constant;
        }
        store_four(x + i * 4, v, here, wide);
    });
}

// Rows from one place to another; with a stride of 0, one row to all.
KERNEL(256, copy_lines, const float *from, Wide from_stride, float *to, Wide to_stride, Wide rows, Wide cols) {
    const bool wide = is_wide(from, from_stride) && is_wide(to, to_stride) && cols % 4 == 0;
    const Wide step = wide ? 4 : 1;
    each(rows * cols / step, [&](Wide i) {
        Split place = split(i, cols / step);
        const float *source = from + place.whole * from_stride + place.rest * step;
        float *target = to + place.whole * to_stride + place.rest * step;
        if (wide) *(float4 *)target = *(const float4 *)source;
        else *target = *source;
    });
}

// A matrix as it is stored, as f32, each number times its scale.
KERNEL(256, widen, const unsigned char *data, const unsigned char *scales, int kind, Wide rows, Wide cols, float *out) {
    const Weight weight = {data, scales, kind};
    each(rows * cols, [&](Wide i) {
        Split place = split(i, cols);
        out[i] = weight.at(place.whole, place.rest, cols);
    });
}

// Row `ids[r]` of a matrix as row r; a number that the matrix has no row for gives NaN, which nobody overlooks.
KERNEL(256, gather_rows, const unsigned char *data, const unsigned char *scales, int kind, Wide rows, Wide cols,
       const unsigned *ids, Wide count, float *out, Wide out_stride) {
    const Weight weight = {data, scales, kind};
    each(count * cols, [&](Wide i) {
        Split place = split(i, cols);
        Wide row = ids[place.whole];
        float value = row < rows ? weight.at(row, place.rest, cols) : bits_float(0x7fc00000);
        out[place.whole * out_stride + place.rest] = value;
    });
}
