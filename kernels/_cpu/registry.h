// How an operator's C++ reaches Python: functions by name that take arguments by name. bindings/ knows no operator.
#pragma once
#include <cstdint>
#include <type_traits>

namespace kiln {

// What a native function takes, each eight bytes. bindings/ refuses what a type does not admit.
struct Pointer {  // the address of a tensor's first element; a tensor without elements may have none
    void* address;
    template <class T> operator T*() const { return static_cast<T*>(address); }
    explicit operator bool() const { return address; }
};
using Optional = Pointer;  // the same, or null: no tensor
using Integer = int64_t;   // a count or flag, not negative
struct Size {              // of an axis, from 0 to MOST, so that an int holds a hundred of them, or a band of such rows
    static constexpr int64_t MOST = 1 << 23;
    int64_t value;
    operator int() const { return int(value); }
};
using Real = double;  // an option

// Ends a call whose arguments do not go together: ValueError in Python.
[[noreturn]] void refuse(const char* what);

struct Entry {
    const char* name;
    const char* arguments;  // their declaration: "Pointer x, y; Integer n;"
    void (*function)(const void* arguments);
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

#define KILN_TEXT_(...) #__VA_ARGS__
#define KILN_TEXT(...) KILN_TEXT_(__VA_ARGS__)

// Defines and registers a native function. Its arguments are declared as the members of a struct:
//
//     KILN_FUNCTION(scale, Pointer x, y; Integer n; Real factor;) {
//         const float* x = arguments.x;
//         ...
//     }
//
// Python calls it with these names; bindings/ compares them at every call. Entries are constants in a linker section: to
// find them runs no code of an instruction set that the machine lacks.
#define KILN_FUNCTION(name, ...)                                                                    \
    struct name##_arguments {                                                                       \
        __VA_ARGS__                                                                                 \
    };                                                                                              \
    static_assert(std::is_standard_layout<name##_arguments>::value, "members are plain");           \
    static void name(const name##_arguments& arguments);                                            \
    static void name##_unpacked(const void* words) {                                                \
        name(*static_cast<const name##_arguments*>(words));                                         \
    }                                                                                               \
    static const ::kiln::Entry name##_entry = {#name, KILN_TEXT(__VA_ARGS__), &name##_unpacked, KILN_ISA}; \
    __attribute__((section("kiln_entries"), used)) static const ::kiln::Entry* const name##_listed = &name##_entry; \
    static void name(const name##_arguments& arguments)
