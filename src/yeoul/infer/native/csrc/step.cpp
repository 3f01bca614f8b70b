// One token of every row of a batch, embedding to logits, in one call: a program of operations that threads run in step.
//
// The program and its buffers come from Python (yeoul.infer.native). Everything that an operation reads or writes is
// checked against the sizes of its buffers when the program is loaded, when memory is bound, and, for what changes with
// every token (places, positions, ids), when it runs: a damaged number is an error, not a read out of bounds.
//
// operations.inc is compiled once for each instruction set; which one runs is decided when the library is loaded.

#include <atomic>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// -- what Python and C++ share: the order is that of yeoul.infer.native.program

enum Kind : int32_t { EMBED, NORM, LINEAR, GLU, ROPE, CONV, PUSH, ATTEND, MERGE, HEADS, FEATURES, CODE, GATE, STATE, DELTA,
                      JOIN, CAP, KINDS };
enum Flag : int32_t { ADD = 1, NO_WAIT = 2, LAYERNORM = 4, NO_INPUT_NORM = 8, IN_ORDER = 16 };
enum Type : int64_t { FP32, BF16, INT8, INT4 };

constexpr int BUFFERS = 18, NUMBERS = 16, FACTORS = 4;

struct Buffer {
    void* data;
    int64_t bytes;
};

struct Op {
    int32_t kind, flags;
    int32_t b[BUFFERS];   // buffers, -1 for none
    int64_t n[NUMBERS];   // sizes
    double f[FACTORS];    // factors
};

// How the tokens of a run belong together.
enum Order : int64_t {
    IN_STEP,   // one of each row of the memory, all of whose texts have as many columns: they share their places
    ONE_TEXT,  // of the memory's only row, one after the other, each with places of its own
    APART,     // one of each row of the memory, each with places of its own
};

struct Run {
    int64_t rows;
    const int64_t* tokens;     // (rows)
    const int64_t* positions;  // (rows)
    const int64_t* places;     // numbers of each layer that change with every token
    int64_t stride;            // from one row's to the next
    bool one_text;
    const int64_t* of(const Op& op, int64_t row) const { return places + row * stride + op.n[9]; }
};

// -- threads: a pool that waits between steps, first awake, then asleep

inline void pause_cpu() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Barrier {
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        if (threads_ == 1) return;
        const int turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
            if (spins < 2000) pause_cpu();
            else std::this_thread::yield();  // another program has the core
        }
    }

  private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> turn_{0};
};

struct Program;
typedef void (*Execute)(const Program&, const Run&, int thread);

struct Thread {
    std::vector<float> floats;
    std::vector<int16_t> shorts;
    std::vector<float> scales;
};

struct Program {
    explicit Program(int threads) : threads(threads), barrier(threads), scratch(threads) {}
    int threads;
    std::vector<Op> ops;
    std::vector<Buffer> buffers;          // constants, then activations, then memory
    std::vector<std::vector<float>> own;  // activations
    int64_t constants = 0, memory = 0, max_rows = 0, places = 0;
    int64_t bound = 0;                    // rows of the memory, 0 while there is none
    Barrier barrier;
    mutable std::vector<Thread> scratch;
    Execute execute = nullptr;
};

// What an operation sees of a program: activations from one row on.
struct View {
    View(const Program& program, int64_t row) : program(program), threads(program.threads), scratch(program.scratch), row(row) {}
    const Program& program;
    const int threads;
    std::vector<Thread>& scratch;
    const int64_t row;

    template <class T> T* at(const Op& op, int i) const {
        const int32_t id = op.b[i];
        if (id < 0 || !program.buffers[id].bytes) return nullptr;
        char* data = static_cast<char*>(program.buffers[id].data);
        if (row && id >= program.constants && id < program.memory) data += program.buffers[id].bytes / program.max_rows * row;
        return reinterpret_cast<T*>(data);
    }
};

// Whether an operation takes tokens of one text one after the other.
inline bool in_order(const Op& op) {
    return (op.flags & IN_ORDER) || op.kind == CONV || op.kind == PUSH || op.kind == ATTEND || op.kind == STATE || op.kind == DELTA;
}

