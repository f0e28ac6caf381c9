// SPDX-License-Identifier: BSD-3-Clause
//
// filetimer.hpp - stop a worker that hangs, in C++17
// ==================================================
//
// ```cpp
// void step()
// {
//     filetimer::expires guard{60s};   // killed, unless the scope is left within 60 s
//     might_hang();
// }
// ```
//
// A thin layer on filetimer.h, which is where everything is explained: what an
// expired timer does, how the pipe is found, what may block, errors, threads,
// signals, processes. The guard takes its timer back however the scope is left,
// exceptions included; its constructor and destructor throw nothing and allocate
// nothing.
//
// ```cpp
// filetimer::client other{"/run/job/timers", SIGABRT};   // another pipe
// filetimer::expires guard{1500ms, "all-reduce", other}; // a scope by name
// if (guard.error())
//     std::cerr << "not guarded: " << guard.error().message() << '\n';
// might_hang();
// guard.extend(1500ms);                                  // 1.5 s from now
// might_hang();
//
// // What people are to see with a timer: names and values, of all timers or of one.
// filetimer::attributes about;
// about.set("rank", 3).set("device", "cuda:1");
// filetimer::set_attributes(about);
// about.set("step", 120);
// filetimer::expires inner{60s, "step", about};
// ```
#ifndef FILETIMER_HPP
#define FILETIMER_HPP

#include "filetimer.h"

#if !defined(__cplusplus) || __cplusplus < 201703L
#error "filetimer.hpp needs C++17: compile with -std=c++17 or later, or use filetimer.h"
#endif

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <system_error>
#include <type_traits>
#if defined(__has_include)
#if __has_include(<version>)
#include <version>
#endif
#endif
#if defined(__cpp_lib_source_location)
#include <source_location>
#endif

