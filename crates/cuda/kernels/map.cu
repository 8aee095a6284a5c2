// Feature maps [channels, rows, width]: group norms in two halves, upsampling, and maps as tokens.

#include "threads.cuh"

// Sum and sum of squares of each row of each group, `[group][row][2]`. The order follows from a row's size alone, so that
// strips of a map give the same bits as the whole.
KERNEL(ROW_THREADS, sum_group_rows, const float *x, int channels_of_group, int rows, int width, double *partial) {
    __shared__ double sums[2][ROW_THREADS];
    const Wide group = blockIdx.x / rows, row = blockIdx.x % rows;
    x += (group * channels_of_group * rows + row) * width;
    double sum = 0, square = 0;
    for (Wide i = threadIdx.x; i < (Wide)channels_of_group * width; i += ROW_THREADS) {
        Split place = split(i, width);
        double v = x[place.whole * rows * width + place.rest];
        sum += v;
        // Exact: a square of an f32 fits an f64.
        square += v * v;
    }
    sums[0][threadIdx.x] = sum;
    sums[1][threadIdx.x] = square;
    for (int half = ROW_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            sums[0][threadIdx.x] += sums[0][threadIdx.x + half];
            sums[1][threadIdx.x] += sums[1][threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        double *to = partial + blockIdx.x * (Wide)2;
        to[0] = sums[0][0];
        to[1] = sums[1][0];
    }
}

// Adds the sums of rows to those of their groups, row by row. A warp takes a group.
KERNEL(32, add_group_rows, const double *partial, int rows, double *sums) {
    __shared__ double some[32][2];
    partial += blockIdx.x * (Wide)rows * 2;
    double sum = threadIdx.x < 2 ? sums[blockIdx.x * 2 + threadIdx.x] : 0;
    for (int first = 0; first < rows; first += 32) {
        int row = first + threadIdx.x;
        __syncthreads();
        if (row < rows) {
            some[threadIdx.x][0] = partial[row * (Wide)2];
            some[threadIdx.x][1] = partial[row * (Wide)2 + 1];
        }
        __syncthreads();
        if (threadIdx.x < 2)
            for (int i = 0; i < least(32, rows - first); i++) sum += some[i][threadIdx.x];
    }
    if (threadIdx.x < 2) sums[blockIdx.x * 2 + threadIdx.x] = sum;
}

// A scale and a shift for each channel, from finished sums over `count` numbers a group.
KERNEL(256, finish_groups, const double *sums, double count, float eps, const float *weight, const float *bias,
       int channels, int channels_of_group, float *scale, float *shift) {
    each(channels, [&](Wide c) {
        const double *of = sums + c / channels_of_group * 2;
        double mean = of[0] / count, variance = of[1] / count - mean * mean;
        // Rounding may leave a constant group a little below zero; NaN is kept.
        variance = variance < 0 ? 0 : variance;
        double factor = weight[c] / sqrt(variance + (double)eps);
        scale[c] = (float)factor;
        shift[c] = (float)(bias[c] - mean * factor);
    });
}

// `out = act(x * scale[c] + shift[c])`; may be in place.
KERNEL(256, affine_channels, const float *x, Wide plane, Wide count, const float *scale, const float *shift, int act,
       float *out) {
    each(count, [&](Wide i) {
        Wide c = split(i, plane).whole;
        out[i] = activate(act, fmaf(x[i], scale[c], shift[c]));
    });
}

// Doubles rows and columns; `count` is that of the numbers of `x`.
KERNEL(256, upsample_2x, const float *x, Wide width, Wide count, float *out) {
    each(count, [&](Wide i) {
        Split place = split(i, width);
        float *to = out + place.whole * 4 * width + place.rest * 2;
        to[0] = to[1] = to[2 * width] = to[2 * width + 1] = x[i];
    });
}

constexpr int SQUARE = 32;
// Rows of a square that a block of 32 x 8 threads moves at once.
constexpr int SQUARE_STEP = 8;

// `out[t, c] = x[c, first + t] * scale[c] + shift[c]`, by squares that are turned in shared memory.
KERNEL(256, turn_map, const float *x, const float *scale, const float *shift, Wide plane, Wide tokens, int channels,
       float *out, Wide out_stride) {
    __shared__ float square[SQUARE][SQUARE + 1];
    const int column = threadIdx.x % 32, line = threadIdx.x / 32;
    const int squares = up(channels, SQUARE);
    const Wide token = blockIdx.x / squares * (Wide)SQUARE;
    const int channel = blockIdx.x % squares * SQUARE;
    for (int i = line; i < SQUARE; i += SQUARE_STEP) {
        int c = channel + i;
        if (c < channels && token + column < tokens) {
            square[i][column] = fmaf(x[c * plane + token + column], scale[c], shift[c]);
        }
    }
    __syncthreads();
    for (int i = line; i < SQUARE; i += SQUARE_STEP) {
        if (channel + column < channels && token + i < tokens) {
            out[(token + i) * out_stride + channel + column] = square[column][i];
        }
    }
}

// `map[c, first + t] += tokens[t, c]`, the same way.
KERNEL(256, add_turned, const float *tokens, Wide stride, Wide count, int channels, float *map, Wide plane) {
    __shared__ float square[SQUARE][SQUARE + 1];
    const int column = threadIdx.x % 32, line = threadIdx.x / 32;
    const int squares = up(channels, SQUARE);
    const Wide token = blockIdx.x / squares * (Wide)SQUARE;
    const int channel = blockIdx.x % squares * SQUARE;
    for (int i = line; i < SQUARE; i += SQUARE_STEP) {
        if (channel + column < channels && token + i < count) {
            square[i][column] = tokens[(token + i) * stride + channel + column];
        }
    }
    __syncthreads();
    for (int i = line; i < SQUARE; i += SQUARE_STEP) {
        if (channel + i < channels && token + column < count) {
            map[(channel + i) * plane + token + column] += square[column][i];
        }
    }
}

// Patches of 2 x 2 of a map [channels, height, width], channels fastest, one row a patch; or back.
KERNEL(256, move_patches, const float *from, int channels, int height, int width, int back, float *to) {
    each((Wide)channels * height * width, [&](Wide i) {
        // `i` counts along the patches, which are read or written in order.
        Split number = split(i, channels), within = split(number.whole, 4), patch = split(within.whole, width / 2);
        Wide y = patch.whole * 2 + within.rest / 2, x = patch.rest * 2 + within.rest % 2;
        Wide at = (number.rest * height + y) * width + x;
        if (back) to[at] = from[i];
        else to[i] = from[at];
    });
}