class Pool {
  public:
    explicit Pool(int threads) {
        for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
    }
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            order_.store((turn_ + 1) << 16, std::memory_order_release);  // of no threads: the end
        }
        wake_.notify_all();
        for (auto& worker : workers_) worker.join();
    }
    void run(const Program& program, const Run& run) {
        std::lock_guard<std::mutex> one(busy_);
        program_ = &program, run_ = &run;
        left_.store(program.threads - 1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            turn_ = (turn_ + 1) & (UINT64_MAX >> 16);
            order_.store(turn_ << 16 | static_cast<uint64_t>(program.threads), std::memory_order_release);
        }
        if (asleep_.load(std::memory_order_acquire)) wake_.notify_all();
        program.execute(program, run, 0);
        for (int spins = 0; left_.load(std::memory_order_acquire); ++spins) {
            if (spins < 2000) pause_cpu();
            else std::this_thread::yield();
        }
    }
    int size() const { return static_cast<int>(workers_.size()) + 1; }

  private:
    // Turn and number of threads are one number, so that who has no part in a turn never looks at its program.
    void work(int thread) {
        uint64_t seen = 0;
        while (true) {
            uint64_t order = order_.load(std::memory_order_acquire);
            for (int spins = 0; order == seen && spins < AWAKE; ++spins) {
                pause_cpu();
                order = order_.load(std::memory_order_acquire);
            }
            if (order == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                asleep_.fetch_add(1, std::memory_order_acq_rel);
                wake_.wait(lock, [&] { return order_.load(std::memory_order_acquire) != seen; });
                asleep_.fetch_sub(1, std::memory_order_acq_rel);
                continue;
            }
            seen = order;
            const uint64_t threads = order & 0xffff;
            if (threads == 0) return;
            if (static_cast<uint64_t>(thread) < threads) {
                program_->execute(*program_, *run_, thread);
                left_.fetch_sub(1, std::memory_order_acq_rel);
            }
        }
    }
    static constexpr int AWAKE = 20000;  // turns of a waiting thread before it sleeps: some tenths of a millisecond
    std::vector<std::thread> workers_;
    std::mutex mutex_, busy_;
    std::condition_variable wake_;
    uint64_t turn_ = 0;
    std::atomic<uint64_t> order_{0};
    std::atomic<int> left_{0}, asleep_{0};
    const Program* program_ = nullptr;
    const Run* run_ = nullptr;
};

inline void share(int64_t units, int thread, int threads, int64_t& first, int64_t& last) {
    first = units * thread / threads, last = units * (thread + 1) / threads;
}

// -- instruction sets

#define YEOUL_ISA portable
#define YEOUL_LANES 4
#include "operations.inc"
#undef YEOUL_ISA
#undef YEOUL_LANES

#if defined(__x86_64__) && defined(__GNUC__)
#define YEOUL_X86 1
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define YEOUL_ISA avx2
#define YEOUL_LANES 8
#define YEOUL_AVX2 1
#include "operations.inc"
#undef YEOUL_ISA
#undef YEOUL_LANES
#undef YEOUL_AVX2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,prefer-vector-width=512")
#endif
#define YEOUL_ISA avx512
#define YEOUL_LANES 16
#define YEOUL_AVX512 1
#include "operations.inc"
#undef YEOUL_ISA
#undef YEOUL_LANES
#undef YEOUL_AVX512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

struct Isa {
    const char* name;
    Execute execute;
    bool here;
};

std::vector<Isa> instruction_sets() {
    std::vector<Isa> sets;
#ifdef YEOUL_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    sets.push_back({"avx512", avx512::execute, avx512});
    sets.push_back({"avx2", avx2::execute, avx2});
#endif
    sets.push_back({"portable", portable::execute, true});
    return sets;
}

// -- checks

class Checker {
  public:
    Checker(const Program& program, char* error, int64_t size) : p_(program), error_(error), size_(size) {}
    bool ok = true;

    void fail(const char* format, ...) {
        if (!ok) return;
        ok = false;
        if (size_ <= 0) return;
        va_list list;
        va_start(list, format);
        vsnprintf(error_, static_cast<size_t>(size_), format, list);
        va_end(list);
    }

