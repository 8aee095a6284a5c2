// Runs the kernels on a CPU, so that their arithmetic can be tested where there is no GPU.
//
// A block's threads are fibers that take turns on one thread of the system, and blocks follow one another. A fiber goes
// on until it has to wait: for the block, or for its warp in an exchange between lanes. What a tensor core does is done
// by the lanes of a warp, each for its own results, from what all of them laid out. Copies that a kernel does not wait for
// are not made before it does, so that one that forgets to wait computes something else. Speed does not matter here.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 {
    unsigned x, y;
} __align__(8);
struct uint4 {
    unsigned x, y, z, w;
} __align__(16);
struct float2 {
    float x, y;
} __align__(8);
struct float4 {
    float x, y, z, w;
} __align__(16);
struct Index3 {
    unsigned x, y, z;
};

static Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

// A place on a stack of its own, from which another goes on.
#ifdef __x86_64__
struct Spot {
    void **top;
};

// What outlives a call is put on the stack that is left, and taken from the one that is gone to. `swapcontext` asks the
// system about signals each time, which takes most of a kernel's time.
extern "C" void lowtide_switch(void ***from, void **to);
asm(".text\n.type lowtide_switch, @function\nlowtide_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size lowtide_switch, . - lowtide_switch\n");

static void switch_to(Spot &from, Spot &to) { lowtide_switch(&from.top, to.top); }

static void begin_at(Spot &spot, unsigned char *stack, size_t bytes, void (*function)()) {
    // The function finds its stack as after a call; six registers come first.
    spot.top = (void **)(((uintptr_t)stack + bytes) / 16 * 16) - 2;
    *spot.top = (void *)function;
    for (int i = 0; i < 6; i++) *--spot.top = nullptr;
}
#else
struct Spot {
    ucontext_t context;
};

static void switch_to(Spot &from, Spot &to) { swapcontext(&from.context, &to.context); }

static void begin_at(Spot &spot, unsigned char *stack, size_t bytes, void (*function)()) {
    getcontext(&spot.context);
    spot.context.uc_stack.ss_sp = stack;
    spot.context.uc_stack.ss_size = bytes;
    spot.context.uc_link = nullptr;
    makecontext(&spot.context, function, 0);
}
#endif

constexpr int LANES = 32;
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t SLOT_BYTES = 64;

// A copy to shared memory that was begun; what is beyond `bytes` becomes zeros.
struct Copy {
    void *to;
    const void *from;
    unsigned bytes;
};

// Where threads meet: a block or a warp.
struct Meeting {
    int members = 0;
    int arrived = 0;
    unsigned long round = 0;
    // What lanes lay out for each other. There are two of each slot: who is a step ahead must not disturb who still reads.
    __align__(16) unsigned char slots[2][LANES][SLOT_BYTES];
    // The last product of a warp, and after how many exchanges it was made.
    unsigned multiplied = 0;
    float sums[16][8];

    void arrive() {
        if (++arrived == members) {
            arrived = 0;
            round++;
        }
    }

    void leave() {
        members--;
        if (members > 0 && arrived == members) {
            arrived = 0;
            round++;
        }
    }
};

struct Thread {
    Spot place;
    std::unique_ptr<unsigned char[]> stack;
    bool begun = false;
    bool ended = false;
    Meeting *awaited = nullptr;
    unsigned long round = 0;
    unsigned exchanges = 0;
    Index3 index;
    Meeting *warp = nullptr;
    int lane = 0;
    std::vector<Copy> begun_copies;
    std::vector<std::vector<Copy>> groups;
};

struct Kernel {
    void (*call)(void (*)(), const unsigned long long *);
    void (*function)();
    std::vector<int> parameters;
};

static std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

static std::vector<Thread> threads;
static std::vector<Meeting> warps;
static Meeting block;
static std::vector<float4> dynamic_shared;
static Thread *now;
static Spot scheduler;
static const Kernel *kernel;
static const unsigned long long *arguments;

