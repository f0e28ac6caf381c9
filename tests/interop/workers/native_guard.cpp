// A block that is guarded in C++, and may get stuck.
#include <unistd.h>

#include "filetimer.hpp"

extern "C" void guarded_block(double seconds, int stuck)
{
    filetimer::expires guard{std::chrono::duration<double>(seconds), "in C++"};
    if (stuck)
        pause();
}