    // Buffer i of an operation holds so many numbers of so many bytes.
    void holds(const Op& op, int i, int64_t numbers, int64_t bytes, bool needed = true) {
        const int32_t id = op.b[i];
        if (id < 0) {
            if (needed) fail("operation %d lacks buffer %d", op.kind, i);
            return;
        }
        if (id >= static_cast<int32_t>(p_.buffers.size())) return fail("operation %d has no buffer %d", op.kind, id);
        if (id >= p_.memory && !p_.bound) return;  // checked when it is bound
        if (!needed && !p_.buffers[id].bytes) return;  // an empty tensor stands for none
        if (numbers < 0 || numbers > INT64_MAX / 16 || p_.buffers[id].bytes < numbers * bytes)
            fail("operation %d needs %lld numbers in buffer %d, which has %lld bytes", op.kind,
                 static_cast<long long>(numbers), i, static_cast<long long>(p_.buffers[id].bytes));
    }
    void acts(const Op& op, int i, int64_t each, bool needed = true) { holds(op, i, times({p_.max_rows, each}), 4, needed); }

    // A product that stays what it is where it would overflow: too large.
    static int64_t times(std::initializer_list<int64_t> factors) {
        int64_t product = 1;
        for (int64_t factor : factors) {
            if (factor < 0) return -1;
            if (factor && product > (INT64_MAX / 16) / factor) return INT64_MAX;
            product *= factor;
        }
        return product;
    }

    bool positive(const Op& op, std::initializer_list<int> which) {
        for (int i : which)
            if (op.n[i] < 1 || op.n[i] > (int64_t(1) << 31)) {
                fail("size %d of operation %d is %lld", i, op.kind, static_cast<long long>(op.n[i]));
                return false;
            }
        return true;
    }

    void table(const Op& op, int weight, int scales, int64_t N, int64_t K, int64_t type, int64_t group) {
        if (type == FP32 || type == BF16) return holds(op, weight, times({N, K}), type == FP32 ? 4 : 2);
        if (type != INT8 && type != INT4) return fail("operation %d has no type %lld", op.kind, (long long)type);
        if (group < 1 || K % group || (type == INT4 && (group % 8 || K % 8)))
            return fail("operation %d: groups of %lld do not fit %lld inputs", op.kind, (long long)group, (long long)K);
        holds(op, weight, type == INT4 ? times({N, K / 2}) : times({N, K}), 1);
        holds(op, scales, times({N, K / group}), 2);
    }

    void check(const Op& op);

  private:
    const Program& p_;
    char* error_;
    int64_t size_;
};