// Lets the others go on until `meeting` has had another round.
static void meet(Meeting &meeting) {
    now->awaited = &meeting;
    now->round = meeting.round;
    meeting.arrive();
    if (meeting.round != now->round) {
        now->awaited = nullptr;
        return;
    }
    switch_to(now->place, scheduler);
}

static void life() {
    // A fiber serves one block after another, since beginning one is slow.
    for (;;) {
        kernel->call(kernel->function, arguments);
        now->ended = true;
        now->warp->leave();
        block.leave();
        switch_to(now->place, scheduler);
    }
}

static void resume(Thread &thread) {
    now = &thread;
    threadIdx = thread.index;
    thread.awaited = nullptr;
    if (!thread.begun) {
        thread.begun = true;
        thread.stack.reset(new unsigned char[STACK_BYTES]);
        begin_at(thread.place, thread.stack.get(), STACK_BYTES, life);
    }
    switch_to(scheduler, thread.place);
}

// Runs a block; false where its threads wait for each other for ever.
static bool run_block() {
    int count = (int)threads.size();
    block.members = count;
    block.arrived = 0;
    for (Meeting &warp : warps) {
        warp.members = LANES;
        warp.arrived = 0;
        warp.multiplied = 0;
    }
    for (Thread &thread : threads) {
        thread.ended = false;
        thread.awaited = nullptr;
        thread.begun_copies.clear();
        thread.groups.clear();
    }
    // Nothing may rely on what was in shared memory before: NaN is easily seen.
    if (!dynamic_shared.empty()) {
        memset(dynamic_shared.data(), 0xff, dynamic_shared.size() * sizeof(float4));
    }
    int left = count;
    // From the first to the last and back: what a thread must wait for is then seldom done by chance.
    for (bool back = false; left > 0; back = !back) {
        bool moved = false;
        for (int i = 0; i < count; i++) {
            Thread &thread = threads[back ? count - 1 - i : i];
            if (thread.ended) continue;
            if (thread.awaited && thread.awaited->round == thread.round) continue;
            resume(thread);
            moved = true;
            left -= thread.ended;
        }
        if (!moved) return false;
    }
    return true;
}

static void prepare(const unsigned *size) {
    size_t count = (size_t)size[0] * size[1] * size[2];
    if (threads.size() != count) {
        threads.clear();
        threads.resize(count);
    }
    warps.resize((count + LANES - 1) / LANES);
    for (size_t i = 0; i < count; i++) {
        Thread &thread = threads[i];
        unsigned x = (unsigned)i;
        thread.index = {x % size[0], x / size[0] % size[1], x / size[0] / size[1]};
        thread.warp = &warps[i / LANES];
        thread.lane = (int)(i % LANES);
    }
    blockDim = {size[0], size[1], size[2]};
}

// Lays `value` out for the warp and waits for the others; what lane `l` laid out is at `l * SLOT_BYTES`.
template <class T> static const unsigned char *exchange(const T &value) {
    static_assert(sizeof(T) <= SLOT_BYTES, "slots are large enough");
    Meeting &warp = *now->warp;
    unsigned side = now->exchanges++ % 2;
    memcpy(warp.slots[side][now->lane], &value, sizeof(T));
    meet(warp);
    return warp.slots[side][0];
}

template <class T> static T of_lane(const unsigned char *slots, int lane) {
    T value;
    memcpy(&value, slots + (size_t)lane * SLOT_BYTES, sizeof(T));
    return value;
}

// Calls a function with arguments of which each lies in eight bytes.
template <class... P> struct Caller {
    template <size_t... I>
    static void apply(void (*function)(P...), const unsigned long long *from, std::index_sequence<I...>) {
        std::tuple<P...> values;
        (memcpy(&std::get<I>(values), from + I, sizeof(std::get<I>(values))), ...);
        function(std::get<I>(values)...);
    }
    static void call(void (*function)(), const unsigned long long *from) {
        apply((void (*)(P...))function, from, std::index_sequence_for<P...>());
    }
};

struct Registered {
    template <class... P> Registered(const char *name, void (*function)(P...)) {
        kernels()[name] = {Caller<P...>::call, (void (*)())function, {(int)sizeof(P)...}};
    }
};

} // namespace emulated

