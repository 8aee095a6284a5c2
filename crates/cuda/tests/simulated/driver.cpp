// A GPU that is not there: the part of the driver that this crate calls, computing on the processor by the kernels as
// emulate.h compiles them. Built as `libcuda.so.1`, it is loaded as the real one would be, by programs that are no test.
//
// It keeps the promises of a driver and nothing else: each stream is a thread of its own and late now and then, so that
// whoever forgets to wait gets something else; memory holds rubbish when it is given out and when it was freed; what is
// written before or behind it, copied where nothing is, or asked for in another order than allowed ends the program.
// All processes that name the same file share a card. Its speed says nothing.
//
//   LOWTIDE_SIMULATED_CARD     the file, made by the first that needs it; else every process has a card of its own
//   LOWTIDE_SIMULATED_MEMORY   bytes of each device, 8 GiB unless given
//   LOWTIDE_SIMULATED_DEVICES  how many, one unless given
//   LOWTIDE_SIMULATED_LOSE     a file; while it is there, the next kernel is the last: the file goes, and with it the GPU

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using Address = uint64_t;
using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

// emulate.h: bytes of a kernel's parameter, 0 behind the last, -1 where there is no such kernel; and its run.
extern "C" int lowtide_parameter_bytes(const char *name, size_t index);
extern "C" int lowtide_emulate(const char *name, const unsigned *grid, const unsigned *block, unsigned shared,
                               const unsigned long long *values, size_t count);

