"""The null GPU of rehearsals keeps CUDA's rules where a rehearsal can break them."""

import ctypes
import shutil
from ctypes import byref, c_float, c_int, c_void_p

import pytest

from benchmarks.gpu.rehearsal import __main__ as rehearsal

UNSUPPORTED, INVALIDATED, ACTIVE = 900, 901, 1  # of cudaError_t and cudaStreamCaptureStatus
TO_HOST, HOST = 2, 1  # of cudaMemcpyKind and cudaMemoryType


@pytest.fixture(scope="module")
def cuda(tmp_path_factory) -> ctypes.CDLL:
    """The null GPU, compiled here without what only torch's libraries ask for."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    try:
        include = rehearsal.headers()
    except rehearsal.NotHere as error:
        pytest.skip(str(error))
    library = tmp_path_factory.mktemp("null-gpu") / "libcuda.so.1"
    source = str(rehearsal.HERE / "null_gpu.c")
    rehearsal.output(
        compiler, "-shared", "-fPIC", "-w", f"-I{include}", "-o", str(library), source, "-ldl", "-lpthread"
    )
    return ctypes.CDLL(str(library))


def stream_of(cuda: ctypes.CDLL) -> c_void_p:
    stream = c_void_p()
    assert cuda.cudaStreamCreate(byref(stream)) == 0
    return stream


def test_a_recording(cuda):
    stream, graph, status = stream_of(cuda), c_void_p(), c_int()
    assert cuda.cudaStreamBeginCapture(stream, 1) == 0
    assert cuda.cudaStreamIsCapturing(stream, byref(status)) == 0 and status.value == ACTIVE
    assert cuda.cudaStreamEndCapture(stream, byref(graph)) == 0 and graph.value
    assert cuda.cudaStreamSynchronize(stream) == cuda.cudaDeviceSynchronize() == 0


def test_waiting_spoils_a_recording(cuda):
    stream, graph = stream_of(cuda), c_void_p()
    assert cuda.cudaStreamBeginCapture(stream, 1) == 0
    assert cuda.cudaDeviceSynchronize() == UNSUPPORTED
    assert cuda.cudaStreamSynchronize(stream) == UNSUPPORTED == cuda.cudaPeekAtLastError()
    assert cuda.cudaStreamEndCapture(stream, byref(graph)) == INVALIDATED and not graph.value
    assert cuda.cudaStreamBeginCapture(stream, 1) == cuda.cudaStreamEndCapture(stream, byref(graph)) == 0
    assert cuda.cudaStreamBeginCapture(None, 1) == UNSUPPORTED, "the default stream cannot be recorded"


def test_memory(cuda):
    there, host, copied = c_void_p(), c_void_p(), (c_int * 4)()
    given = (c_int * 4)(1, 2, 3, 4)
    assert cuda.cudaMalloc(byref(there), ctypes.c_size_t(16)) == 0
    assert cuda.cudaHostAlloc(byref(host), ctypes.c_size_t(16), 0) == 0
    assert cuda.cudaMemcpyAsync(there, given, ctypes.c_size_t(16), 1, None) == 0
    assert cuda.cudaMemcpyAsync(copied, there, ctypes.c_size_t(16), TO_HOST, None) == 0
    assert list(copied) == [1, 2, 3, 4]
    attributes = (c_int * 64)()
    assert cuda.cudaPointerGetAttributes(attributes, host) == 0 and attributes[0] == HOST
    assert cuda.cudaFree(there) == cuda.cudaFreeHost(host) == 0
    assert cuda.cudaPointerGetAttributes(attributes, host) == 0 and attributes[0] == 0


def test_events_have_times(cuda):
    start, end, took = c_void_p(), c_void_p(), c_float()
    for event in (start, end):
        assert cuda.cudaEventCreate(byref(event)) == cuda.cudaEventRecord(event, None) == 0
    assert cuda.cudaEventElapsedTime(byref(took), start, end) == 0 and took.value > 0


def test_what_a_rehearsal_lacks_is_one_line(monkeypatch, tmp_path, capsys):
    assert rehearsal.main([]) == 2 and "MODULE ARGUMENTS" in capsys.readouterr().err
    (tmp_path / "lib").mkdir()
    monkeypatch.setattr(rehearsal, "package", lambda name: tmp_path)
    assert rehearsal.main(["pytest"]) == 2
    assert "this torch is built for the CPU" in capsys.readouterr().err
    (tmp_path / "lib" / "libtorch_cuda.so").touch()
    monkeypatch.setattr(rehearsal.Path, "is_file", lambda path: False)
    assert rehearsal.main(["pytest"]) == 2
    complaint = capsys.readouterr().err
    assert "name its folder by CUDA_HOME" in complaint and complaint.count("\n") == 1


def test_the_environment_of_a_rehearsal(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "before")
    found = rehearsal.environment(tmp_path / "libcuda.so.1")
    assert found["LD_PRELOAD"] == str(tmp_path / "libcuda.so.1") and found["LD_LIBRARY_PATH"] == f"{tmp_path}:before"
    assert found["PYTHONPATH"].split(":")[0].endswith("rehearsal/site")