// Bytes of a kernel's parameter; 0 behind the last one, and -1 where there is no such kernel.
extern "C" int lowtide_parameter_bytes(const char *name, size_t index) {
    auto found = emulated::kernels().find(name);
    if (found == emulated::kernels().end()) return -1;
    const std::vector<int> &parameters = found->second.parameters;
    return index < parameters.size() ? parameters[index] : 0;
}

// What a test calls: 0, or 1 for an unknown kernel, 2 for another number of arguments, 3 for a block that hangs, 4 for a
// block of parts of warps.
extern "C" int lowtide_emulate(const char *name, const unsigned *grid, const unsigned *size, unsigned shared,
                               const unsigned long long *values, size_t count) {
    using namespace emulated;
    auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    if (found->second.parameters.size() != count) return 2;
    if ((size[0] * size[1] * size[2]) % LANES != 0) return 4;
    kernel = &found->second;
    arguments = values;
    gridDim = {grid[0], grid[1], grid[2]};
    prepare(size);
    dynamic_shared.resize((shared + sizeof(float4) - 1) / sizeof(float4));
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                if (!run_block()) return 3;
            }
    return 0;
}

#define KERNEL(threads_, name, ...)                                       \
    extern "C" void name(__VA_ARGS__);                                    \
    static const emulated::Registered registered_##name(#name, name);     \
    extern "C" void name(__VA_ARGS__)

#define UNROLL
#define NO_UNROLL
#define DYNAMIC_SHARED(name) unsigned char *name = (unsigned char *)emulated::dynamic_shared.data()

static inline void __syncthreads() { emulated::meet(emulated::block); }

static inline void __syncwarp() { emulated::meet(*emulated::now->warp); }

static inline float __shfl_xor_sync(unsigned, float value, int mask) {
    const unsigned char *slots = emulated::exchange(value);
    return emulated::of_lane<float>(slots, emulated::now->lane ^ mask);
}

static inline unsigned float_bits(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float bits_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned bf16_bits(float value) {
    unsigned bits = float_bits(value);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// Two numbers rounded to bf16, the first in the lower half.
static inline unsigned pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

// The nearest f16; beyond its range its largest.
static inline unsigned f16_bits(float value) {
    if (value != value) return 0x7fff;
    unsigned sign = float_bits(value) >> 16 & 0x8000;
    float size = fabsf(value);
    if (size >= 65504) return sign | 0x7bff;
    // Below the smallest normal one: whole multiples of 2^-24.
    if (size < 6.103515625e-5f) return sign | (unsigned)nearbyintf(ldexpf(size, 24));
    unsigned bits = float_bits(size);
    return sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10));
}

// Two numbers rounded to f16, the first in the lower half.
static inline unsigned pack_f16(float low, float high) { return f16_bits(low) | f16_bits(high) << 16; }

static inline float f16_float(unsigned bits) {
    int exponent = (int)(bits >> 10 & 31);
    float fraction = (float)(bits & 0x3ff);
    float value = exponent == 0    ? ldexpf(fraction, -24)
                  : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                   : ldexpf(fraction + 1024, exponent - 25);
    return bits & 0x8000 ? -value : value;
}

// The nearest number of eleven significant bits, halves away from zero.
static inline unsigned to_tf32(float value) {
    unsigned bits = float_bits(value);
    if ((bits & 0x7f800000) == 0x7f800000) return bits;
    return (bits + 0x1000) & 0xffffe000;
}

static inline float fast_exp2(float x) { return exp2f(x); }
static inline float fast_reciprocal(float x) { return 1.0f / x; }

// A lane's share of two factors, widened: of its two rows (of its column) those numbers along k that it holds.
template <int K> struct Factors {
    float a[2][K], b[K];
};