namespace {

enum Answer {
    OK = 0,
    INVALID = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NO_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
};

constexpr int DEVICES_MAX = 4;
constexpr int PROCESSES_MAX = 64;
constexpr size_t PAGE = 4096;
// What memory is asked of the card in.
constexpr uint64_t GRAIN = 2 << 20;
// What a context takes beside buffers.
constexpr uint64_t CONTEXT_BYTES = 64 << 20;
// Written around buffers, to be found there again.
constexpr size_t FENCE_BYTES = 256;
constexpr unsigned char FENCE = 0xa5, RUBBISH = 0xff;

[[noreturn]] void wrong(const std::string &what) {
    fprintf(stderr, "simulated driver: %s\n", what.c_str());
    abort();
}

uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

// What each process holds of each device, in memory that all of them see.
struct Card {
    struct Share {
        std::atomic<int> process;
        std::atomic<uint64_t> bytes;
    } shares[DEVICES_MAX][PROCESSES_MAX];
};

bool lives(int process) { return process > 0 && (kill(process, 0) == 0 || errno == EPERM); }

Card *card() {
    static Card *shared = [] {
        const char *path = getenv("LOWTIDE_SIMULATED_CARD");
        int file = path && *path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
        if (path && *path && (file < 0 || ftruncate(file, sizeof(Card)))) wrong(std::string("no card at ") + path);
        int how = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
        void *at = mmap(nullptr, sizeof(Card), PROT_READ | PROT_WRITE, how, file, 0);
        if (at == MAP_FAILED) wrong("the card cannot be mapped");
        if (file >= 0) close(file);
        return (Card *)at;
    }();
    return shared;
}

// This process' share of a device.
Card::Share &share(int device) {
    static Card::Share *own[DEVICES_MAX] = {};
    if (own[device]) return *own[device];
    for (Card::Share &place : card()->shares[device]) {
        int before = place.process.load();
        if (before == getpid() || (!lives(before) && place.process.compare_exchange_strong(before, getpid()))) {
            place.bytes = 0;
            return *(own[device] = &place);
        }
    }
    wrong("too many processes use the card");
}

uint64_t total() { return setting("LOWTIDE_SIMULATED_MEMORY", 8ull << 30); }

uint64_t taken(int device) {
    uint64_t bytes = 0;
    for (Card::Share &place : card()->shares[device])
        if (lives(place.process.load())) bytes += place.bytes.load();
    return bytes;
}

uint64_t left(int device) {
    uint64_t used = taken(device);
    return used < total() ? total() - used : 0;
}

int devices() {
    int count = (int)setting("LOWTIDE_SIMULATED_DEVICES", 1);
    count = count < DEVICES_MAX ? count : DEVICES_MAX;
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (!visible) return count;
    int named = 0;
    for (const char *at = visible; *at >= '0' && *at <= '9'; at++) {
        if (strtol(at, (char **)&at, 10) >= count) break;
        named++;
        if (*at != ',') break;
    }
    return named;
}

std::atomic<bool> lost{false};

struct Context {
    int device;
    int holders = 0;
} contexts[DEVICES_MAX];
thread_local Context *current;

struct Pool {
    int device;
    uint64_t most, used = 0, high = 0, held = 0, held_high = 0;
};

struct Memory {
    Pool *pool;
    size_t bytes;
    unsigned char *fenced;
};

// All of it is held under one lock; work is done without it.
std::mutex all;
std::map<Address, Memory> memories;
std::map<Address, size_t> registered;

// Large buffers get rubbish at both ends alone: a card's memory would take the processor too long.
void spoil(unsigned char *at, size_t bytes) {
    constexpr size_t END = 4 << 20;
    if (bytes <= 2 * END) {
        memset(at, RUBBISH, bytes);
        return;
    }
    memset(at, RUBBISH, END);
    memset(at + bytes - END, RUBBISH, END);
}

uint64_t rounded(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

// What lies around an address; ends the program where that is nothing, or not all of it.
void must_lie(Address at, size_t bytes, const char *what) {
    Lock lock(all);
    auto next = memories.upper_bound(at);
    if (next != memories.begin()) {
        auto &[begin, memory] = *std::prev(next);
        if (at + bytes <= begin + memory.bytes) return;
    }
    wrong(std::string(what) + " of " + std::to_string(bytes) + " bytes where no memory is");
}

bool is_registered(const void *at, size_t bytes) {
    Lock lock(all);
    auto next = registered.upper_bound((Address)at);
    return next != registered.begin() && (Address)at + bytes <= std::prev(next)->first + std::prev(next)->second;
}

void be_late() {
    static std::atomic<unsigned> seed{1};
    unsigned now = seed.fetch_add(0x9e3779b9);
    now ^= now >> 15;
    if (now % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(now / 4 % 500));
}

// A queue, and the thread that works through it.
struct Stream {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;
    uint64_t asked = 0, done = 0;
    bool ending = false;
    std::thread thread{[this] { run(); }};

    void run() {
        Lock lock(mutex);
        for (;;) {
            changed.wait(lock, [this] { return ending || !work.empty(); });
            if (work.empty()) return;
            auto next = std::move(work.front());
            work.pop_front();
            lock.unlock();
            next();
            lock.lock();
            done++;
            changed.notify_all();
        }
    }

    void add(std::function<void()> next) {
        Lock lock(mutex);
        work.push_back(std::move(next));
        asked++;
        changed.notify_all();
    }

    void drain() {
        Lock lock(mutex);
        changed.wait(lock, [this] { return done == asked; });
    }

    ~Stream() {
        {
            Lock lock(mutex);
            ending = true;
            changed.notify_all();
        }
        thread.join();
    }
};

// A place in a stream. What waits for it waits for the record that was the last when it was told to.
struct Event {
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t recorded = 0, past = 0;
    Clock::time_point when;
    bool timed;

    uint64_t last() {
        Lock lock(mutex);
        return recorded;
    }

    bool is_past(uint64_t record) {
        Lock lock(mutex);
        return past >= record;
    }

    void wait(uint64_t record) {
        Lock lock(mutex);
        changed.wait(lock, [&] { return past >= record; });
    }
};

// Events live until nothing in a stream names them.
std::map<Event *, std::shared_ptr<Event>> events;

std::shared_ptr<Event> kept(Event *event) {
    Lock lock(all);
    auto found = events.find(event);
    if (found == events.end()) wrong("an event that is none");
    return found->second;
}

struct Function {
    std::string name;
};

// The two kernels of check.ptx.
void check(const std::string &name, const unsigned long long *values) {
    auto words = (const uint32_t *)values[0];
    uint64_t count = values[1], sum = 0;
    bool busy = name == "lowtide_check_busy";
    uint32_t factor = 1, offset = 0;
    for (uint32_t i = 0; busy && i < (uint32_t)values[2]; i++) {
        factor *= 1664525;
        offset = offset * 1664525 + 1013904223;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t x = words[i];
        if (busy) {
            sum += (uint64_t)(uint32_t)((uint32_t)x * factor + offset) * (i + 1);
            continue;
        }
        x += (i + 1) * 0x9E3779B97F4A7C15ull;
        x ^= x >> 32;
        x *= 0xD6E8FEB86659FD93ull;
        x ^= x >> 32;
        sum += x;
    }
    *(uint64_t *)values[busy ? 3 : 2] += sum;
}

// Bytes of a parameter, as `lowtide_parameter_bytes`.
int parameter(const std::string &name, size_t index) {
    static const int sum[] = {8, 8, 8}, busy[] = {8, 8, 4, 8};
    if (name == "lowtide_check_sum") return index < 3 ? sum[index] : 0;
    if (name == "lowtide_check_busy") return index < 4 ? busy[index] : 0;
    return lowtide_parameter_bytes(name.c_str(), index);
}

bool is_to_be_lost() {
    const char *path = getenv("LOWTIDE_SIMULATED_LOSE");
    return path && *path && unlink(path) == 0;
}

void launch(const std::string &name, const unsigned (&grid)[3], const unsigned (&block)[3], unsigned shared,
            const std::vector<unsigned long long> &values) {
    if (lost || is_to_be_lost()) {
        lost = true;
        return;
    }
    // The emulated threads are globals.
    static std::mutex one;
    Lock lock(one);
    if (name.rfind("lowtide_check_", 0) == 0) return check(name, values.data());
    int answer = lowtide_emulate(name.c_str(), grid, block, shared, values.data(), values.size());
    if (answer) wrong("kernel " + name + " ends with " + std::to_string(answer) + " (see emulate.h)");
}

void release(Address at) {
    Memory memory;
    {
        Lock lock(all);
        auto found = memories.find(at);
        if (found == memories.end()) wrong("memory is freed that is none");
        memory = found->second;
        memories.erase(found);
    }
    auto begin = (unsigned char *)at;
    for (size_t i = 0; i < FENCE_BYTES; i++)
        if (memory.fenced[i] != FENCE || begin[memory.bytes + i] != FENCE)
            wrong("something was written beside a buffer of " + std::to_string(memory.bytes) + " bytes");
    spoil(begin, memory.bytes);
    free(memory.fenced);
}

} // namespace

#define STARTED             \
    if (!current) return NO_CONTEXT; \
    if (lost) return ILLEGAL_ADDRESS;

extern "C" {

int cuInit(unsigned) { return devices() > 0 ? OK : NO_DEVICE; }
int cuDriverGetVersion(int *version) { return *version = 13000, OK; }
int cuDeviceGetCount(int *count) { return *count = devices(), OK; }

int cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || ordinal >= devices()) return INVALID_DEVICE;
    return *device = ordinal, OK;
}