// Numbers of the operations, beside those named in operations.inc; memory is (rows, heads, slots, ...).
void Checker::check(const Op& op) {
    const int64_t* n = op.n;
    const int64_t rows = p_.max_rows;
    auto type_bytes = [&](int64_t type) { return type == FP32 ? 4 : 2; };
    switch (op.kind) {
    case EMBED:  // table, scales, positions' table -> out; V, K, type, group, positions
        if (!positive(op, {0, 1})) return;
        table(op, 0, 1, n[0], n[1], n[2], n[3]);
        if (op.b[2] >= 0) holds(op, 2, times({n[4], n[1]}), 4);
        return acts(op, 3, n[1]);
    case NORM:  // x, weight, bias -> out; count, size
        if (!positive(op, {0, 1})) return;
        acts(op, 0, times({n[0], n[1]})), holds(op, 1, n[1], 4), holds(op, 2, n[1], 4, false);
        return acts(op, 3, times({n[0], n[1]}));
    case LINEAR:  // x, weight, scales, bias -> out; N, K, type, group
        if (!positive(op, {0, 1})) return;
        acts(op, 0, n[1]), table(op, 1, 2, n[0], n[1], n[2], n[3]), holds(op, 3, n[0], 4, false);
        return acts(op, 4, n[0]);
    case GLU:  // a, b or none -> out; size, activation
        if (!positive(op, {0})) return;
        if (n[1] < 0 || n[1] > 2) return fail("there is no activation %lld", (long long)n[1]);
        return acts(op, 0, n[0]), acts(op, 1, n[0], false), acts(op, 2, n[0]);
    case ROPE:  // q, k, cosines, sines; heads of q, of k, D, R, rows of the table
        if (!positive(op, {0, 1, 2, 3, 4})) return;
        if (2 * n[3] > n[2]) return fail("more is turned than a head has");
        acts(op, 0, times({n[0], n[2]})), acts(op, 1, times({n[1], n[2]}));
        return holds(op, 2, times({n[4], n[3]}), 4), holds(op, 3, times({n[4], n[3]}), 4);
    case CONV:  // q, k, v, weight, memory; channels of q, of k and v, K, type
        if (!positive(op, {0, 1, 2}) || n[2] > 64) return fail("a convolution of %lld", (long long)n[2]);
        acts(op, 0, n[0]), acts(op, 1, n[1]), acts(op, 2, n[1]), holds(op, 3, times({(n[0] + 2 * n[1]), n[2]}), 4);
        return holds(op, 4, times({rows, (n[2] - 1), (n[0] + 2 * n[1])}), type_bytes(n[3]));
    case PUSH:  // k, v, gates 2..4, left k, v, gates 7..9, written; memory: 11 k, 12 v, 13 valid, 14 age, 15.. gates
        // G, D, slots, window, sinks, exact, gates, type, index of the score
        if (!positive(op, {0, 1, 2})) return;
        if (n[3] < 0 || n[4] < 0 || n[5] < 0 || n[6] < 0 || n[6] > 3 || n[8] < -1 || n[8] >= n[6] || n[3] > n[2] || n[4] > n[2] ||
            n[5] > n[2])
            return fail("PUSH: a size is out of range");
        if (!n[3] && (n[4] || n[5] || n[6])) return fail("PUSH: something stands beside a ring that is not there");
        if ((op.b[5] < 0) != (op.b[6] < 0)) return fail("PUSH: one of two results is missing");
        if (n[3] && n[4] + n[3] + n[5] != n[2]) return fail("PUSH: slots are not those of window, sinks and pairs");
        if (n[5] && n[8] < 0) return fail("PUSH: exact pairs need a score");
        acts(op, 0, times({n[0], n[1]})), acts(op, 1, times({n[0], n[1]}));
        for (int g = 0; g < n[6]; ++g) acts(op, 2 + g, n[0]), acts(op, 7 + g, n[0], false);
        acts(op, 5, times({n[0], n[1]}), false), acts(op, 6, times({n[0], n[1]}), false), acts(op, 10, n[0], false);
        holds(op, 11, times({rows, n[0], n[2], n[1]}), type_bytes(n[7])), holds(op, 12, times({rows, n[0], n[2], n[1]}), type_bytes(n[7]));
        holds(op, 13, times({rows, n[2]}), 1, false);
        if (n[5]) holds(op, 14, times({rows, n[0], n[5]}), 4), holds(op, 13, times({rows, n[2]}), 1);
        for (int g = 0; g < n[6]; ++g) holds(op, 15 + g, times({rows, n[0], (n[3] + n[5])}), 4);
        return;
    case ATTEND:  // q, -> partial; memory: 2 k, 3 v, 4 valid; H, G, D, slots, type, splits
        if (!positive(op, {0, 1, 2, 3, 5}) || n[0] % n[1]) return fail("ATTEND: heads do not fit");
        acts(op, 0, times({n[0], n[2]})), acts(op, 1, times({n[0], n[5], (n[2] + 2)}));
        holds(op, 2, times({rows, n[1], n[3], n[2]}), type_bytes(n[4])), holds(op, 3, times({rows, n[1], n[3], n[2]}), type_bytes(n[4]));
        return holds(op, 4, times({rows, n[3]}), 1, false);
    case MERGE:  // partial -> numerator, or all with neither of: denominator, scale; H, D, splits
        if (!positive(op, {0, 1, 2})) return;
        acts(op, 0, times({n[0], n[2], (n[1] + 2)})), acts(op, 1, times({n[0], n[1]}));
        if ((op.b[2] < 0) != (op.b[3] < 0)) return fail("MERGE: one of two results is missing");
        return acts(op, 2, n[0], false), acts(op, 3, n[0], false);
    case HEADS:  // x, weight, bias -> out; heads, heads that share a weight, outputs, D
        if (!positive(op, {0, 1, 2, 3}) || n[0] % n[1]) return fail("HEADS: heads do not fit");
        acts(op, 0, times({n[0], n[3]})), holds(op, 1, times({n[0] / n[1], n[2], n[3]}), 4);
        return holds(op, 2, times({n[0] / n[1], n[2]}), 4, false), acts(op, 3, times({n[0], n[2]}));
    case FEATURES:  // projected, x, log weights, log mass, mass direction, temper -> features, shift
        // heads, heads that share, P, M, D, kernel (0 exp, 1 softmax, 2 Fourier), mode (0 query, 1 key, 2 unit)
        if (!positive(op, {0, 1, 2, 3, 4}) || n[0] % n[1]) return fail("FEATURES: heads do not fit");
        if (n[3] != n[2] && n[3] != 2 * n[2]) return fail("FEATURES: sizes do not fit");
        if (n[5] < 0 || n[5] > 2 || n[6] < 0 || n[6] > 2) return fail("FEATURES: there is no such kernel");
        if (n[5] == 2 && n[3] != 2 * n[2]) return fail("FEATURES: cosines and sines are pairs");
        acts(op, 0, times({n[0], n[2]})), acts(op, 1, times({n[0], n[4]})), acts(op, 6, times({n[0], n[3]})), acts(op, 7, n[0], false);
        holds(op, 2, times({n[0] / n[1], (n[5] == 2 ? n[2] : n[3])}), 4);
        holds(op, 3, times({n[0] / n[1]}), 4, n[5] == 1), holds(op, 4, times({n[0] / n[1], n[4]}), 4, false);
        return holds(op, 5, times({n[0] / n[1]}), 4, op.b[4] >= 0);
    case CODE:  // near, k, direction, bias -> features; G, M, D, unit
        if (!positive(op, {0, 1, 2})) return;
        acts(op, 0, times({n[0], n[1]})), acts(op, 1, times({n[0], n[2]})), holds(op, 2, times({n[0], n[2]}), 4), holds(op, 3, times({n[0], n[1]}), 4);
        return acts(op, 4, times({n[0], n[1]}));
    case GATE:  // x in place, parameter; G, function (0 sigmoid, 1 -softplus, 2 -e^p softplus, 3 x + p position)
        if (!positive(op, {0}) || n[1] < 0 || n[1] > 3) return fail("GATE: there is no function %lld", (long long)n[1]);
        return acts(op, 0, n[0]), holds(op, 1, n[0], 4, n[1] >= 2);
    case STATE:  // queries, keys, v, decay of tokens, decay of heads, written -> numerator, denominator; memory: 8 s, 9 z
    case DELTA:  // queries, keys, v, decay of tokens, strength, written -> the same; memory: 8 s
        // H, G, M, D
        if (!positive(op, {0, 1, 2, 3}) || n[0] % n[1]) return fail("STATE: heads do not fit");
        acts(op, 0, times({n[0], n[2]})), acts(op, 1, times({n[1], n[2]})), acts(op, 2, times({n[1], n[3]}));
        acts(op, 3, n[1], op.kind == DELTA), acts(op, 5, n[1], false), acts(op, 6, times({n[0], n[3]})), acts(op, 7, n[0]);
        if (op.kind == DELTA) {
            acts(op, 4, n[1]);
            return holds(op, 8, times({rows, n[1], n[2], (n[3] + 1)}), 4);
        }
        holds(op, 4, n[1], 4, false);
        return holds(op, 8, times({rows, n[1], n[2], n[3]}), 4), holds(op, 9, times({rows, n[1], n[2]}), 4);
    case JOIN:  // read: numerator, denominator, log scale; window: the same, or none -> out; H, D, delta
        if (!positive(op, {0, 1})) return;
        acts(op, 0, times({n[0], n[1]})), acts(op, 1, n[0]), acts(op, 2, n[0], n[2] != 0 || op.b[3] >= 0);
        acts(op, 3, times({n[0], n[1]}), false), acts(op, 4, n[0], op.b[3] >= 0), acts(op, 5, n[0], op.b[3] >= 0);
        return acts(op, 6, times({n[0], n[1]}));
    case CAP:  // x in place; size
        if (!positive(op, {0})) return;
        return acts(op, 0, n[0]);
    default:
        fail("there is no operation %d", op.kind);
    }
}

