// A CUDA runtime and driver for rehearsals on a machine without a GPU. Memory of the device is memory of the host,
// copies are made, kernels do nothing, and recordings keep CUDA's rules: what waits for a stream that is being recorded
// fails and spoils the recording. Beside it extra.c (written by __main__.py) has the functions that need only succeed.
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
// some names are macros for those of a newer interface; libraries ask for both
#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo
#undef cuDevicePrimaryCtxRetain

enum { MULTIPROCESSORS = 132, MAJOR = 9, MINOR = 0, VERSION = 13000 };  // those of an H100, under CUDA 13
static const size_t MEMORY = 80ull << 30, FREE = 79ull << 30;
static const size_t CLEARED = 64 << 20;  // bytes of an allocation that are zero; the rest is what the host had there

static __thread cudaError_t last_error = cudaSuccess;
static cudaError_t fail(cudaError_t error) { return last_error = error; }

// streams and recordings

typedef struct {
    int recording, spoilt;
    unsigned long long id;
} Stream;

static Stream default_stream;
static unsigned long long recordings = 0;
static int open_recordings = 0;

static Stream *stream_of(cudaStream_t stream) {
    return (size_t)stream <= 2 ? &default_stream : (Stream *)stream;  // 0, 1 and 2 name the default stream
}

static cudaError_t wait_for(cudaStream_t stream) {
    Stream *one = stream_of(stream);
    if (!one->recording) return cudaSuccess;
    one->spoilt = 1;
    return fail(cudaErrorStreamCaptureUnsupported);
}

static enum cudaStreamCaptureStatus status_of(const Stream *stream) {
    if (!stream->recording) return cudaStreamCaptureStatusNone;
    return stream->spoilt ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = calloc(1, sizeof(Stream));
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for(stream); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return wait_for(stream); }
cudaError_t cudaDeviceSynchronize(void) {
    return open_recordings ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = status_of(stream_of(stream));
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *count) {
    *status = status_of(stream_of(stream));
    if (id) *id = stream_of(stream)->id;
    if (graph) *graph = (cudaGraph_t)8;
    if (count) *count = 0;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    Stream *one = stream_of(stream);
    if (one == &default_stream) return fail(cudaErrorStreamCaptureUnsupported);
    if (one->recording) return fail(cudaErrorIllegalState);
    *one = (Stream){1, 0, ++recordings};
    open_recordings++;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    Stream *one = stream_of(stream);
    if (!one->recording) return fail(cudaErrorIllegalState);
    one->recording = 0;
    open_recordings--;
    *graph = one->spoilt ? NULL : malloc(8);
    return one->spoilt ? fail(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags) {
    *ready = malloc(8);
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiateWithFlags(ready, graph, flags);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = 1;  // PyTorch warns of an empty graph
    return cudaSuccess;
}

// events: the host's clock where they are recorded

static double milliseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = calloc(1, sizeof(double));
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    *(double *)event = milliseconds();
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    return cudaEventRecord(event, stream);
}
cudaError_t cudaEventElapsedTime(float *took, cudaEvent_t start, cudaEvent_t end) {
    *took = (float)(*(double *)end - *(double *)start) + 1e-3f;
    return cudaSuccess;
}

// memory

