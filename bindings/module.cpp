// engine._native: calls an operator's C++ by name on raw addresses. It knows nothing of torch and of no operator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/_cpu/registry.h"
#include "../kernels/_cpu/scratch.h"

namespace py = pybind11;
using kiln::Entry;

extern "C" {
extern const Entry* const __start_kiln_entries[];
extern const Entry* const __stop_kiln_entries[];
}

namespace kiln {

float* scratch(Slot slot, int64_t floats) {
    struct Buffer {
        float* data = nullptr;
        int64_t size = 0;
        ~Buffer() { std::free(data); }
    };
    static thread_local Buffer buffers[int(Slot::COUNT)];
    Buffer& buffer = buffers[int(slot)];
    if (buffer.size < floats) {
        std::free(buffer.data);
        buffer.data = static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64));
        if (!buffer.data) throw std::bad_alloc();
        buffer.size = floats;
    }
    return buffer.data;
}

}  // namespace kiln

namespace {

const char* const ISA_NAMES[] = {"baseline", "avx2", "avx512"};

int machine_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return 1;
#endif
    return 0;
}

int isa_number(const std::string& name) {
    for (int i = 0; i < 3; ++i)
        if (name == ISA_NAMES[i]) return i;
    throw std::invalid_argument("instruction set '" + name + "' is not one of baseline, avx2, avx512");
}

int limit = 2;

// For each name, the function of the best set that this build and this machine have within the limit.
const Entry* find(const std::string& name) {
    static std::map<std::string, const Entry*> chosen;
    static int chosen_for = -1;
    const int highest = std::min(machine_isa(), limit);
    if (chosen_for != highest) {
        chosen.clear();
        for (auto at = __start_kiln_entries; at != __stop_kiln_entries; ++at) {
            const Entry* e = *at;
            const Entry*& best = chosen[e->name];
            if (e->isa <= highest && (!best || best->isa < e->isa)) best = e;
        }
        chosen_for = highest;
    }
    const auto found = chosen.find(name);
    if (found == chosen.end() || !found->second) throw std::invalid_argument("no native function '" + name + "'");
    return found->second;
}

void call(const std::string& name, int threads, const std::vector<uintptr_t>& pointers,
          const std::vector<int64_t>& integers, const std::vector<double>& floats) {
    const Entry* entry = find(name);
    py::gil_scoped_release release;
    if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
    entry->function({reinterpret_cast<void* const*>(pointers.data()), integers.data(), floats.data()});
}

std::vector<std::string> functions() {
    std::vector<std::string> names;
    for (auto at = __start_kiln_entries; at != __stop_kiln_entries; ++at)
        if ((*at)->isa == 0) names.emplace_back((*at)->name);
    return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Kiln's C++ operators on raw addresses; engine.kernels checks every argument before it calls.";
    m.def("call", &call, "Runs a native function with so many threads on addresses, integers and floats, without the GIL.");
    m.def("functions", &functions, "Names of the native functions.");
    m.def("machine_isa", [] { return ISA_NAMES[machine_isa()]; }, "The best instruction set of this machine.");
    m.def("isa", [] { return ISA_NAMES[std::min(machine_isa(), limit)]; }, "The instruction set in use.");
    m.def("limit_isa", [](const std::string& name) { limit = isa_number(name); }, "Caps the instruction set.");
    m.attr("compiler") = __VERSION__;
}
