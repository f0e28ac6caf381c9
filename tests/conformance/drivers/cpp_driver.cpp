// The driver of filetimer.hpp (protocol/driver.md): its client and its guard.
//
// A guard lives on the stack by design. Here the runner says when a scope is entered and left, so
// each one is kept in an optional, whose emplace and reset are the two ends of the scope. All else
// is c_driver.c.
//
//     c++ -std=c++17 -I c/include cpp_driver.cpp -ljansson -lpthread
#include <filetimer.hpp>

#include <map>
#include <optional>
#include <string>

#define LANGUAGE "C++"
#define SUBJECT "filetimer.hpp"
#define NO_HANDLER "a guard may wait: signal handlers call filetimer_try_begin"

static filetimer_client* client();
static int client_open(const char* path);
static int guard_enter(const char* name, const char* scope, double after);
static int guard_leave(const char* name);

#include "c_driver.c"

static std::optional<filetimer::client> the_client;
static std::map<std::string, std::optional<filetimer::expires>> guards;

static filetimer_client* client()
{
    static filetimer_client none{};
    return the_client ? the_client->get() : &none;
}

static int client_open(const char* path)
{
    guards.clear();
    the_client.emplace(path);
    return the_client->error() ? -the_client->error().value() : the_client->configured();
}

static int guard_enter(const char* name, const char* scope, double after)
{
    using seconds = std::chrono::duration<double>;
    auto& guard = guards[name].emplace(seconds{after}, std::string_view{scope}, *the_client);
    return guard.error() ? -guard.error().value() : guard.armed();
}

static int guard_leave(const char* name)
{
    auto& guard = guards[name];
    return guard ? -guard->end().value() : 0;
}