enum { MOST = 1 << 20 };
typedef struct {
    char *start;
    size_t size;
    int on_host;
} Block;
static Block blocks[MOST];
static int count = 0;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static cudaError_t allocate(void **where, size_t size, int on_host) {
    size_t bytes = size ? size : 512;
    if (count == MOST || posix_memalign(where, 4096, (bytes + 4095) / 4096 * 4096))
        return fail(cudaErrorMemoryAllocation);
    memset(*where, 0, bytes < CLEARED ? bytes : CLEARED);
    pthread_mutex_lock(&lock);
    blocks[count++] = (Block){*where, bytes, on_host};
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
static cudaError_t release(void *where) {
    pthread_mutex_lock(&lock);
    for (int i = count - 1; i >= 0; i--)
        if (blocks[i].start == where) {
            blocks[i] = blocks[--count];
            break;
        }
    pthread_mutex_unlock(&lock);
    free(where);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **where, size_t size) { return allocate(where, size, 0); }
cudaError_t cudaMallocAsync(void **where, size_t size, cudaStream_t stream) { return allocate(where, size, 0); }
cudaError_t cudaHostAlloc(void **where, size_t size, unsigned flags) { return allocate(where, size, 1); }
cudaError_t cudaFree(void *where) { return release(where); }
cudaError_t cudaFreeAsync(void *where, cudaStream_t stream) { return release(where); }
cudaError_t cudaFreeHost(void *where) { return release(where); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    *free_bytes = FREE, *all = MEMORY;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < count; i++)
        if ((char *)pointer >= blocks[i].start && (char *)pointer < blocks[i].start + blocks[i].size) {
            attributes->type = blocks[i].on_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
            attributes->devicePointer = (void *)pointer;
            attributes->hostPointer = blocks[i].on_host ? (void *)pointer : NULL;
            break;
        }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    if (size && !stream_of(stream)->recording) memmove(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (open_recordings) return fail(cudaErrorStreamCaptureUnsupported);
    if (size) memmove(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyPeerAsync(void *to, int there, const void *from, int here, size_t size, cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDefault, stream);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    for (size_t row = 0; row < height; row++)
        cudaMemcpyAsync((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, kind, stream);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *where, int value, size_t size, cudaStream_t stream) {
    if (!stream_of(stream)->recording) memset(where, value, size);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *where, int value, size_t size) {
    memset(where, value, size);
    return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **where, const void *symbol) {
    static char room[1 << 16];
    *where = room;
    return cudaSuccess;
}

// the device

static int attribute(int which) {
    switch (which) {  // the driver's numbers are the runtime's
        case cudaDevAttrMultiProcessorCount: return MULTIPROCESSORS;
        case cudaDevAttrComputeCapabilityMajor: return MAJOR;
        case cudaDevAttrComputeCapabilityMinor: return MINOR;
        case cudaDevAttrMaxThreadsPerBlock: return 1024;
        case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 << 10;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
        case cudaDevAttrWarpSize: return 32;
        case cudaDevAttrClockRate: return 1755000;
        case cudaDevAttrMemoryClockRate: return 2619000;
        default: return 1;
    }
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    *value = attribute(which);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "Null H100");  // the predictions know an H100
    properties->major = MAJOR, properties->minor = MINOR;
    properties->multiProcessorCount = MULTIPROCESSORS;
    properties->totalGlobalMem = MEMORY;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024, properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 48 << 10, properties->sharedMemPerBlockOptin = 227 << 10;
    properties->sharedMemPerMultiprocessor = 228 << 10;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->l2CacheSize = 50 << 20;
    properties->maxBlocksPerMultiProcessor = 32;
    for (int i = 0; i < 3; i++) {
        properties->maxThreadsDim[i] = i == 2 ? 64 : 1024;
        properties->maxGridSize[i] = i ? 65535 : 2147483647;
    }
    properties->unifiedAddressing = properties->concurrentKernels = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *devices) {
    *devices = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device ? fail(cudaErrorInvalidDevice) : cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:00:00.0");
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) {
    *version = VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

// errors

cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
const char *cudaGetErrorName(cudaError_t error) { return "cudaErrorOfTheNullGpu"; }
const char *cudaGetErrorString(cudaError_t error) {
    if (error == cudaErrorStreamCaptureUnsupported) return "operation not permitted when stream is capturing";
    if (error == cudaErrorStreamCaptureInvalidated) return "operation failed due to a previous error during capture";
    return "an error of the null GPU";
}

// kernels, which do nothing

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->maxDynamicSharedSizeBytes = 48 << 10;
    attributes->ptxVersion = attributes->binaryVersion = 10 * MAJOR + MINOR;
    return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks_at_once, const void *function,
                                                                   int threads, size_t shared, unsigned flags) {
    *blocks_at_once = 2;
    return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned flags) {
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}
// what the compiler writes into every program with kernels
void **__cudaRegisterFatBinary(void *binary) { return malloc(8); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(void **handle, const char *function, char *device, const char *name, int limit, void *a,
                            void *b, void *c, void *d, int *size) {}
void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external, size_t size,
                       int constant, int global) {}
char __cudaInitModule(void **handle) { return 1; }
cudaError_t __cudaGetKernel(void **kernel, const void *function) {
    *kernel = (void *)function;
    return cudaSuccess;
}
static __thread struct {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
} configured;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    configured.grid = grid, configured.block = block, configured.shared = shared, configured.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = configured.grid, *block = configured.block, *shared = configured.shared;
    *(cudaStream_t *)stream = configured.stream;
    return cudaSuccess;
}

// the driver

CUresult cuDriverGetVersion(int *version) { return (CUresult)cudaDriverGetVersion(version); }
CUresult cuDeviceGetCount(int *devices) { return (CUresult)cudaGetDeviceCount(devices); }
CUresult cuDeviceGet(CUdevice *device, int number) { return (CUresult)cudaGetDevice(device); }
CUresult cuCtxGetDevice(CUdevice *device) { return (CUresult)cudaGetDevice(device); }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice device) {
    *value = attribute(which);
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = (CUcontext)8;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { return cuCtxGetCurrent(context); }
CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0, *active = 1;
    return CUDA_SUCCESS;
}
CUresult cuModuleLoad(CUmodule *module, const char *file) {
    *module = (CUmodule)8;
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule *module, const void *image) { return cuModuleLoad(module, ""); }
CUresult cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned options, CUjit_option *which, void **values) {
    return cuModuleLoad(module, "");
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = (CUfunction)8;
    return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction function) {
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
    *clusters = 1;
    return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks_at_once, CUfunction function, int threads,
                                                     size_t shared) {
    *blocks_at_once = 2;
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = "an error of the null GPU's driver";
    return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void *value, CUpointer_attribute which, CUdeviceptr pointer) {
    if (which == CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
        *(CUdeviceptr *)value = pointer;
    else
        *(int *)value = 0;
    return CUDA_SUCCESS;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *function = dlsym(RTLD_DEFAULT, name);
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