// Ids and positions, which come with every token.
bool fits_tokens(const Program& p, const Run& run, char* error, int64_t size) {
    Checker checker(p, error, size);
    for (const Op& op : p.ops) {
        if (op.kind != EMBED && op.kind != ROPE) continue;
        for (int64_t b = 0; b < run.rows; ++b) {
            const int64_t token = run.tokens[b], position = run.positions[b];
            if (op.kind == EMBED && (token < 0 || token >= op.n[0])) checker.fail("there is no token %lld", (long long)token);
            if (op.kind == EMBED && op.b[2] >= 0 && (position < 0 || position >= op.n[4]))
                checker.fail("there is no position %lld", (long long)position);
            if (op.kind == ROPE && (position < 0 || position >= op.n[4]))
                checker.fail("position %lld is beyond the table of rotations", (long long)position);
        }
        if (!checker.ok) return false;
    }
    return true;
}

// What else changes with every token: n[9] is the operation's first place.
bool fits_places(const Program& p, const int64_t* places, char* error, int64_t size) {
    Checker checker(p, error, size);
    const View view(p, 0);
    for (const Op& op : p.ops) {
        const int64_t* place = places + op.n[9];
        switch (op.kind) {
        case PUSH:  // slot to write, whether what is there leaves, whether some slots may be empty, the clock
            if (place[0] < 0 || place[0] >= op.n[2]) checker.fail("there is no slot %lld", (long long)place[0]);
            if (op.n[3] && (place[0] < op.n[4] || place[0] >= op.n[4] + op.n[3])) checker.fail("slot %lld is not in the ring", (long long)place[0]);
            if (place[1] && !op.n[3]) checker.fail("nothing leaves without a ring");
            break;
        case ATTEND:  // slots in use, whether some may be empty
            if (place[0] < 1 || place[0] > op.n[3]) checker.fail("%lld slots are in use", (long long)place[0]);
            if (place[1] && !view.at<uint8_t>(op, 4)) checker.fail("empty slots are not told from others");
            break;
        default:
            break;
        }
        if (!checker.ok) return false;
    }
    return true;
}