int cuDeviceGetName(char *to, int room, int device) {
    return snprintf(to, room, "simulated GPU %d", device), OK;
}

int cuDeviceGetPCIBusId(char *to, int room, int device) {
    return snprintf(to, room, "0000:%02x:00.0", device + 1), OK;
}

int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = total(), OK; }

int cuDeviceGetAttribute(int *value, int attribute, int) {
    // Compute capability, processors, whether its memory is the machine's; anything else it can do.
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 132 : attribute == 18 ? 0 : 1;
    return OK;
}

int cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return OK; }

int cuDevicePrimaryCtxRetain(Context **context, int device) {
    if (device < 0 || device >= devices()) return INVALID_DEVICE;
    if (lost) return ILLEGAL_ADDRESS;
    Lock lock(all);
    Context &own = contexts[device];
    if (own.holders == 0) {
        if (left(device) < CONTEXT_BYTES) return OUT_OF_MEMORY;
        share(device).bytes += CONTEXT_BYTES;
    }
    own.device = device;
    own.holders++;
    return *context = &own, OK;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    Lock lock(all);
    Context &own = contexts[device];
    if (own.holders == 0) wrong("a context is released once too often");
    if (--own.holders == 0) share(device).bytes -= CONTEXT_BYTES;
    return OK;
}

int cuCtxSetCurrent(Context *context) { return current = context, OK; }

int cuMemGetInfo_v2(size_t *free_, size_t *total_) {
    STARTED
    *free_ = left(current->device);
    return *total_ = total(), OK;
}

struct Properties {
    int kind, handles, place, id;
    void *security;
    size_t most;
    unsigned short usage;
    unsigned char reserved[54];
};

int cuMemPoolCreate(Pool **pool, const Properties *asked) {
    STARTED
    if (asked->kind != 1 || asked->place != 1 || asked->id != current->device) return INVALID;
    *pool = new Pool{current->device, asked->most ? rounded(asked->most, GRAIN) : UINT64_MAX};
    return OK;
}

