// SPDX-License-Identifier: BSD-3-Clause
//
// filetimer.hpp. Without arguments: that it compiles, and is what it says it is.
// With the path of a FIFO: send what test_native_client.py expects.
#include <filetimer.hpp>
#include <filetimer.hpp>

#include <csignal>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

using namespace std::chrono_literals;
using filetimer::expires;

static_assert(!std::is_copy_constructible_v<expires> && !std::is_copy_assignable_v<expires>);
static_assert(!std::is_move_constructible_v<expires> && !std::is_move_assignable_v<expires>);
#if !defined(__CUDACC__) // nvcc's front end does not see through the default argument
static_assert(std::is_nothrow_constructible_v<expires, std::chrono::seconds>);
static_assert(std::is_nothrow_constructible_v<expires, std::chrono::duration<double>>);
#endif
static_assert(
    std::is_nothrow_constructible_v<expires, std::chrono::hours, std::string_view>);
static_assert(std::is_nothrow_destructible_v<expires>);
static_assert(!std::is_constructible_v<expires, int>, "60 what?");

#if !defined(__CUDACC__) // nor does it take a deleted function for a failed substitution
template <class T, class = void>
struct can_be_allocated : std::false_type {};
template <class T>
struct can_be_allocated<T, std::void_t<decltype(T::operator new(sizeof(T)))>> : std::true_type {};
static_assert(!can_be_allocated<expires>::value);
#endif

static int failures = 0;

static void check(bool condition)
{
    failures += !condition;
}

static void unconfigured()
{
    expires guard{60s};
    check(!guard.error() && !guard.armed());
    check(!guard.extend(1s) && !guard.end());
}

#if !defined(FILETIMER_DISABLE)
static void throws(filetimer::client& client)
{
    expires guard{1min, "throws", client};
    throw std::runtime_error{"out of the block"};
}

static void send(const char* path)
{
    filetimer::client client{path, SIGTERM};
    check(!client.error() && client.configured());
    {
        expires guard{1500ms, client};
        check(guard.armed() && !guard.error());
    }
    {
        expires guard{1h, std::string(100, 'n') + "ame", client}; // a temporary
        check(!guard.extend(2h));
    }
    {
        expires guard{1s, std::string(expires::scope_max + 1, 'x'), client};
        check(!guard.armed() && guard.error() == std::errc::message_size);
    }
    {
        expires guard{1s, "ended", client};
        check(!guard.end() && !guard.armed() && !guard.end());
    }
    {
        filetimer::attributes about;
        about.set("rank", 3u).set("device", "cuda:1").set("rank", 4);
        check(about.error() == std::errc::file_exists);
        client.set(about);
        expires guard{1s, "attributes", client};
        filetimer::attributes own;
        own.set("step", std::int64_t{7});
        check(!own.error());
        expires inner{1s, "own attributes", client, own};
        client.set(filetimer::attributes{});
    }
    try {
        throws(client);
        check(false);
    } catch (const std::runtime_error&) {
    }
}
#endif

int main(int argc, char** argv)
{
    if (argc == 1)
        unconfigured();
#if !defined(FILETIMER_DISABLE)
    else
        send(argv[1]);
#else
    (void)argv;
#endif
    return failures;
}
