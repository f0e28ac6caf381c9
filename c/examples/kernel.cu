// SPDX-License-Identifier: BSD-3-Clause
//
// CUDA host code that guards a kernel's launch and the wait for its stream: the
// two places where a process hangs when a device does. Timers are host code;
// device code neither sees nor pays for them. With "hang" the wait never ends.
//
//     nvcc -Ic/include c/examples/kernel.cu -o kernel
//     FILETIMER_PATH=/run/job/timers ./kernel [hang]
//
// Without nvcc it compiles as C++ (-x c++ -std=c++17), with the stub below in
// place of the CUDA runtime: the timers are the same.
#include <filetimer.hpp>

#include <cstdio>
#include <cstring>
#include <unistd.h>

using namespace std::chrono_literals;

#if defined(__CUDACC__)

__global__ void scale(float* values, float factor, int count, const volatile int* gate)
{
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    while (gate != nullptr && *gate == 0) // what "hang" waits for
        ;
    if (i < count)
        values[i] *= factor;
}

static void launch(float* values, int count, const int* gate, cudaStream_t stream)
{
    scale<<<static_cast<unsigned>(count + 255) / 256, 256, 0, stream>>>(values, 2.0f, count,
                                                                      gate);
}

#else // a runtime of five functions, whose stream is the calling thread

using cudaStream_t = const int*;
enum cudaError_t { cudaSuccess };

template <class T>
static cudaError_t cudaMallocManaged(T** memory, std::size_t size)
{
    static char arena[1 << 16];
    static std::size_t used = 0;
    *memory = reinterpret_cast<T*>(arena + used);
    used += (size + 255) / 256 * 256;
    return cudaSuccess;
}
static cudaError_t cudaStreamCreate(cudaStream_t* stream)
{
    *stream = nullptr;
    return cudaSuccess;
}
static cudaError_t cudaGetLastError()
{
    return cudaSuccess;
}
static cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    while (stream != nullptr && *stream == 0)
        pause();
    return cudaSuccess;
}
static const char* cudaGetErrorString(cudaError_t)
{
    return "no error";
}
static void launch(float* values, int count, const int* gate, cudaStream_t& stream)
{
    stream = gate;
    for (int i = 0; i < count; ++i)
        values[i] *= 2.0f;
}

#endif

static bool failed(cudaError_t error, const char* what)
{
    if (error != cudaSuccess)
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    return error != cudaSuccess;
}

int main(int argc, char** argv)
{
    const bool hang = argc > 1 && std::strcmp(argv[1], "hang") == 0;
    const int count = 1024;
    float* values = nullptr;
    int* gate = nullptr;
    cudaStream_t stream{};
    if (failed(cudaMallocManaged(&values, count * sizeof *values), "memory") ||
        failed(cudaMallocManaged(&gate, sizeof *gate), "memory") ||
        failed(cudaStreamCreate(&stream), "stream"))
        return 1;
    *gate = 0;
    for (int i = 0; i < count; ++i)
        values[i] = 1.0f;

    {
        filetimer::expires guard{1s, "launch"}; // the driver may hang
        launch(values, count, hang ? gate : nullptr, stream);
        if (failed(cudaGetLastError(), "launch"))
            return 1;
    }
    {
        filetimer::expires guard{1s, "synchronize"}; // and so may the device
        if (failed(cudaStreamSynchronize(stream), "synchronize"))
            return 1;
    }
    std::printf("%g\n", static_cast<double>(values[count - 1]));
    return 0;
}