namespace filetimer {
// Told apart as in filetimer.h, so that translation units which differ in
// FILETIMER_DISABLE may be linked together.
#if defined(FILETIMER_DISABLE)
inline namespace abi1_disabled {
#else
inline namespace abi1 {
#endif

#if defined(__cpp_lib_source_location)
using location = std::source_location;
#else
// What of std::source_location a guard uses, before C++20.
class location {
public:
    static constexpr location current(const char* file = __builtin_FILE(),
                                      unsigned line = __builtin_LINE()) noexcept
    {
        return location{file, line};
    }
    constexpr const char* file_name() const noexcept { return file_; }
    constexpr unsigned line() const noexcept { return line_; }

private:
    constexpr location(const char* file, unsigned line) noexcept : file_{file}, line_{line} {}
    const char* file_;
    unsigned line_;
};
#endif

// Names and values that a timer shows to people; at most eight, and 256 bytes.
class attributes {
public:
    // Add one. A name stays what it was set to first. See error().
    attributes& set(const char* name, const char* value) noexcept
    {
        return keep(filetimer_attribute_string(&attributes_, name, value));
    }
    template <class Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
    attributes& set(const char* name, Integer value) noexcept
    {
        return keep(filetimer_attribute_int(&attributes_, name,
                                            static_cast<std::int64_t>(value)));
    }

    // Why the first one that was not added was not.
    std::error_code error() const noexcept { return {-error_, std::generic_category()}; }
    const filetimer_attributes* get() const noexcept { return &attributes_; }

private:
    filetimer_attributes attributes_{};
    int error_{0};

    attributes& keep(int result) noexcept
    {
        if (result < 0 && error_ == 0)
            error_ = result;
        return *this;
    }
};

// What all timers of the default client that begin from now on say of themselves.
inline void set_attributes(const attributes& about) noexcept
{
    filetimer_set_attributes(nullptr, about.get());
}

// A client of one's own, for another pipe or another signal than the default's.
// It must outlive its guards.
class client {
public:
    // No path asks the environment. See filetimer_init.
    explicit client(const char* path = nullptr, int signum = 9 /* SIGKILL */,
                    unsigned flags = 0) noexcept
        : result_{filetimer_init(&client_, path, signum, flags)}
    {
    }
    ~client() { filetimer_close(&client_); }
    client(const client&) = delete;
    client& operator=(const client&) = delete;

    // Whether there was a pipe at construction; without one, each call looks again.
    std::error_code error() const noexcept
    {
        return {result_ < 0 ? -result_ : 0, std::generic_category()};
    }
    bool configured() noexcept { return filetimer_configured(&client_) > 0; }
    filetimer_client* get() noexcept { return &client_; }

    // What all its timers that begin from now on say of themselves.
    void set(const attributes& about) noexcept { filetimer_set_attributes(&client_, about.get()); }

private:
    filetimer_client client_;
    int result_;
};

// A guarded scope. It stands for a block of code, and so it lives on the stack
// and is neither copied, moved nor allocated.
class [[nodiscard]] expires {
public:
    // The longest name of a scope, in bytes. The guard keeps a copy, for a view
    // may be of something that is gone when the timer is taken back.
    static constexpr std::size_t scope_max = 512;

    // The scope is file#line, of which the end is kept if it is too long.
    template <class Rep, class Period>
    explicit expires(std::chrono::duration<Rep, Period> after,
                     const location& where = location::current()) noexcept
        : expires{after, nullptr, where}
    {
    }
    template <class Rep, class Period>
    expires(std::chrono::duration<Rep, Period> after, client& on,
            const location& where = location::current()) noexcept
        : expires{after, on.get(), where}
    {
    }

    // A scope by name. One longer than scope_max is refused with EMSGSIZE.
    template <class Rep, class Period>
    expires(std::chrono::duration<Rep, Period> after, std::string_view scope) noexcept
    {
        begin(seconds(after), nullptr, scope);
    }
    template <class Rep, class Period>
    expires(std::chrono::duration<Rep, Period> after, std::string_view scope, client& on) noexcept
    {
        begin(seconds(after), on.get(), scope);
    }

    // With attributes of its own in place of the client's; `about` must outlive it.
    template <class Rep, class Period>
    expires(std::chrono::duration<Rep, Period> after, std::string_view scope,
            const attributes& about) noexcept
    {
        begin(seconds(after), nullptr, scope, about.get());
    }
    template <class Rep, class Period>
    expires(std::chrono::duration<Rep, Period> after, std::string_view scope, client& on,
            const attributes& about) noexcept
    {
        begin(seconds(after), on.get(), scope, about.get());
    }

    ~expires() { filetimer_end(&timer_); }

    expires(const expires&) = delete;
    expires& operator=(const expires&) = delete;
    static void* operator new(std::size_t) = delete;
    static void* operator new[](std::size_t) = delete;

    // Move the deadline to `after` from now. If that fails, the old one stays.
    template <class Rep, class Period>
    std::error_code extend(std::chrono::duration<Rep, Period> after) noexcept
    {
        filetimer_extend(&timer_, seconds(after));
        return error();
    }

    // Take the timer back before the scope ends.
    std::error_code end() noexcept
    {
        filetimer_end(&timer_);
        return error();
    }

    // What became of the last of construction, extend and end.
    std::error_code error() const noexcept { return {-timer_.error, std::generic_category()}; }

    // True while the server has the timer: false when not configured, too.
    bool armed() const noexcept { return timer_.armed != 0; }

private:
    filetimer_handle timer_;
    char scope_[scope_max];

    template <class Rep, class Period>
    expires(std::chrono::duration<Rep, Period> after, filetimer_client* on,
            const location& where) noexcept
    {
        // A program that is not configured must not pay for the text.
        if (filetimer_configured(on) > 0)
            begin(seconds(after), on, name(where));
        else
            timer_ = filetimer_handle{};
    }

    template <class Rep, class Period>
    static double seconds(std::chrono::duration<Rep, Period> after) noexcept
    {
        return std::chrono::duration_cast<std::chrono::duration<double>>(after).count();
    }

    // Every constructor ends here: all of timer_ is set, whatever the result.
    void begin(double after, filetimer_client* on, std::string_view scope,
               const filetimer_attributes* about = nullptr) noexcept
    {
        if (scope.size() > scope_max) {
            timer_ = filetimer_handle{};
            timer_.error = -static_cast<int>(std::errc::message_size);
            return;
        }
        if (scope.data() != scope_)
            std::memcpy(scope_, scope.data(), scope.size());
        filetimer_begin_with_n_(&timer_, on, scope_, scope.size(), after, FILETIMER_DEFAULT_WAIT,
                                about);
    }

    // file#line, written from its end.
    std::string_view name(const location& where) noexcept
    {
        char* const end = scope_ + scope_max;
        char* at = end;
        auto line = where.line();
        do
            *--at = static_cast<char>('0' + line % 10);
        while ((line /= 10) != 0);
        *--at = '#';
        const std::string_view file = where.file_name();
        const auto room = static_cast<std::size_t>(at - scope_);
        const std::size_t kept = file.size() < room ? file.size() : room;
        at -= kept;
        std::memcpy(at, file.data() + (file.size() - kept), kept);
        const auto length = static_cast<std::size_t>(end - at);
        std::memmove(scope_, at, length);
        return {scope_, length};
    }
};

} // inline namespace
} // namespace filetimer

#endif // FILETIMER_HPP