// All sixteen rows and eight columns: for each result along k in ascending order. Done once for a warp, by the first lane
// that sees what all have laid out.
template <int K> static void mma_of_warp(const unsigned char *slots, float (&sums)[16][8]) {
    float b[4 * K][8];
    for (int column = 0; column < 8; column++)
        for (int neighbour = 0; neighbour < 4; neighbour++) {
            auto right = (const Factors<K> *)(slots + (column * 4 + neighbour) * emulated::SLOT_BYTES);
            for (int k = 0; k < K; k++) b[neighbour * K + k][column] = right->b[k];
        }
    for (int row = 0; row < 16; row++) {
        float sum[8] = {};
        for (int neighbour = 0; neighbour < 4; neighbour++) {
            auto left = (const Factors<K> *)(slots + (row % 8 * 4 + neighbour) * emulated::SLOT_BYTES);
            for (int k = 0; k < K; k++) {
                float factor = left->a[row / 8][k];
                for (int column = 0; column < 8; column++) sum[column] += factor * b[neighbour * K + k][column];
            }
        }
        memcpy(sums[row], sum, sizeof(sum));
    }
}

// Each lane's four results: rows lane / 4 and 8 further on, columns lane % 4 * 2 and the next. The lanes of four neighbours
// hold what is along k.
template <int K> static inline void mma(float (&c)[4], const Factors<K> &own) {
    const unsigned char *slots = emulated::exchange(own);
    emulated::Meeting &warp = *emulated::now->warp;
    if (warp.multiplied != emulated::now->exchanges) {
        warp.multiplied = emulated::now->exchanges;
        mma_of_warp<K>(slots, warp.sums);
    }
    int lane = emulated::now->lane;
    for (int i = 0; i < 4; i++) c[i] += warp.sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

static inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Factors<4> own;
    for (int k = 0; k < 4; k++) {
        for (int row = 0; row < 2; row++) own.a[row][k] = bits_float(a[row + k / 2 * 2] >> k % 2 * 16 << 16);
        own.b[k] = bits_float(b[k / 2] >> k % 2 * 16 << 16);
    }
    mma(c, own);
}

static inline void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Factors<4> own;
    for (int k = 0; k < 4; k++) {
        for (int row = 0; row < 2; row++) own.a[row][k] = f16_float(a[row + k / 2 * 2] >> k % 2 * 16 & 0xffff);
        own.b[k] = f16_float(b[k / 2] >> k % 2 * 16 & 0xffff);
    }
    mma(c, own);
}

static inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    Factors<2> own;
    for (int k = 0; k < 2; k++) {
        // The rest of the bits is not looked at.
        for (int row = 0; row < 2; row++) own.a[row][k] = bits_float(a[row + k * 2] & 0xffffe000);
        own.b[k] = bits_float(b[k] & 0xffffe000);
    }
    mma(c, own);
}

static inline void ldmatrix_x4(unsigned (&to)[4], const void *row) {
    const unsigned char *slots = emulated::exchange(row);
    int lane = emulated::now->lane;
    for (int m = 0; m < 4; m++) {
        auto from = emulated::of_lane<const unsigned char *>(slots, m * 8 + lane / 4);
        memcpy(&to[m], from + lane % 4 * 4, 4);
    }
}

static inline void ldmatrix_x4_turned(unsigned (&to)[4], const void *row) {
    const unsigned char *slots = emulated::exchange(row);
    int lane = emulated::now->lane;
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) {
            auto from = emulated::of_lane<const unsigned char *>(slots, m * 8 + lane % 4 * 2 + i);
            memcpy(&pair[i], from + lane / 4 * 2, 2);
        }
        memcpy(&to[m], pair, 4);
    }
}

static inline void copy_async(void *to, const void *from, unsigned bytes) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) abort();
    emulated::now->begun_copies.push_back({to, from, bytes});
}

static inline void copies_end_group() {
    emulated::now->groups.push_back(std::move(emulated::now->begun_copies));
    emulated::now->begun_copies.clear();
}

// Waits for all groups but the last `LEFT`.
template <int LEFT> static inline void copies_wait() {
    auto &groups = emulated::now->groups;
    while ((int)groups.size() > LEFT) {
        for (const emulated::Copy &copy : groups.front()) {
            memset(copy.to, 0, 16);
            memcpy(copy.to, copy.from, copy.bytes);
        }
        groups.erase(groups.begin());
    }
}