int cuMemPoolDestroy(Pool *pool) {
    Lock lock(all);
    for (auto &[at, memory] : memories)
        if (memory.pool == pool && !lost) wrong("a pool goes before its memory");
    share(pool->device).bytes -= pool->held;
    return OK;
}

int cuMemPoolSetAttribute(Pool *pool, int attribute, void *) {
    STARTED
    Lock lock(all);
    if (attribute == 6) pool->held_high = pool->held;
    if (attribute == 8) pool->high = pool->used;
    return OK;
}

int cuMemPoolGetAttribute(Pool *pool, int attribute, uint64_t *value) {
    STARTED
    Lock lock(all);
    switch (attribute) {
    case 5: return *value = pool->held, OK;
    case 6: return *value = pool->held_high, OK;
    case 7: return *value = pool->used, OK;
    case 8: return *value = pool->high, OK;
    default: return INVALID;
    }
}

int cuMemPoolTrimTo(Pool *pool, size_t keep) {
    STARTED
    Lock lock(all);
    // What was freed and is not yet past is still held.
    uint64_t there = 0;
    for (auto &[at, memory] : memories)
        if (memory.pool == pool) there += rounded(memory.bytes, 512);
    uint64_t held = rounded(there > keep ? there : keep, GRAIN);
    if (held < pool->held) {
        share(pool->device).bytes -= pool->held - held;
        pool->held = held;
    }
    return OK;
}

int cuMemAllocFromPoolAsync(Address *to, size_t bytes, Pool *pool, Stream *) {
    STARTED
    if (bytes == 0) return INVALID;
    Lock lock(all);
    uint64_t used = pool->used + rounded(bytes, 512), held = rounded(used, GRAIN);
    if (used > pool->most) return OUT_OF_MEMORY;
    if (held > pool->held) {
        if (held - pool->held > left(pool->device)) return OUT_OF_MEMORY;
        share(pool->device).bytes += held - pool->held;
        pool->held = held;
    }
    auto fenced = (unsigned char *)aligned_alloc(FENCE_BYTES, rounded(bytes, FENCE_BYTES) + 2 * FENCE_BYTES);
    if (!fenced) return OUT_OF_MEMORY;
    memset(fenced, FENCE, FENCE_BYTES);
    spoil(fenced + FENCE_BYTES, bytes);
    memset(fenced + FENCE_BYTES + bytes, FENCE, FENCE_BYTES);
    *to = (Address)fenced + FENCE_BYTES;
    memories[*to] = {pool, bytes, fenced};
    pool->used = used;
    if (used > pool->high) pool->high = used;
    if (pool->held > pool->held_high) pool->held_high = pool->held;
    return OK;
}

int cuMemFreeAsync(Address at, Stream *stream) {
    STARTED
    {
        Lock lock(all);
        auto found = memories.find(at);
        if (found == memories.end()) return INVALID;
        found->second.pool->used -= rounded(found->second.bytes, 512);
    }
    stream->add([at] { release(at); });
    return OK;
}

int cuMemAllocManaged(Address *, size_t, unsigned) { return 801; }

int cuStreamCreate(Stream **stream, unsigned) {
    STARTED
    return *stream = new Stream, OK;
}

int cuStreamDestroy_v2(Stream *stream) { return delete stream, OK; }

int cuStreamSynchronize(Stream *stream) {
    STARTED
    stream->drain();
    return lost ? ILLEGAL_ADDRESS : OK;
}

int cuStreamQuery(Stream *stream) {
    STARTED
    Lock lock(stream->mutex);
    return stream->done == stream->asked ? OK : NOT_READY;
}

int cuStreamWaitEvent(Stream *stream, Event *event, unsigned) {
    STARTED
    auto own = kept(event);
    uint64_t record = own->last();
    stream->add([own, record] { own->wait(record); });
    return OK;
}

int cuEventCreate(Event **event, unsigned flags) {
    STARTED
    auto made = std::make_shared<Event>();
    made->timed = !(flags & 2);
    Lock lock(all);
    events[made.get()] = made;
    return *event = made.get(), OK;
}

int cuEventDestroy_v2(Event *event) {
    Lock lock(all);
    return events.erase(event) ? OK : INVALID;
}