std::mutex pool_mutex;
Pool* pool = nullptr;
int pool_process = 0;

}  // namespace

#if defined(_WIN32)
#define YEOUL_API extern "C" __declspec(dllexport)
#include <process.h>
#define getpid _getpid
#else
#define YEOUL_API extern "C" __attribute__((visibility("default")))
#include <unistd.h>
#endif

YEOUL_API int64_t yeoul_abi() { return 2 * 1000000 + static_cast<int64_t>(sizeof(Op)) * 1000 + KINDS; }

// Names of the instruction sets that this processor has, best first, with commas.
YEOUL_API void yeoul_instruction_sets(char* names, int64_t size) {
    if (size <= 0) return;
    names[0] = 0;
    int64_t used = 0;
    for (const Isa& isa : instruction_sets())
        if (isa.here && used < size)
            used += snprintf(names + used, static_cast<size_t>(size - used), used ? ",%s" : "%s", isa.name);
}

// A program, or null with a reason. Activations are float32, `acts[i]` numbers for each row.
YEOUL_API void* yeoul_load(const char* isa, int64_t threads, int64_t max_rows, const Buffer* constants, int64_t constant_count,
                           const int64_t* acts, int64_t act_count, int64_t memory_count, const Op* ops, int64_t op_count,
                           int64_t numbers, char* error, int64_t size) {
    if (threads < 1 || threads > 1024 || max_rows < 1 || max_rows > 4096 || constant_count < 0 || act_count < 0 ||
        memory_count < 0 || op_count < 0) {
        snprintf(error, static_cast<size_t>(size), "a number is out of range");
        return nullptr;
    }
    Program* program = new (std::nothrow) Program(static_cast<int>(threads));
    if (!program) return nullptr;
    Checker checker(*program, error, size);
    try {
        for (const Isa& set : instruction_sets())
            if (set.here && !strcmp(set.name, isa)) program->execute = set.execute;
        if (!program->execute) checker.fail("this processor has no %s", isa);
        program->max_rows = max_rows, program->places = numbers, program->constants = constant_count;
        program->buffers.assign(constants, constants + constant_count);
        for (int64_t i = 0; i < act_count && checker.ok; ++i) {
            if (acts[i] < 1 || acts[i] > (int64_t(1) << 31)) {
                checker.fail("an activation of %lld numbers", (long long)acts[i]);
                break;
            }
            program->own.emplace_back(static_cast<size_t>(acts[i] * max_rows), 0.0f);
            program->buffers.push_back({program->own.back().data(), acts[i] * max_rows * 4});
        }
        program->memory = static_cast<int64_t>(program->buffers.size());
        program->buffers.resize(program->buffers.size() + static_cast<size_t>(memory_count), Buffer{nullptr, 0});
        program->ops.assign(ops, ops + op_count);
        int64_t widest = 1, most_splits = 1;
        for (const Op& op : program->ops) {
            if (op.n[9] < 0 || op.n[9] > numbers - 8) checker.fail("operation %d has no place %lld", op.kind, (long long)op.n[9]);
            if (checker.ok) checker.check(op);
            if (!checker.ok) break;
            if (op.kind == LINEAR || op.kind == EMBED) widest = widest > op.n[1] ? widest : op.n[1];
            if (op.kind == ATTEND) most_splits = most_splits > op.n[0] / op.n[1] ? most_splits : op.n[0] / op.n[1];
        }
        if (checker.ok)
            for (Thread& thread : program->scratch) {
                thread.floats.resize(static_cast<size_t>(most_splits * 128 + 64));
                thread.shorts.resize(static_cast<size_t>(widest * max_rows + 128));
                thread.scales.resize(static_cast<size_t>(2 * (widest / 8 + 2) * (max_rows + 1) + 128));
            }
    } catch (const std::bad_alloc&) {
        checker.fail("there is not enough memory");
    }
    if (checker.ok) return program;
    delete program;
    return nullptr;
}

