// SPDX-License-Identifier: BSD-3-Clause
//
// An operator of a torch extension that guards itself, and deadlocks on request
// while it holds the GIL: no Python thread of the process can then do anything,
// a watchdog in Python included. A server outside kills it.
//
//     from torch.utils.cpp_extension import load
//     op = load("op", ["torch_extension.cpp"], extra_include_paths=[<where filetimer.hpp is>])
//     op.scale(tensor, 2.0, False)
//
// Under torchrun with TORCHELASTIC_ENABLE_FILE_TIMER=1 nothing else is needed:
// torchrun sets TORCHELASTIC_TIMER_FILE, and its server reads these timers.
#include <filetimer.hpp>

#include <torch/extension.h>

#include <condition_variable>
#include <mutex>

static torch::Tensor scale(const torch::Tensor& input, double factor, bool hang)
{
    using namespace std::chrono_literals;
    filetimer::expires guard{1s};
    if (hang) {
        std::mutex mutex;
        std::condition_variable never;
        std::unique_lock<std::mutex> lock{mutex};
        for (;;)
            never.wait(lock); // nobody will notify it
    }
    return input * factor;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module)
{
    // No gil_scoped_release: the GIL stays with the caller.
    module.def("scale", &scale);
}
