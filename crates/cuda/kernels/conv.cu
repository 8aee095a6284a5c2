// Convolutions of maps [channels, rows, width] in f32, as products whose rows are pixels and whose k runs over
// [channel][ky][kx], as checkpoints store weights. No unrolled image is ever made: what a step needs is gathered.

#include "tile.cuh"

// The same numbers as in src/ops/conv.rs.
enum Last { LAST_FACTORS, LAST_SLOPES, LAST_AFFINE };

// A map and how kernels lie on it.
struct Map {
    const float *x;
    // Numbers of a channel of the slice that is there, its first row in the whole map, and the size of the whole map, doubled
    // if it is enlarged first.
    Wide plane;
    int first, rows, width;
    int kernel, stride, top, left;
    // 1 if rows and columns are doubled.
    int upsample;
    const float *scale, *shift;
    int act;
};

// The numbers that pixels see, gathered. A thread has half a step of one pixel, so that a warp reads neighbours.
template <class E> struct Pixels {
    static constexpr int HERE = STEP<E> / 2;
    Map map;
    // The upper left corner of what the thread's pixel sees. Far outside for a pixel that is not there.
    int y, x;
    int cols;
    float held[HERE];
    // Bit i: number i comes from the map.
    unsigned inside;
    // The step's place in k.
    int at;

    // Where in the channels and the kernel a number lies.
    struct Tap {
        int channel, ky, kx;

        // Whether that is in the next channel.
        __device__ __forceinline__ bool next(int kernel) {
            bool turn = ++kx == kernel;
            kx = turn ? 0 : kx;
            ky += turn;
            bool over = ky == kernel;
            ky = over ? 0 : ky;
            channel += over;
            return over;
        }
    };

    __device__ __forceinline__ Tap tap() const {
        int taps = map.kernel * map.kernel, within = at % taps;
        return {at / taps, within / map.kernel, within % map.kernel};
    }

    __device__ __forceinline__ void set_pixel(Wide pixel, Wide pixels, int width_out, int first_out) {
        Wide row = pixel / width_out;
        bool there = pixel < pixels;
        y = there ? (int)(row + first_out) * map.stride - map.top : -(1 << 30);
        x = there ? (int)(pixel - row * width_out) * map.stride - map.left : -(1 << 30);
    }

    __device__ __forceinline__ void begin(int step) {
        at = step * STEP<E> + threadIdx.x / TILE_ROWS * HERE;
        inside = 0;
        Tap tap = this->tap();
        // Places within a channel fit 32 bits.
        const float *channel = map.x + tap.channel * map.plane;
        const int width = map.width >> map.upsample;
        UNROLL
        for (int i = 0; i < HERE; i++) {
            int row = y + tap.ky, column = x + tap.kx;
            bool there = at + i < cols && (unsigned)row < (unsigned)map.rows && (unsigned)column < (unsigned)map.width;
            // Zeros around the map stay zeros whatever is done to the map's numbers.
            held[i] = 0;
            if (there) {
                held[i] = channel[((row >> map.upsample) - map.first) * width + (column >> map.upsample)];
                inside |= 1u << i;
            }
            channel += tap.next(map.kernel) ? map.plane : 0;
        }
    }

    __device__ __forceinline__ void change() {
        Tap tap = this->tap();
        UNROLL
        for (int i = 0; i < HERE; i++) {
            if (inside >> i & 1) {
                float value = fmaf(held[i], map.scale[tap.channel], map.shift[tap.channel]);
                held[i] = E::SPLIT ? activate(map.act, value) : activate_fast(map.act, value);
            }
            tap.next(map.kernel);
        }
    }

    __device__ __forceinline__ void end(unsigned char *to) {
        if (map.scale) change();
        to += threadIdx.x % TILE_ROWS * PITCH + threadIdx.x / TILE_ROWS * 32;
        UNROLL
        for (int chunk = 0; chunk < 2; chunk++) {
            float numbers[CHUNK<E>];
            UNROLL
            for (int i = 0; i < CHUNK<E>; i++) numbers[i] = held[chunk * CHUNK<E> + i];
            store_chunk<E>(to + chunk * 16, numbers);
        }
    }
};