YEOUL_API void yeoul_free(void* handle) { delete static_cast<Program*>(handle); }

// The tensors of a cache, and rows of tables that grow with it (`op`, `number`, `value`); 0 where everything fits.
YEOUL_API int yeoul_bind(void* handle, int64_t rows, const Buffer* memory, int64_t count, const int64_t* sizes, int64_t size_count,
                         char* error, int64_t size) {
    Program& p = *static_cast<Program*>(handle);
    Checker checker(p, error, size);
    p.bound = 0;
    if (count != static_cast<int64_t>(p.buffers.size()) - p.memory) checker.fail("there are %lld tensors", (long long)count);
    if (rows < 1 || rows > p.max_rows) checker.fail("there are %lld rows", (long long)rows);
    if (!checker.ok) return 1;
    for (int64_t i = 0; i < count; ++i) p.buffers[p.memory + i] = memory[i];
    for (int64_t i = 0; i < size_count; ++i) {
        const int64_t op = sizes[3 * i], number = sizes[3 * i + 1];
        const int32_t kind = op < 0 || op >= static_cast<int64_t>(p.ops.size()) ? KINDS : p.ops[op].kind;
        if (!(kind == PUSH && number == 2) && !(kind == ATTEND && number == 3) && !(kind == ROPE && number == 4)) {
            checker.fail("there is no size %lld of operation %lld", (long long)number, (long long)op);
            return 1;
        }
        p.ops[op].n[number] = sizes[3 * i + 2];
    }
    const int64_t most = p.max_rows;
    p.max_rows = p.bound = rows;  // memory has this many
    for (const Op& op : p.ops)
        if (checker.ok) checker.check(op);
    p.max_rows = most, p.bound = checker.ok ? rows : 0;
    return checker.ok ? 0 : 1;
}

// One token of each row, or several of one text (`order`); places that are not shared come one set behind the other. Logits are the activation `result`, of which (rows, width) numbers are copied out.
YEOUL_API int yeoul_run(void* handle, int64_t rows, int64_t order, const int64_t* tokens, const int64_t* positions, const int64_t* places,
                        int64_t result, float* out, int64_t width, char* error, int64_t size) {
    Program& p = *static_cast<Program*>(handle);
    Checker checker(p, error, size);
    if (!p.bound) checker.fail("no memory is bound");
    if (order < IN_STEP || order > APART) checker.fail("there is no order %lld", (long long)order);
    if (rows < 1 || rows > (order == ONE_TEXT ? p.max_rows : p.bound)) checker.fail("there are %lld rows", (long long)rows);
    if (result < p.constants || result >= p.memory || width < 0) checker.fail("there is no result %lld", (long long)result);
    if (checker.ok && p.buffers[result].bytes < rows * width * 4) checker.fail("the result has no %lld numbers", (long long)width);
    const Run run{rows, tokens, positions, places, order == APART ? p.places : 0, order == ONE_TEXT};
    if (!checker.ok || !fits_tokens(p, run, error, size)) return 1;
    for (int64_t i = 0; i < (order == IN_STEP ? 1 : rows); ++i)
        if (!fits_places(p, places + i * p.places, error, size)) return 1;
    if (p.threads == 1) {
        p.execute(p, run, 0);
    } else {
        std::unique_lock<std::mutex> lock(pool_mutex);
        if (!pool || pool_process != static_cast<int>(getpid()) || pool->size() < p.threads) {
            // after a fork the threads are gone, and the old pool cannot be joined
            if (pool && pool_process == static_cast<int>(getpid())) delete pool;
            pool = new Pool(p.threads);
            pool_process = static_cast<int>(getpid());
        }
        pool->run(p, run);
    }
    memcpy(out, p.buffers[result].data, static_cast<size_t>(rows * width * 4));
    return 0;
}
