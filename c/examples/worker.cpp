// SPDX-License-Identifier: BSD-3-Clause
//
// A worker in C++ whose threads guard their work, each with timers of its own:
// the same scope in four threads is four timers. With "hang", one thread waits
// for a lock that nobody gives back, and a server kills the worker for it.
//
//     c++ -std=c++17 -pthread -Ic/include c/examples/worker.cpp -o worker
//     FILETIMER_PATH=/run/job/timers ./worker [hang]
#include <filetimer.hpp>

#include <iostream>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

using namespace std::chrono_literals;

static void load(std::timed_mutex& lock, int batches)
{
    for (int batch = 0; batch < batches; ++batch) {
        filetimer::expires guard{1s, "load"};
        if (guard.error())
            std::cerr << "not guarded: " << guard.error().message() << '\n';
        const std::lock_guard<std::timed_mutex> held{lock};
        std::this_thread::sleep_for(1ms); // the work
    }
}

int main(int argc, char** argv)
{
    const bool hang = argc > 1 && std::string_view{argv[1]} == "hang";
    std::timed_mutex lock;
    if (hang)
        lock.lock(); // and never unlocked
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&lock] { load(lock, 5); });
    for (auto& thread : threads)
        thread.join();
    std::cout << "done\n";
}
