// How work is shared out among threads. OpenMP may give fewer threads than are asked for (in a region of another library,
// under a limit, on a busy machine), so work is cut into parts that belong to no thread: a part's number, never a
// thread's, tells what it computes and where its sums lie.
#pragma once
#include "vector.h"

namespace kiln {

// EVENLY: neighbouring parts go to one thread. TO_THE_NEXT: each part goes to the thread that is free first.
enum class Sharing { EVENLY, TO_THE_NEXT };

// How many threads are asked for. The parts, and so the order of sums, may depend on it; nothing on how many there are.
int wanted_threads();

// Calls run(body, first, last) on some threads until each of the parts 0 ... parts - 1 was in one range. The first
// exception of any thread is thrown again here, after all have ended.
void share_out(int64_t parts, Sharing sharing, void (*run)(const void* body, int64_t first, int64_t last), const void* body);

namespace KILN_NAMESPACE {

// Calls body(part) for the parts 0 ... parts - 1, in any order, several at a time.
template <Sharing SHARING = Sharing::EVENLY, class Body> static void for_parts(int64_t parts, const Body& body) {
    const auto run = [](const void* of, int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) (*static_cast<const Body*>(of))(part);
    };
    share_out(parts, SHARING, run, &body);
}

// sums[i] += the sums of parts 1 ... parts - 1, in this order; each part has `size` floats, a multiple of VL, after those
// of the part before.
static inline void add_up(float* sums, int64_t size, int parts) {
    constexpr int64_t BLOCK = 8192;  // added up by one thread sooner than another one is woken
    if (parts == 1) return;
    for_parts((size + BLOCK - 1) / BLOCK, [=](int64_t block) {
        const int64_t last = (block + 1) * BLOCK < size ? (block + 1) * BLOCK : size;
        for (int part = 1; part < parts; ++part)
            for (int64_t i = block * BLOCK; i < last; i += VL)
                store(sums + i, load(sums + i) + load(sums + part * size + i));
    });
}

}  // namespace KILN_NAMESPACE
}  // namespace kiln