// What becomes of sums, and where they go.
struct Planes {
    float *out;
    const float *add;
    // Pixels of a channel of the slice that is computed.
    Wide plane;
    int channels;
    const float *bias;
    int last, act;
    float positive, negative;
    const float *scale, *shift;

    __device__ __forceinline__ void store(float sum, int channel, Wide pixel) const {
        if (bias) sum += bias[channel];
        if (last == LAST_AFFINE) {
            sum = activate(act, scale ? fmaf(sum, scale[channel], shift[channel]) : sum);
        } else {
            // Multiplying by one changes nothing, not even a NaN.
            sum *= sum < 0 ? (last == LAST_SLOPES ? scale[channel] : negative) : positive;
        }
        Wide at = channel * plane + pixel;
        if (add) sum += add[at];
        out[at] = sum;
    }
};

template <class E, int N, template <class, int, bool> class B>
__device__ __forceinline__ void convolve(const Map &map, int first_out, int width_out, int cols, const Weight &weight,
                                         const Planes &planes) {
    Place place = place_of_block((planes.plane + TILE_ROWS - 1) / TILE_ROWS, up(planes.channels, N));
    const Wide pixel = place.row_tile * TILE_ROWS;
    Pixels<E> a;
    a.map = map, a.cols = cols;
    a.set_pixel(pixel + threadIdx.x % TILE_ROWS, planes.plane, width_out, first_out);
    B<E, N, false> b;
    b.first = weight, b.second = weight, b.output = place.column_tile * N, b.outputs = planes.channels, b.cols = cols;
    __shared__ __align__(16) unsigned char shared[TILE_BYTES<N>];
    Sums<N> sums;
    multiply_tile<E, N, false>(a, b, cols, shared, sums);
    const int lane = threadIdx.x % 32;
    const int first = b.output + Share<N>::across() * 32;
    hand_on<N>(shared, sums, [&](int row, const float *from) {
    NO_UNROLL
        for (int i = 0; i < 16; i++) {
            // Neighbours are pixels of a channel.
            int channel = i * 2 + lane / 16;
            Wide at = pixel + row + lane % 16;
            if (at < planes.plane && first + channel < planes.channels) {
                planes.store(from[lane % 16 * OUT_PITCH + channel], first + channel, at);
            }
        }
    });
}

// `x_rows` and `x_width` are those of the whole map, `x_first` and `x_count` the rows that are there.
#define CONVOLVE(name, E, N, B)                                                                                         \
    KERNEL(TILE_THREADS, name, const float *x, int x_first, int x_count, int x_rows, int x_width, int kernel,           \
           int stride, int top, int left, int upsample, const float *in_scale, const float *in_shift, int in_act,       \
           const unsigned char *weight, const unsigned char *scales, int kind, int cols, const float *bias, int last,   \
           int act, float positive, float negative, const float *out_scale, const float *out_shift, const float *add,   \
           float *out, int first_out, int width_out, Wide plane_out, int channels_out) {                                \
        Map map = {x,      (Wide)x_count * x_width, x_first, x_rows << upsample, x_width << upsample, kernel,           \
                   stride, top,                     left,    upsample,           in_scale,            in_shift,         \
                   in_act};                                                                                             \
        Planes planes = {out,  add, plane_out, channels_out, bias,                                                      \
                         last, act, positive,  negative,     out_scale, out_shift};                                     \
        convolve<E, N, B>(map, first_out, width_out, cols, {weight, scales, kind}, planes);                             \
    }

// Wide and narrow tiles; `type` is as src/ops/conv.rs names it.
#define CONVOLVES(type, E, B)                     \
    CONVOLVE(conv_##type, E, 128, B)              \
    CONVOLVE(conv_##type##_narrow, E, 64, B)

CONVOLVES(bf16_copied, Bf16, Copied)
CONVOLVES(bf16_widened, Bf16, Widened)
CONVOLVES(f16_copied, F16, Copied)
CONVOLVES(f16_widened, F16, Widened)
CONVOLVES(tf32_widened, Tf32, Widened)
CONVOLVES(f32_widened, Full, Widened)