int cuEventRecord(Event *event, Stream *stream) {
    STARTED
    auto own = kept(event);
    uint64_t record;
    {
        Lock lock(own->mutex);
        record = ++own->recorded;
    }
    stream->add([own, record] {
        Lock lock(own->mutex);
        own->past = record;
        own->when = Clock::now();
        own->changed.notify_all();
    });
    return OK;
}

int cuEventSynchronize(Event *event) {
    STARTED
    auto own = kept(event);
    own->wait(own->last());
    return lost ? ILLEGAL_ADDRESS : OK;
}

int cuEventQuery(Event *event) {
    STARTED
    auto own = kept(event);
    return own->is_past(own->last()) ? OK : NOT_READY;
}

int cuEventElapsedTime(float *ms, Event *from, Event *to) {
    STARTED
    auto begin = kept(from), end = kept(to);
    if (!begin->timed || !end->timed || !begin->last() || !end->last()) return INVALID;
    if (!begin->is_past(begin->last()) || !end->is_past(end->last())) return NOT_READY;
    return *ms = std::chrono::duration<float, std::milli>(end->when - begin->when).count(), OK;
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Stream *stream) {
    STARTED
    must_lie(to, bytes, "a copy up");
    if (is_registered(from, bytes)) {
        stream->add([=] {
            be_late();
            must_lie(to, bytes, "a copy up");
            if (!is_registered(from, bytes)) wrong("page-locked memory goes while it is copied from");
            memcpy((void *)to, from, bytes);
        });
        return OK;
    }
    // Ordinary memory may be written again as soon as the call is back.
    auto between = std::make_shared<std::vector<unsigned char>>((const unsigned char *)from, (const unsigned char *)from + bytes);
    stream->add([=] {
        must_lie(to, bytes, "a copy up");
        memcpy((void *)to, between->data(), bytes);
    });
    return OK;
}

int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Stream *stream) {
    STARTED
    must_lie(from, bytes, "a copy down");
    stream->add([=] {
        be_late();
        must_lie(from, bytes, "a copy down");
        memcpy(to, (const void *)from, bytes);
    });
    if (!is_registered(to, bytes)) stream->drain();
    return lost ? ILLEGAL_ADDRESS : OK;
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Stream *stream) {
    STARTED
    must_lie(to, bytes, "a copy");
    must_lie(from, bytes, "a copy");
    stream->add([=] { memmove((void *)to, (const void *)from, bytes); });
    return OK;
}

int cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Stream *stream) {
    STARTED
    must_lie(to, bytes, "a filling");
    stream->add([=] { memset((void *)to, value, bytes); });
    return OK;
}

int cuMemHostRegister_v2(void *at, size_t bytes, unsigned) {
    STARTED
    if ((Address)at % PAGE || bytes == 0) return INVALID;
    Lock lock(all);
    auto next = registered.lower_bound((Address)at);
    bool over = next != registered.end() && next->first < (Address)at + bytes;
    bool under = next != registered.begin() && std::prev(next)->first + std::prev(next)->second > (Address)at;
    if (over || under) return ALREADY_REGISTERED;
    registered[(Address)at] = bytes;
    return OK;
}

int cuMemHostUnregister(void *at) {
    STARTED
    Lock lock(all);
    return registered.erase((Address)at) ? OK : NOT_REGISTERED;
}

int cuModuleLoadDataEx(void **module, const void *image, unsigned, int *, void **) {
    STARTED
    if (!image) return INVALID;
    return *module = new char, OK;
}

int cuModuleUnload(void *module) { return delete (char *)module, OK; }

int cuModuleGetFunction(Function **function, void *, const char *name) {
    STARTED
    if (parameter(name, 0) < 0) return NOT_FOUND;
    return *function = new Function{name}, OK;
}

int cuFuncSetAttribute(Function *, int, int bytes) { return bytes <= 227 * 1024 ? OK : INVALID; }

int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream *stream, void **arguments, void **) {
    STARTED
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || bx * by * bz == 0) return INVALID;
    std::vector<unsigned long long> values;
    for (size_t i = 0; int bytes = parameter(function->name, i); i++) {
        unsigned long long value = 0;
        memcpy(&value, arguments[i], bytes);
        values.push_back(value);
    }
    std::string name = function->name;
    stream->add([=] { launch(name, {gx, gy, gz}, {bx, by, bz}, shared, values); });
    return OK;
}

} // extern "C"
