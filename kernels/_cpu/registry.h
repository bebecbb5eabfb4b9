// How an operator's C++ reaches Python: one calling convention, one table, no change to bindings/ for a new operator.
#pragma once
#include <cstdint>

namespace kiln {

// What Python passes: raw pointers, sizes and flags, and real-valued options, in the order the operator documents.
struct Arguments {
    void* const* pointers;
    const int64_t* integers;
    const double* floats;

    template <class T> T* pointer(int i) const { return static_cast<T*>(pointers[i]); }
    int integer(int i) const { return static_cast<int>(integers[i]); }
};

struct Entry {
    const char* name;
    void (*function)(const Arguments&);
    int isa;  // 0 baseline, 1 AVX2 + FMA, 2 AVX-512
};

}  // namespace kiln

#ifndef KILN_ISA
#error "compile with -DKILN_ISA=0|1|2 (setup.py does)"
#endif
#define KILN_CONCAT_(a, b) a##b
#define KILN_CONCAT(a, b) KILN_CONCAT_(a, b)
// Everything an instruction set compiles lives in its own namespace, so the linker never mixes them.
#define KILN_NAMESPACE KILN_CONCAT(isa, KILN_ISA)

// Entries are constants in a linker section: no code of a set runs on a machine that lacks it.
#define KILN_REGISTER(op)                                                                                     \
    static const ::kiln::Entry KILN_CONCAT(kiln_entry_##op##_, KILN_ISA) = {                                  \
        #op, ::kiln::KILN_NAMESPACE::op, KILN_ISA};                                                           \
    __attribute__((section("kiln_entries"), used))                                                            \
    static const ::kiln::Entry* const KILN_CONCAT(kiln_pointer_##op##_, KILN_ISA) =                           \
        &KILN_CONCAT(kiln_entry_##op##_, KILN_ISA);
