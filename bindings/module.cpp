// engine._native: calls an operator's C++ by name on raw addresses. It knows nothing of torch and no operator.
#include <sys/mman.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "../kernels/_cpu/parallel.h"
#include "../kernels/_cpu/registry.h"
#include "../kernels/_cpu/scratch.h"

namespace py = pybind11;
using kiln::Entry;

extern "C" {
extern const Entry* const __start_kiln_entries[];
extern const Entry* const __stop_kiln_entries[];
}

namespace kiln {

constexpr int64_t LARGE_PAGE = 2 << 20;  // bytes

float* scratch(Slot slot, int64_t floats) {
    struct Buffer {
        float* data = nullptr;
        int64_t size = 0;
        ~Buffer() { std::free(data); }
        void empty() {
            std::free(data);
            data = nullptr, size = 0;
        }
    };
    static thread_local Buffer buffers[int(Slot::COUNT)];
    Buffer& buffer = buffers[int(slot)];
    if (buffer.size < floats) {
        buffer.empty();  // the memory may be needed; and where the new is not to be had, the next call finds no old size
        if (floats > (INT64_MAX - 63) / 4) throw std::bad_alloc();
        // a large buffer in large pages, where the system has them: transforms write to many places of it at a time
        const int64_t page = floats * 4 < LARGE_PAGE ? 64 : LARGE_PAGE, bytes = (floats * 4 + page - 1) / page * page;
        buffer.data = static_cast<float*>(std::aligned_alloc(page, bytes));
        if (!buffer.data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        if (page == LARGE_PAGE) madvise(buffer.data, bytes, MADV_HUGEPAGE);
#endif
        buffer.size = floats;
    }
    return buffer.data;
}

void refuse(const char* what) { throw std::invalid_argument(what); }

int wanted_threads() { return omp_get_max_threads(); }

void share_out(int64_t parts, Sharing sharing, void (*run)(const void*, int64_t, int64_t), const void* body) {
    std::exception_ptr thrown;  // one that left a parallel region would end the process
    std::atomic_flag is_thrown = ATOMIC_FLAG_INIT;
    const auto guarded = [&](int64_t first, int64_t last) {
        try {
            run(body, first, last);
        } catch (...) {
            if (!is_thrown.test_and_set()) thrown = std::current_exception();
        }
    };
#pragma omp parallel if (parts > 1)
    if (sharing == Sharing::EVENLY) {
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        guarded(parts * thread / threads, parts * (thread + 1) / threads);
    } else {
#pragma omp for schedule(dynamic) nowait
        for (int64_t part = 0; part < parts; ++part) guarded(part, part + 1);
    }
    if (thrown) std::rethrow_exception(thrown);
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

// A native function: its arguments in the order of its struct, and its code for the best set up to each number.
class Function {
  public:
    explicit Function(const std::string& name) : name_(name) {
        for (auto at = __start_kiln_entries; at != __stop_kiln_entries; ++at)
            if ((*at)->name == name) code_[(*at)->isa] = *at;
        for (int isa = 1; isa < 3; ++isa)
            if (!code_[isa]) code_[isa] = code_[isa - 1];
        if (!code_[0]) throw std::invalid_argument("no native function '" + name + "'");
        declare(code_[0]->arguments);
    }

    void operator()(int threads, const py::dict& given) const {
        uint64_t words[MOST];
        size_t count = 0;
        for (const Argument& argument : arguments_) {
            PyObject* value = PyDict_GetItemWithError(given.ptr(), argument.name.ptr());
            if (!value) refuse(given);
            if (value == Py_None && argument.type != 'O') refuse(argument, "is None");
            words[count] = argument.word(value);
            if (!words[count] && argument.is_missing(value))
                refuse(argument, "has elements but no memory: its storage was freed");
            if (words[count++] > argument.most()) {
                const std::string bounds = "; it must lie in 0 .. " + std::to_string(argument.most());
                refuse(argument, "is " + std::string(py::str(value)) + bounds);
            }
        }
        if (given.size() != count) refuse(given);
        if (threads < 1) throw py::value_error("native function " + name_ + ": no threads");
        const Entry* entry = code_[std::min(machine_isa(), limit)];
        py::gil_scoped_release release;
        if (omp_get_max_threads() != threads) omp_set_num_threads(threads);
        entry->function(words);
    }

    const std::string& name() const { return name_; }

  private:
    static constexpr size_t MOST = 64;

    struct Argument {
        py::str name;  // interned, as are the keys of keyword arguments
        char type;     // the first letter of Pointer, Optional, Integer, Size, Real

        uint64_t most() const {
            return type == 'S' ? kiln::Size::MOST : type == 'I' ? INT64_MAX : UINT64_MAX;
        }

        // Whether `value`, whose word is 0, is a tensor that is to be read all the same.
        bool is_missing(PyObject* value) const {
            return (type == 'P' || type == 'O') && value != Py_None && py::handle(value).attr("numel")().cast<int64_t>();
        }

        uint64_t word(PyObject* value) const {
            uint64_t word = 0;
            if (type == 'R') {
                const double real = PyFloat_AsDouble(value);
                std::memcpy(&word, &real, sizeof word);
            } else if (type == 'I' || type == 'S') {
                word = static_cast<uint64_t>(PyLong_AsLongLong(value));
            } else if (value != Py_None) {
                static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
                const auto address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(value, data_ptr));
                word = address ? PyLong_AsUnsignedLongLong(address.ptr()) : 0;
            }
            if (PyErr_Occurred()) throw py::error_already_set();
            return word;
        }
    };

    // text: "Pointer x, y; Integer n;"
    void declare(const std::string& text) {
        char type = 0;
        std::string word;
        for (const char c : text) {
            if (std::isalnum(static_cast<unsigned char>(c)) || c == '_') {
                word += c;
            } else if (c == ',' || c == ';') {
                arguments_.push_back({py::reinterpret_steal<py::str>(PyUnicode_InternFromString(word.c_str())), type});
                if (c == ';') type = 0;
                word.clear();
            } else if (c == ' ' && !type && !word.empty()) {
                type = word[0];
                word.clear();
            }
        }
        if (arguments_.size() > MOST) throw std::logic_error(name_ + " has too many arguments");
    }

    [[noreturn]] void refuse(const Argument& argument, const std::string& what) const {
        throw py::value_error("native function " + name_ + ": " + std::string(argument.name) + " " + what);
    }

    [[noreturn]] void refuse(const py::dict& given) const {
        std::string takes, missing, unknown;
        std::set<std::string> known;
        for (const Argument& argument : arguments_) {
            const std::string name = argument.name;
            known.insert(name);
            takes += (takes.empty() ? "" : ", ") + name;
            if (!given.contains(argument.name)) missing += (missing.empty() ? "" : ", ") + name;
        }
        for (const auto& item : given)
            if (!known.count(py::str(item.first))) unknown += (unknown.empty() ? "" : ", ") + std::string(py::str(item.first));
        std::string message = "native function " + name_ + " takes " + takes;
        if (!missing.empty()) message += "; missing: " + missing;
        if (!unknown.empty()) message += "; unknown: " + unknown;
        throw py::type_error(message);
    }

    std::string name_;
    const Entry* code_[3] = {};
    std::vector<Argument> arguments_;
};

// Calls the Function in the capsule `self` with a number of threads and a dictionary: the shortest way from Python.
PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
    const auto function = static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
    try {
        if (count != 2 || !PyDict_Check(given[1])) throw py::type_error("takes a number of threads and a dictionary");
        (*function)(int(PyLong_AsLong(given[0])), py::reinterpret_borrow<py::dict>(given[1]));
        Py_RETURN_NONE;
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_Format(PyExc_MemoryError, "native function %s: no memory is left for its sums", function->name().c_str());
    } catch (const std::invalid_argument& error) {
        PyErr_Format(PyExc_ValueError, "native function %s: %s", function->name().c_str(), error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

py::object function(const std::string& name) {
    static PyMethodDef definition = {"native_function", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call)),
                                     METH_FASTCALL, nullptr};
    const py::capsule self(new Function(name), [](void* held) { delete static_cast<Function*>(held); });
    return py::reinterpret_steal<py::object>(PyCFunction_New(&definition, self.ptr()));
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
    m.def("function", &function,
          "The native function of this name: takes a number of threads and a dictionary of its arguments; runs without "
          "the GIL. A pointer is given as what has data_ptr(), or None.");
    m.def("functions", &functions, "Names of the native functions.");
    m.def("machine_isa", [] { return ISA_NAMES[machine_isa()]; }, "The best instruction set of this machine.");
    m.def("isa", [] { return ISA_NAMES[std::min(machine_isa(), limit)]; }, "The instruction set in use.");
    m.def("limit_isa", [](const std::string& name) { limit = isa_number(name); }, "Caps the instruction set.");
    m.attr("compiler") = __VERSION__;
}
