/* SPDX-License-Identifier: BSD-3-Clause
 *
 * filetimer.h - stop a worker that hangs
 * ======================================
 *
 * Before a block that may hang, a worker says: "kill me if I have not said
 * otherwise by then". After the block it takes that back. It says so by writing
 * one line of JSON into a named pipe; a server on the same host reads the pipe
 * and kills a worker whose time is up. This header is the worker's side, whole:
 * there is nothing to link but the C library.
 *
 * ```c
 * FILETIMER_EXPIRES(60.0) {          // the 60 seconds start here
 *     might_hang();
 * }                                  // and are taken back here
 * ```
 *
 * That is enough. The pipe's path comes from the environment variable
 * FILETIMER_PATH, else TORCHELASTIC_TIMER_FILE (torchrun sets it). Where neither
 * is set nothing happens, in a few nanoseconds: instrument libraries freely.
 *
 * The same with a handle of your own, which can be extended, and a result:
 *
 * ```c
 * filetimer_handle timer;
 * int sent = filetimer_begin(&timer, NULL, "epoch", 60.0);
 * if (sent < 0)
 *     fprintf(stderr, "not guarded: %s\n", strerror(-sent));
 * for (int step = 0; step < 10; step++) {
 *     might_hang();
 *     filetimer_extend(&timer, 60.0);   // 60 seconds from now
 * }
 * filetimer_end(&timer);
 * ```
 *
 * And with a client of your own, for another pipe or another signal:
 *
 * ```c
 * static filetimer_client client;      // yours; lives as long as its timers
 * if (filetimer_init(&client, "/run/job/timers", SIGABRT, 0) < 0)
 *     fputs("no server yet; each call will look again\n", stderr);
 * filetimer_acquire(&client, "load", 30.0);
 * might_hang();
 * filetimer_release(&client, "load");
 * filetimer_close(&client);
 * ```
 *
 * Timers can say more of themselves, for people: it is shown in `filetimer list`,
 * in the server's events, and in its report on a worker that hung.
 *
 * ```c
 * filetimer_attributes about = {0, 0, ""};
 * filetimer_attribute_int(&about, "rank", 3);
 * filetimer_attribute_string(&about, "device", "cuda:1");
 * filetimer_set_attributes(NULL, &about);   // of all timers that begin from now on
 * might_hang();
 * ```
 *
 * C++ programs may prefer the guard of filetimer.hpp, which sits on top of this.
 * "SPEC X-n" in comments is a requirement of protocol/SPEC.md.
 *
 *
 * What holds for every function
 * -----------------------------
 *
 * Results.       > 0  sent
 *                  0  nothing to do: not configured, or no timer to take back
 *                < 0  minus an errno value: not sent
 *
 *   -EPIPE         no server reads the pipe
 *   -ENOENT ...    no pipe at the path (or another error of open(2))
 *   -EAGAIN        the pipe stayed full for as long as the call may wait
 *   -EMSGSIZE      the record would be longer than FILETIMER_RECORD_MAX
 *   -EINVAL        a bad argument; or what is at the path is not a FIFO
 *   -EPERM         the FIFO is neither ours nor root's
 *   -ECHILD        the handle was begun by another process: the parent's timer
 *                  is the parent's to end
 *   -ENAMETOOLONG  the path does not fit FILETIMER_PATH_MAX
 *
 *   An acquire that returns < 0 has left the block unguarded, and the program
 *   unharmed. A server that comes later is found by the next call.
 *
 * errno          is left as it was.
 *
 * Blocking.      The descriptor is non-blocking. Only a full pipe is waited for:
 *                an acquire at most FILETIMER_WAIT_SECONDS (filetimer_set_wait
 *                changes it) and never longer than its own timer; the end of a
 *                handle at most what its timer has left, for a release that gets
 *                lost kills a healthy worker. The filetimer_try_ functions never
 *                wait.
 *
 * Threads.       Any number of threads may use one client. No locks are taken.
 *                One handle must not be used by two threads at the same time,
 *                but any thread may end what another began.
 *
 * Signals.       The filetimer_try_ functions, filetimer_encode and
 *                filetimer_prepare may be called from signal handlers, also from
 *                one that interrupts any of these functions, once the client was
 *                initialised (for the default client: once filetimer_default()
 *                has returned). They use, depending on the platform: clock_gettime,
 *                close, dup2 (dup3), fcntl, fstat, getpid, geteuid, open, poll,
 *                pthread_sigmask, pwritev2, read, sigpending, stat and write;
 *                and sigtimedwait, which is a bare system call but not on
 *                POSIX's list. They need 6 KiB of stack.
 *                No function raises SIGPIPE or leaves a signal mask changed.
 *
 * Processes.     After fork or clone the child speaks for itself: it sends its
 *                own pid, and refuses to touch its parent's timers. Do not call
 *                from a child of vfork (or CLONE_VM without CLONE_THREAD): it
 *                shares its parent's memory. Processes that close descriptors
 *                they do not own (daemonising loops) do so before the first call
 *                or in a forked child, where the descriptor is checked.
 *
 * Not used:      malloc, stdio, locale, global constructors, threads of its own.
 *
 * Torch.         The server of torch.distributed.elastic (2.13 and before) reads
 *                with a blocking readline, and looks at its timers only after
 *                all writers have closed the pipe: one that keeps it open stops
 *                every expiry of the job. So a client whose path comes from
 *                TORCHELASTIC_TIMER_FILE opens and closes the pipe for each
 *                record, as if told FILETIMER_ONE_SHOT: some microseconds more.
 *                One with FILETIMER_PATH, or a path of its own, keeps it open.
 *
 * Cancellation.  poll, open and write are cancellation points: a thread that is
 *                cancelled inside leaves its timer to the server.
 *
 *
 * How to compile
 * --------------
 *
 * C99 and later, C++11 and later, CUDA host code; GCC, Clang, and what is
 * compatible with them. POSIX 2008 must be declared: that is so in the gnu modes
 * (-std=gnu99, the compilers' default), in C++ on Linux, and with
 * -D_POSIX_C_SOURCE=200809L elsewhere. -D_DEFAULT_SOURCE on top of that (implied
 * by the gnu modes) declares what makes the call faster on Linux: see
 * FILETIMER_LINUX_FAST below. glibc before 2.32 needs -pthread.
 *
 * Any number of translation units and shared objects may include the header.
 * The process-wide state (the default client, the token counter) is one weak
 * symbol that carries the number of its layout, so that the linker merges it
 * over all translation units, and the dynamic linker over all shared objects
 * whose symbols it can see. Where it cannot (dlopen with RTLD_LOCAL, as Python
 * does) each object has its own, which is harmless: one more descriptor, and
 * tokens do not collide, since every copy counts from 53 random bits.
 *
 * FILETIMER_DISABLE, defined before inclusion, compiles everything out: all
 * functions return 0 and no system header is needed. Translation units with and
 * without it may be linked together.
 */
#ifndef FILETIMER_H
#define FILETIMER_H

#include <stddef.h>
#include <stdint.h>

/* ------------------------------------------------------------------ Version */

#define FILETIMER_VERSION_MAJOR 0
#define FILETIMER_VERSION_MINOR 1
#define FILETIMER_VERSION_PATCH 0
#define FILETIMER_VERSION "0.1.0"
#define FILETIMER_VERSION_NUMBER \
    (FILETIMER_VERSION_MAJOR * 10000 + FILETIMER_VERSION_MINOR * 100 + FILETIMER_VERSION_PATCH)

/* ----------------------------------------------------------------- Platform */

#if !defined(__GNUC__)
#error "filetimer.h needs GCC, Clang or a compatible compiler (__atomic builtins, weak symbols)"
#endif

#if !defined(FILETIMER_DISABLE)
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#if !defined(CLOCK_MONOTONIC) || !defined(O_CLOEXEC) || !defined(F_DUPFD_CLOEXEC) || \
    !defined(SIG_BLOCK)
#error "filetimer.h needs POSIX 2008: compile with -std=gnu99 or later, or -D_POSIX_C_SOURCE=200809L"
#endif

/* FILETIMER_LINUX_FAST is 1 where system calls beyond POSIX are declared:
 * pwritev2 (no SIGPIPE, without three calls around each write), dup3, and
 * madvise (the pid need not be asked for again at each call). Nothing else
 * depends on it. x32 is left out: it passes 64-bit arguments in its own way. */
#if defined(__linux__) && !(defined(__x86_64__) && defined(__ILP32__)) && \
    (defined(_DEFAULT_SOURCE) || defined(_GNU_SOURCE) || defined(_BSD_SOURCE))
#define FILETIMER_LINUX_FAST 1
#include <sys/mman.h>
#include <sys/syscall.h>
#else
#define FILETIMER_LINUX_FAST 0
#endif
#endif /* FILETIMER_DISABLE */

/* ------------------------------------------------------------------- Limits */

/* The longest record, newline included: what one write keeps whole (SPEC F-2). */
#if defined(PIPE_BUF)
#define FILETIMER_RECORD_MAX PIPE_BUF
#elif defined(__linux__)
#define FILETIMER_RECORD_MAX 4096
#else
#define FILETIMER_RECORD_MAX 512
#endif

#define FILETIMER_ATTRIBUTES_MAX 256 /* bytes of all attributes of a timer (SPEC R-12) */
#define FILETIMER_PATH_MAX 4096      /* bytes of a path, terminating NUL included */
#define FILETIMER_WAIT_SECONDS 1.0   /* how long a call waits on a full pipe, unless told */
#define FILETIMER_DEFAULT_WAIT (-1.0) /* as an argument: what the client says */
#define FILETIMER_LONGEST 1.0e9      /* timers beyond these seconds are cut down to them */

/* -------------------------------------------------------------------- Types */

/* Names and values that a timer shows to people. All zero is a valid, empty one. Copy
 * it as you like: one with the rank, and copies of it to which the step is added.
 * Its fields are private. */
typedef struct filetimer_attributes {
    unsigned length_;
    unsigned count_;
    char text_[FILETIMER_ATTRIBUTES_MAX]; /* "rank": 3, "device": "cuda:1" */
} filetimer_attributes;

/* A client: one pipe, one descriptor. Allocate it as you like; {0} is a valid
 * client that is not configured. Neither copy nor move it once initialised. Its
 * fields are private. About 4 KiB. */
typedef struct filetimer_client {
    uint64_t state_;     /* one of filetimer_phase_, and for BUSY the pid that is at it */
    uint64_t owner_;     /* the process that has checked fd_; see filetimer_process_ */
    uint64_t device_;    /* the FIFO that fd_ was opened on */
    uint64_t inode_;
    int64_t wait_us_;    /* longest wait on a full pipe */
    int fd_;             /* the descriptor, -1 before the first one */
    int signal_;         /* what the server is to send */
    unsigned flags_;
    filetimer_attributes attributes_;
    char path_[FILETIMER_PATH_MAX];
} filetimer_client;

/* A timer of its own: it carries a token, so that neither another thread nor a
 * recursion in the same scope ends it by mistake (SPEC C-8). {0} is a valid
 * handle without a timer. You may read `error`, `armed`, `token` and
 * `deadline_us`; the scope's text is not copied and must outlive the handle, as
 * must its attributes. */
typedef struct filetimer_handle {
    filetimer_client *client;
    const char *scope;
    size_t scope_length;
    const filetimer_attributes *attributes; /* NULL: the client's */
    uint64_t owner;       /* the process that armed it */
    int64_t token;
    int64_t deadline_us;  /* CLOCK_MONOTONIC in microseconds */
    int armed;            /* 1 while the server has it: some acquire was delivered */
    int error;            /* result of the last begin, extend or end, if < 0; else 0 */
} filetimer_handle;

/* What one record says; see filetimer_encode. A negative number in one of the
 * last four leaves the field out. */
typedef struct filetimer_record {
    int version;           /* 2, or 1 without the last four */
    int pid;
    const char *scope;
    size_t scope_length;
    int64_t expiration_us; /* Unix time in microseconds; negative: a release */
    int signal;            /* 0 or less: report, do not kill */
    int64_t deadline_us;   /* CLOCK_MONOTONIC in microseconds */
    int64_t start_time;    /* field 22 of /proc/PID/stat */
    int64_t pid_ns;        /* inode of /proc/PID/ns/pid */
    int64_t token;
} filetimer_record;

/* Flags of filetimer_init */
#define FILETIMER_MASK_SIGPIPE 1u /* keep SIGPIPE off by the signal mask, not by pwritev2 */
#define FILETIMER_ONE_SHOT 2u     /* open and close the pipe for each record: torch's server */

/* --------------------------------------------------------------- Prototypes */

/* In C every function is static; in C++ it is inline, hidden, and in an inline
 * namespace that tells FILETIMER_DISABLE apart, as the one definition rule asks.
 * COLD_ is run once a process or on trouble. HOT_ is run for each record: without
 * it GCC takes what is called from a program's main for rare, and compiles it for
 * size, with real divisions. APART_ is HOT_, and not to be inlined. THIN_ is all
 * that an unconfigured program executes, a load and a branch: always inlined, for
 * a call costs it four times as much. */
#if defined(__cplusplus)
#define FILETIMER_API inline __attribute__((visibility("hidden")))
#define FILETIMER_COLD_ inline __attribute__((visibility("hidden"), cold))
#define FILETIMER_HOT_ inline __attribute__((visibility("hidden"), hot))
#define FILETIMER_APART_ FILETIMER_HOT_
#define FILETIMER_THIN_ inline __attribute__((visibility("hidden"), always_inline))
#if defined(FILETIMER_DISABLE)
inline namespace filetimer_abi1_disabled {
#else
inline namespace filetimer_abi1 {
#endif
#else
#define FILETIMER_API static inline __attribute__((unused))
#define FILETIMER_COLD_ static __attribute__((unused, noinline, cold))
#define FILETIMER_HOT_ static inline __attribute__((unused, hot))
#define FILETIMER_APART_ static __attribute__((unused, hot, noinline))
#define FILETIMER_THIN_ static inline __attribute__((unused, always_inline))
#endif

/* Wherever a `client` is asked for, NULL is the process-wide default client. It
 * reads the environment when it is first used (SPEC T-1), and opens the pipe. */

/* Initialise `client` for the pipe at `path`, or, if `path` is NULL, at the one
 * the environment names. An expired timer makes the server send `signum`
 * (SIGKILL as a rule; 0 or less: it only reports).
 * Returns 1 when the pipe is open; 0 when no path is given, then all calls with
 * this client are no-ops; < 0 when it cannot be opened now: unless that is
 * -EINVAL for a bad `signum` or -ENAMETOOLONG, the client is initialised all the
 * same and looks for the pipe again at each call.
 * A relative path is looked up from wherever the process is at that moment.
 * Nobody else may use the client meanwhile. Does not block. Not for signal
 * handlers (getenv, mmap). */
FILETIMER_API int filetimer_init(filetimer_client *client, const char *path, int signum,
                                 unsigned flags);

/* As filetimer_init, for the default client, in place of the environment.
 * Returns -EBUSY, and changes nothing, when the default client is in use
 * already: call it at the start of the program. Thread-safe. */
FILETIMER_API int filetimer_configure(const char *path, int signum, unsigned flags);

/* The default client, initialised. Never NULL. Thread-safe; not for signal
 * handlers, but programs whose handlers use the default client call it before
 * they install them. The environment must not be changed meanwhile (getenv). */
FILETIMER_API filetimer_client *filetimer_default(void);

/* 1 when calls with this client send something, 0 when they are no-ops. A few
 * nanoseconds; async-signal-safe after init. */
FILETIMER_API int filetimer_configured(filetimer_client *client);

/* How long acquires, and releases by scope, may wait on a full pipe. Negative
 * or NaN: FILETIMER_WAIT_SECONDS. Call it after filetimer_init, before other
 * threads use the client. */
FILETIMER_API void filetimer_set_wait(filetimer_client *client, double seconds);

/* Add an attribute, whose name must not be there yet. Pure: they touch nothing
 * but their arguments. The name is any non-empty text, as that of a scope.
 * Return 1; -EMSGSIZE when there would be more than 8, or more than
 * FILETIMER_ATTRIBUTES_MAX bytes, -EEXIST for a name that is there, -EINVAL for
 * an empty one, and for an integer of 2^53 or more (SPEC R-3); these change
 * nothing. */
FILETIMER_API int filetimer_attribute_int(filetimer_attributes *attributes, const char *name,
                                          int64_t value);
FILETIMER_API int filetimer_attribute_string(filetimer_attributes *attributes, const char *name,
                                             const char *value);

/* What all timers of the client that begin from now on say of themselves; they
 * are copied; NULL: nothing. Call it while no other thread uses the client.
 * Returns 1, or 0 when the client is not configured. */
FILETIMER_API int filetimer_set_attributes(filetimer_client *client,
                                           const filetimer_attributes *attributes);

/* Close the client's descriptor; it is then not configured. Its timers stay with
 * the server. Nobody else may use the client meanwhile or after. */
FILETIMER_API void filetimer_close(filetimer_client *client);

/* Set the timer of this process and `scope`: it expires `after` seconds from
 * now. A timer of the same scope is replaced, whoever set it: two threads in one
 * scope want handles. `after` must not be negative or NaN; the scope is any
 * non-empty text in UTF-8 (what is not valid becomes U+FFFD).
 * Returns as above. Waits for room in the pipe, bounded. */
FILETIMER_API int filetimer_acquire(filetimer_client *client, const char *scope, double after);

/* Take back the timer of this process and `scope`. Waits for room, bounded by
 * the client's wait, since it cannot know what the timer has left. */
FILETIMER_API int filetimer_release(filetimer_client *client, const char *scope);

/* Begin a timer of its own. The handle is initialised whatever the result, and
 * may be passed to filetimer_end without looking. */
FILETIMER_API int filetimer_begin(filetimer_handle *handle, filetimer_client *client,
                                  const char *scope, double after);

/* The same, with attributes of its own in place of the client's. They are not
 * copied, and must outlive the handle; an extend sends what they are by then. */
FILETIMER_API int filetimer_begin_with(filetimer_handle *handle, filetimer_client *client,
                                       const char *scope, double after,
                                       const filetimer_attributes *attributes);

/* Move the deadline to `after` seconds from now. If that fails the timer keeps
 * its old deadline. Arms a handle whose begin has failed, or that was ended; 0
 * when the handle was never begun with a configured client. */
FILETIMER_API int filetimer_extend(filetimer_handle *handle, double after);

/* End the timer. Waits on a full pipe until the timer expires. Returns 0, at
 * once, when there is nothing to take back: the acquire was not delivered, or it
 * was ended before. When it fails, the handle stays armed, and filetimer_end may
 * be tried again. */
FILETIMER_API int filetimer_end(filetimer_handle *handle);

/* The same, and they never wait: for signal handlers and event loops. -EAGAIN
 * also when another thread is in the middle of opening the default client. */
FILETIMER_API int filetimer_try_acquire(filetimer_client *client, const char *scope, double after);
FILETIMER_API int filetimer_try_release(filetimer_client *client, const char *scope);
FILETIMER_API int filetimer_try_begin(filetimer_handle *handle, filetimer_client *client,
                                      const char *scope, double after);
FILETIMER_API int filetimer_try_extend(filetimer_handle *handle, double after);
FILETIMER_API int filetimer_try_end(filetimer_handle *handle);

/* The same for scopes with a length in place of a terminating NUL (a NUL inside
 * is fine), and with a bound on the wait, in seconds: 0 never waits,
 * FILETIMER_DEFAULT_WAIT is the client's. Other languages bind to these. */
FILETIMER_API int filetimer_acquire_n(filetimer_client *client, const char *scope, size_t length,
                                      double after, double wait);
FILETIMER_API int filetimer_release_n(filetimer_client *client, const char *scope, size_t length,
                                      double wait);
FILETIMER_API int filetimer_begin_n(filetimer_handle *handle, filetimer_client *client,
                                    const char *scope, size_t length, double after, double wait);

/* Encoders, for those who bring their own transport. Pure: they touch nothing
 * but their arguments.
 *
 * Write `record` as one line, newline included, without a terminating NUL. Plain
 * ASCII, the same in every locale; the same scope always gives the same bytes.
 * Returns its length; -EMSGSIZE when that is more than `size` or
 * FILETIMER_RECORD_MAX; -EINVAL for another version than 1 or 2, and for what
 * SPEC section 3 forbids: an empty scope, a pid below 1, a signal over 64,
 * integers of 2^53 and more. In a release, `signal` and `deadline_us` are not
 * looked at (SPEC R-9). */
FILETIMER_API int filetimer_encode(char *buffer, size_t size, const filetimer_record *record);

/* Fill in a version 2 release of this process and `scope`, without a token: the
 * caller sets expiration_us and deadline_us for an acquire, and a token at will.
 * The scope is not copied. Reads /proc where the process is not known yet. */
FILETIMER_API void filetimer_prepare(filetimer_record *record, const char *scope);

/* ------------------------------------------------------------- Scope macros */

/* FILETIMER_EXPIRES(after) { ... }
 *
 * Guards the block (or the one statement) that follows. The scope is file#line.
 * Threads and recursions have timers of their own. The timer is taken back on
 * every way out that C and C++ know: the end of the block, return, goto, break,
 * and exceptions. break and continue leave the block, not a loop around it.
 *
 * These ways out take nothing back, and the server kills the process when the
 * time is up: longjmp and siglongjmp over the block; a thread that ends inside
 * (pthread_exit, cancellation), unless it is C++ or compiled with -fexceptions.
 * Give such code a handle and end that. exec, _exit and abort need nothing: on
 * exit the server forgets, and exec keeps the pid, so end timers before it.
 *
 * A block whose acquire was not delivered runs unguarded. To ask, and to extend,
 * name the handle:
 *
 * ```c
 * FILETIMER_EXPIRES_AS(timer, NULL, "all-reduce", 5.0) {
 *     if (timer.error)
 *         fputs("all-reduce runs without a timer\n", stderr);
 *     might_hang();
 *     filetimer_extend(&timer, 5.0);
 *     might_hang();
 * }
 * ```
 */
#define FILETIMER_EXPIRES(after) \
    FILETIMER_EXPIRES_AS(FILETIMER_PASTE_(filetimer_line_, __LINE__), NULL, FILETIMER_HERE, after)

#define FILETIMER_EXPIRES_AS(name, client, scope, after)                                   \
    for (filetimer_handle name __attribute__((cleanup(filetimer_cleanup_))),               \
         *FILETIMER_PASTE_(filetimer_once_, name) =                                        \
             filetimer_begun_(&name, (client), (scope), (after));                          \
         FILETIMER_PASTE_(filetimer_once_, name) != NULL;                                  \
         FILETIMER_PASTE_(filetimer_once_, name) = NULL)

/* The scope of the line that it stands on: a string literal */
#define FILETIMER_HERE __FILE__ "#" FILETIMER_QUOTE_(__LINE__)

#define FILETIMER_QUOTE_(x) FILETIMER_QUOTE_NOW_(x)
#define FILETIMER_QUOTE_NOW_(x) #x
#define FILETIMER_PASTE_(a, b) FILETIMER_PASTE_NOW_(a, b)
#define FILETIMER_PASTE_NOW_(a, b) a##b

FILETIMER_API filetimer_handle *filetimer_begun_(filetimer_handle *handle,
                                                 filetimer_client *client, const char *scope,
                                                 double after);
FILETIMER_API void filetimer_cleanup_(filetimer_handle *handle);

/* ================================================================== Bodies */

#if defined(FILETIMER_DISABLE)

/* Client and handle are still set to a definite state, so that code which reads
 * their public fields reads what "not configured" looks like. */
FILETIMER_API filetimer_client *filetimer_default(void)
{
    static filetimer_client none;
    return &none;
}

FILETIMER_API int filetimer_init(filetimer_client *client, const char *path, int signum,
                                 unsigned flags)
{
    client->state_ = 0;
    (void)path, (void)signum, (void)flags;
    return 0;
}

FILETIMER_API int filetimer_configure(const char *path, int signum, unsigned flags)
{
    (void)path, (void)signum, (void)flags;
    return 0;
}

FILETIMER_API int filetimer_configured(filetimer_client *client)
{
    (void)client;
    return 0;
}

FILETIMER_API void filetimer_set_wait(filetimer_client *client, double seconds)
{
    (void)client, (void)seconds;
}

FILETIMER_API int filetimer_attribute_int(filetimer_attributes *attributes, const char *name,
                                          int64_t value)
{
    (void)attributes, (void)name, (void)value;
    return 0;
}

FILETIMER_API int filetimer_attribute_string(filetimer_attributes *attributes, const char *name,
                                             const char *value)
{
    (void)attributes, (void)name, (void)value;
    return 0;
}

FILETIMER_API int filetimer_set_attributes(filetimer_client *client,
                                           const filetimer_attributes *attributes)
{
    (void)client, (void)attributes;
    return 0;
}

FILETIMER_API void filetimer_close(filetimer_client *client)
{
    (void)client;
}

FILETIMER_API int filetimer_acquire_n(filetimer_client *client, const char *scope, size_t length,
                                      double after, double wait)
{
    (void)client, (void)scope, (void)length, (void)after, (void)wait;
    return 0;
}

FILETIMER_API int filetimer_release_n(filetimer_client *client, const char *scope, size_t length,
                                      double wait)
{
    (void)client, (void)scope, (void)length, (void)wait;
    return 0;
}

FILETIMER_API int filetimer_begin_n(filetimer_handle *handle, filetimer_client *client,
                                    const char *scope, size_t length, double after, double wait)
{
    handle->client = client;
    handle->scope = scope;
    handle->scope_length = length;
    handle->attributes = NULL;
    handle->owner = 0;
    handle->token = -1;
    handle->deadline_us = 0;
    handle->armed = handle->error = 0;
    (void)after, (void)wait;
    return 0;
}

FILETIMER_API int filetimer_acquire(filetimer_client *client, const char *scope, double after)
{
    return filetimer_acquire_n(client, scope, 0, after, 0);
}

FILETIMER_API int filetimer_release(filetimer_client *client, const char *scope)
{
    return filetimer_release_n(client, scope, 0, 0);
}

FILETIMER_API int filetimer_begin(filetimer_handle *handle, filetimer_client *client,
                                  const char *scope, double after)
{
    return filetimer_begin_n(handle, client, scope, 0, after, 0);
}

FILETIMER_API int filetimer_begin_with_n_(filetimer_handle *handle, filetimer_client *client,
                                          const char *scope, size_t length, double after,
                                          double wait, const filetimer_attributes *attributes)
{
    const int result = filetimer_begin_n(handle, client, scope, length, after, wait);
    handle->attributes = attributes;
    return result;
}

FILETIMER_API int filetimer_begin_with(filetimer_handle *handle, filetimer_client *client,
                                       const char *scope, double after,
                                       const filetimer_attributes *attributes)
{
    return filetimer_begin_with_n_(handle, client, scope, 0, after, 0, attributes);
}

FILETIMER_API int filetimer_extend(filetimer_handle *handle, double after)
{
    (void)handle, (void)after;
    return 0;
}

FILETIMER_API int filetimer_end(filetimer_handle *handle)
{
    (void)handle;
    return 0;
}

FILETIMER_API int filetimer_try_acquire(filetimer_client *client, const char *scope, double after)
{
    return filetimer_acquire(client, scope, after);
}

FILETIMER_API int filetimer_try_release(filetimer_client *client, const char *scope)
{
    return filetimer_release(client, scope);
}

FILETIMER_API int filetimer_try_begin(filetimer_handle *handle, filetimer_client *client,
                                      const char *scope, double after)
{
    return filetimer_begin(handle, client, scope, after);
}

FILETIMER_API int filetimer_try_extend(filetimer_handle *handle, double after)
{
    return filetimer_extend(handle, after);
}

FILETIMER_API int filetimer_try_end(filetimer_handle *handle)
{
    return filetimer_end(handle);
}

FILETIMER_API int filetimer_encode(char *buffer, size_t size, const filetimer_record *record)
{
    (void)buffer, (void)size, (void)record;
    return 0;
}

FILETIMER_API void filetimer_prepare(filetimer_record *record, const char *scope)
{
    record->scope = scope;
}

#else /* not FILETIMER_DISABLE */

/* -------------------------------------------------------- Atomic operations */

/* C99 has no <stdatomic.h>, and C++ cannot include it; the builtins are in both.
 * Everything that threads share goes through these. */
#define FILETIMER_LOAD_(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#define FILETIMER_STORE_(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
#define FILETIMER_SWAP_IF_(place, expected, value) \
    __atomic_compare_exchange_n(place, expected, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)

#define FILETIMER_LIKELY_(condition) __builtin_expect(!!(condition), 1)

/* ------------------------------------------------------------------- Clocks */

FILETIMER_HOT_ int64_t filetimer_clock_us_(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* Seconds to microseconds; -1 when negative or NaN. */
FILETIMER_API int64_t filetimer_to_us_(double seconds)
{
    if (!(seconds >= 0))
        return -1;
    return (int64_t)((seconds < FILETIMER_LONGEST ? seconds : FILETIMER_LONGEST) * 1e6);
}

/* ------------------------------------------- Encoding: values to characters */

/* All of these write at `out` and return where they stopped. None checks for
 * room: filetimer_line_ explains why it is there. */

#define FILETIMER_PUT_(out, literal) \
    ((char *)memcpy((out), (literal), sizeof(literal) - 1) + sizeof(literal) - 1)

/* The last 2 * `pairs` digits of `value`. Two at a time halves the divisions. */
FILETIMER_HOT_ char *filetimer_put_digits_(char *out, uint64_t value, unsigned pairs)
{
    static const char table[] =
        "0001020304050607080910111213141516171819"
        "2021222324252627282930313233343536373839"
        "4041424344454647484950515253545556575859"
        "6061626364656667686970717273747576777879"
        "8081828384858687888990919293949596979899";
    unsigned i;
    for (i = pairs; i-- > 0; value /= 100)
        memcpy(out + 2 * i, table + 2 * (value % 100), 2);
    return out + 2 * pairs;
}

FILETIMER_HOT_ char *filetimer_put_number_(char *out, uint64_t value)
{
    static const uint64_t ten_to_the[20] = {
        1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u,
        10000000000u, 100000000000u, 1000000000000u, 10000000000000u, 100000000000000u,
        1000000000000000u, 10000000000000000u, 100000000000000000u, 1000000000000000000u,
        10000000000000000000u};
    /* log10(2) is about 1233 / 4096: the number of digits from the number of
     * bits is right, or one short of it. */
    const unsigned bits = 64 - (unsigned)__builtin_clzll(value | 1);
    unsigned digits = bits * 1233 >> 12;
    digits += value >= ten_to_the[digits];
    if (digits == 0)
        digits = 1;
    if (digits % 2 != 0)
        *out++ = (char)('0' + value / ten_to_the[digits - 1] % 10);
    return filetimer_put_digits_(out, value, digits / 2);
}

FILETIMER_HOT_ char *filetimer_put_integer_(char *out, int64_t value)
{
    if (value < 0)
        *out++ = '-';
    return filetimer_put_number_(out, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

/* Microseconds as seconds. The decimal point is a point whatever the locale
 * (SPEC R-4): no library function is asked. */
FILETIMER_HOT_ char *filetimer_put_seconds_(char *out, int64_t us)
{
    out = filetimer_put_number_(out, (uint64_t)us / 1000000);
    *out++ = '.';
    return filetimer_put_digits_(out, (uint64_t)us % 1000000, 3);
}

/* ------------------------------------------------ Encoding: text to a string */

FILETIMER_API char *filetimer_put_escape_(char *out, unsigned unit)
{
    static const char hex[] = "0123456789abcdef";
    out[0] = '\\';
    out[1] = 'u';
    out[2] = hex[unit >> 12 & 15];
    out[3] = hex[unit >> 8 & 15];
    out[4] = hex[unit >> 4 & 15];
    out[5] = hex[unit & 15];
    return out + 6;
}

/* Decode one character that is not ASCII. What is not UTF-8 (cut short,
 * overlong, a surrogate, over U+10FFFF) is U+FFFD, one for each longest part
 * that could still have become a character, as Unicode recommends. */
FILETIMER_COLD_ const unsigned char *filetimer_decode_(const unsigned char *at,
                                                       const unsigned char *end, unsigned *code)
{
    unsigned lead = *at++;
    unsigned rest = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    /* The range of the second byte is where overlong forms, surrogates and too
     * large values show; that of the others is 80..BF. */
    unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;

    *code = 0xfffd;
    if (lead < 0xc2 || lead > 0xf4)
        return at;
    lead &= 0x3fu >> rest;
    for (; rest > 0; rest--, low = 0x80, high = 0xbf) {
        if (at == end || *at < low || *at > high)
            return at;
        lead = lead << 6 | (*at++ & 0x3fu);
    }
    *code = lead;
    return at;
}

/* One character, escaped: `"`, `\`, controls, and all that is not ASCII, so that
 * a record survives a reader with any locale. */
FILETIMER_COLD_ char *filetimer_put_special_(char *out, const unsigned char **at,
                                             const unsigned char *end)
{
    unsigned code = **at;
    if (code < 0x80)
        ++*at;
    else
        *at = filetimer_decode_(*at, end, &code);
    if (code < 0x10000)
        return filetimer_put_escape_(out, code);
    code -= 0x10000;
    out = filetimer_put_escape_(out, 0xd800 | code >> 10);
    return filetimer_put_escape_(out, 0xdc00 | (code & 0x3ff));
}

FILETIMER_API int filetimer_is_plain_(unsigned c)
{
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* filetimer_is_plain_ for eight characters at once. A byte is below n when
 * subtracting n borrows from its highest bit; a false alarm, from a borrow of
 * the byte beside it, only means that the caller looks closer. */
FILETIMER_API int filetimer_are_plain_(uint64_t c)
{
    const uint64_t ones = 0x0101010101010101u;
    const uint64_t quote = c ^ ones * '"', backslash = c ^ ones * '\\';
    return (((c - ones * 0x20) | (quote - ones) | (backslash - ones) | c) & ones * 0x80) == 0;
}

FILETIMER_HOT_ int filetimer_is_all_plain_(const char *text, size_t length)
{
    uint64_t eight;
    size_t i;
    if (length < 8) {
        for (i = 0; i < length; i++)
            if (!filetimer_is_plain_((unsigned char)text[i]))
                return 0;
        return 1;
    }
    for (i = 0; i + 8 < length; i += 8) {
        memcpy(&eight, text + i, 8);
        if (!filetimer_are_plain_(eight))
            return 0;
    }
    memcpy(&eight, text + length - 8, 8); /* the last eight, some of them again */
    return filetimer_are_plain_(eight);
}

FILETIMER_COLD_ char *filetimer_put_mixed_(char *out, size_t room, const char *text,
                                           size_t length)
{
    const unsigned char *at = (const unsigned char *)text, *end = at + length;
    const char *limit = out + room;
    while (at < end && out <= limit) {
        if (filetimer_is_plain_(*at))
            *out++ = (char)*at++;
        else
            out = filetimer_put_special_(out, &at, end);
    }
    return out;
}

/* The inside of a JSON string. Stops, short of the end, one character after
 * `room` bytes: by then the record is too long. */
FILETIMER_HOT_ char *filetimer_put_string_(char *out, size_t room, const char *text,
                                          size_t length)
{
    if (FILETIMER_LIKELY_(length <= room && filetimer_is_all_plain_(text, length)))
        return (char *)memcpy(out, text, length) + length;
    return filetimer_put_mixed_(out, room, text, length);
}

/* --------------------------------------------------------- Encoding: records */

/* What all records of one process have in common, put together once. The sizes
 * are those of the longest contents, rounded up. */
typedef struct filetimer_self_ {
    char head[48]; /* {"version": 2, "pid": 2147483647, "scope_id": " */
    char tail[64]; /* , "start_time": 9007199254740991, "pid_ns": 9007199254740991 */
    unsigned head_length;
    unsigned tail_length;
    int pid;
    int64_t start_time; /* -1: unknown */
    int64_t pid_ns;     /* -1: unknown */
    uint64_t identity;  /* told apart from its parent and its children by this */
} filetimer_self_;

/* A line under construction. SLACK is more than all that follows or precedes a
 * scope, so that only filetimer_put_string_ need watch its step; whether the
 * whole is too long is asked once, at the end. */
#define FILETIMER_SLACK_ 512
typedef struct filetimer_line_ {
    size_t length;
    char text[FILETIMER_RECORD_MAX + FILETIMER_SLACK_];
} filetimer_line_;

FILETIMER_API void filetimer_render_self_(filetimer_self_ *self, int version)
{
    char *out = FILETIMER_PUT_(self->head, "{\"version\": "); /* SPEC R-2 */
    out = filetimer_put_integer_(out, version);
    out = FILETIMER_PUT_(out, ", \"pid\": ");
    out = filetimer_put_integer_(out, self->pid);
    out = FILETIMER_PUT_(out, ", \"scope_id\": \"");
    self->head_length = (unsigned)(out - self->head);

    out = self->tail;
    if (self->start_time >= 0) { /* SPEC V-4: leave out what is not known */
        out = FILETIMER_PUT_(out, ", \"start_time\": ");
        out = filetimer_put_integer_(out, self->start_time);
    }
    if (self->pid_ns >= 0) {
        out = FILETIMER_PUT_(out, ", \"pid_ns\": ");
        out = filetimer_put_integer_(out, self->pid_ns);
    }
    self->tail_length = (unsigned)(out - self->tail);
}

FILETIMER_HOT_ char *filetimer_put_start_(filetimer_line_ *line, const filetimer_self_ *self,
                                         const char *scope, size_t length)
{
    /* A copy of a fixed size, of which the excess is overwritten, is a few moves;
     * one of a variable size is a call. */
    memcpy(line->text, self->head, sizeof self->head);
    return filetimer_put_string_(line->text + self->head_length, FILETIMER_RECORD_MAX, scope,
                                 length);
}

FILETIMER_HOT_ int filetimer_finish_(filetimer_line_ *line, char *out, const filetimer_self_ *self,
                                    int64_t token)
{
    memcpy(out, self->tail, sizeof self->tail);
    out += self->tail_length;
    if (token >= 0) {
        out = FILETIMER_PUT_(out, ", \"token\": ");
        out = filetimer_put_integer_(out, token);
    }
    out = FILETIMER_PUT_(out, "}\n");
    line->length = (size_t)(out - line->text);
    return line->length <= FILETIMER_RECORD_MAX ? (int)line->length : -EMSGSIZE; /* SPEC F-2 */
}

FILETIMER_HOT_ int filetimer_encode_acquire_(filetimer_line_ *line, const filetimer_self_ *self,
                                            const char *scope, size_t length,
                                            int64_t expiration_us, int signum,
                                            int64_t deadline_us, int64_t token)
{
    char *out = filetimer_put_start_(line, self, scope, length);
    out = FILETIMER_PUT_(out, "\", \"expiration_time\": ");
    out = filetimer_put_seconds_(out, expiration_us);
    out = FILETIMER_PUT_(out, ", \"signal\": ");
    out = filetimer_put_integer_(out, signum);
    if (deadline_us >= 0) {
        out = FILETIMER_PUT_(out, ", \"deadline\": ");
        out = filetimer_put_seconds_(out, deadline_us);
    }
    return filetimer_finish_(line, out, self, token);
}

FILETIMER_HOT_ int filetimer_encode_release_(filetimer_line_ *line, const filetimer_self_ *self,
                                            const char *scope, size_t length, int64_t token)
{
    char *out = filetimer_put_start_(line, self, scope, length);
    out = FILETIMER_PUT_(out, "\", \"expiration_time\": -1, \"signal\": 0"); /* SPEC R-9 */
    return filetimer_finish_(line, out, self, token);
}

/* ------------------------------------------------------ Encoding: attributes */

/* One pair under construction: two strings that may each be one character over
 * FILETIMER_ATTRIBUTES_MAX, which put_string_ notices late, and what is around. */
#define FILETIMER_PAIR_ROOM_ (2 * FILETIMER_ATTRIBUTES_MAX + 64)

/* `"name": `, where the value is to go; NULL where the name is too long. */
FILETIMER_COLD_ char *filetimer_put_name_(char *out, const char *name)
{
    char *const limit = out + FILETIMER_ATTRIBUTES_MAX;
    *out++ = '"';
    out = filetimer_put_string_(out, FILETIMER_ATTRIBUTES_MAX, name, strlen(name));
    return out < limit ? FILETIMER_PUT_(out, "\": ") : NULL;
}

/* Quotes in text are escaped as \u0022: what looks like a name in the text is one. */
FILETIMER_COLD_ int filetimer_has_name_(const filetimer_attributes *attributes,
                                        const char *quoted, size_t length)
{
    size_t i, same;
    for (i = 0; i + length <= attributes->length_; i++) {
        for (same = 0; same < length && attributes->text_[i + same] == quoted[same];)
            same++;
        if (same == length)
            return 1;
    }
    return 0;
}

FILETIMER_COLD_ int filetimer_add_pair_(filetimer_attributes *attributes, const char *pair,
                                        size_t name_length, size_t length)
{
    const unsigned comma = attributes->length_ > 0 ? 2 : 0;
    if (filetimer_has_name_(attributes, pair, name_length))
        return -EEXIST;
    /* The two braces are counted, too. */
    if (attributes->count_ >= 8 ||
        attributes->length_ + comma + length + 2 > FILETIMER_ATTRIBUTES_MAX)
        return -EMSGSIZE;
    memcpy(attributes->text_ + attributes->length_, ", ", comma);
    memcpy(attributes->text_ + attributes->length_ + comma, pair, length);
    attributes->length_ += comma + (unsigned)length;
    attributes->count_++;
    return 1;
}

FILETIMER_API int filetimer_attribute_int(filetimer_attributes *attributes, const char *name,
                                          int64_t value)
{
    const int64_t limit = (int64_t)1 << 53; /* SPEC R-3 */
    char pair[FILETIMER_PAIR_ROOM_], *out;
    size_t name_length;
    if (name == NULL || *name == '\0' || value >= limit || value <= -limit)
        return -EINVAL;
    if ((out = filetimer_put_name_(pair, name)) == NULL)
        return -EMSGSIZE;
    name_length = (size_t)(out - pair);
    out = filetimer_put_integer_(out, value);
    return filetimer_add_pair_(attributes, pair, name_length, (size_t)(out - pair));
}

FILETIMER_API int filetimer_attribute_string(filetimer_attributes *attributes, const char *name,
                                             const char *value)
{
    char pair[FILETIMER_PAIR_ROOM_], *out;
    size_t name_length;
    if (name == NULL || *name == '\0' || value == NULL)
        return -EINVAL;
    if ((out = filetimer_put_name_(pair, name)) == NULL)
        return -EMSGSIZE;
    name_length = (size_t)(out - pair);
    *out++ = '"';
    out = filetimer_put_string_(out, FILETIMER_ATTRIBUTES_MAX, value, strlen(value));
    *out++ = '"';
    return filetimer_add_pair_(attributes, pair, name_length, (size_t)(out - pair));
}

/* Put them behind the last field of an acquire that is complete (SPEC R-12). */
FILETIMER_COLD_ int filetimer_add_attributes_(filetimer_line_ *line,
                                              const filetimer_attributes *attributes)
{
    char *out = line->text + line->length - (sizeof "}\n" - 1);
    out = FILETIMER_PUT_(out, ", \"attributes\": {");
    memcpy(out, attributes->text_, attributes->length_);
    out = FILETIMER_PUT_(out + attributes->length_, "}}\n");
    line->length = (size_t)(out - line->text);
    return line->length <= FILETIMER_RECORD_MAX ? (int)line->length : -EMSGSIZE; /* SPEC F-2 */
}

FILETIMER_API int filetimer_encode(char *buffer, size_t size, const filetimer_record *record)
{
    const int64_t limit = (int64_t)1 << 53; /* SPEC R-3 */
    const int newer = record->version >= 2;
    const int64_t token = newer ? record->token : -1;
    filetimer_self_ self;
    filetimer_line_ line;
    int length;

    if (record->version < 1 || record->version > 2 || record->pid < 1 ||
        (record->signal > 64 && record->expiration_us >= 0) || record->scope_length == 0 ||
        record->start_time >= limit || record->pid_ns >= limit || record->token >= limit)
        return -EINVAL; /* SPEC R-1, R-9, R-11 */

    self.pid = record->pid;
    self.start_time = newer ? record->start_time : -1;
    self.pid_ns = newer ? record->pid_ns : -1;
    filetimer_render_self_(&self, record->version);
    length = record->expiration_us < 0
                 ? filetimer_encode_release_(&line, &self, record->scope, record->scope_length,
                                             token)
                 : filetimer_encode_acquire_(&line, &self, record->scope, record->scope_length,
                                             record->expiration_us, record->signal,
                                             newer ? record->deadline_us : -1, token);
    if (length > 0 && (size_t)length > size)
        return -EMSGSIZE;
    if (length > 0)
        memcpy(buffer, line.text, (size_t)length);
    return length;
}

/* --------------------------------------------------- Work to be done once */

/* A lock would hang a signal handler that interrupts its holder, and a child
 * forked meanwhile. So: who finds the work undone, or left BUSY by a process that
 * is not this one, takes it on; who finds it BUSY here does without. */
enum filetimer_phase_ { FILETIMER_IDLE_, FILETIMER_BUSY_, FILETIMER_DONE_, FILETIMER_VOID_ };

FILETIMER_API uint64_t filetimer_phase_of_(enum filetimer_phase_ phase, int pid)
{
    return (uint64_t)(unsigned)pid << 2 | (uint64_t)phase;
}

/* 1: it is yours to do, then store a phase; 0: it is being done, or has just been.
 * `undone` is the state in which it was found so: a state that is read again here
 * may be that of work which is done by now, and in use. */
FILETIMER_API int filetimer_take_on_(uint64_t *state, uint64_t undone, int pid)
{
    const uint64_t busy = filetimer_phase_of_(FILETIMER_BUSY_, pid);
    return undone != busy && FILETIMER_SWAP_IF_(state, &undone, busy);
}

/* ------------------------------------------------------- Who this process is */

/* The pid, and what else each record says about its sender, is kept in a page
 * that the kernel wipes in the child of every fork and clone. The child finds
 * zeros and looks for itself (SPEC C-6). Where there is no such page, getpid
 * tells, at each call. */
typedef struct filetimer_process_ {
    uint64_t state;
    uint64_t next_token;
    filetimer_self_ self;
} filetimer_process_;

/* The state that a process shares; see "How to compile". A change of the layout
 * of any of these types needs another number in its name. */
typedef struct filetimer_shared_ {
    filetimer_process_ *wiped; /* NULL: not mapped yet, or not to be had */
    int no_wiping;             /* 1: not to be had */
    filetimer_process_ kept;   /* then this one serves */
    filetimer_client client;   /* the default client */
} filetimer_shared_;

#if defined(__cplusplus)
extern "C" {
#endif
extern filetimer_shared_ filetimer_shared_abi1;
__attribute__((weak, visibility("default"))) filetimer_shared_ filetimer_shared_abi1;
#if defined(__cplusplus)
}
#endif

/* splitmix64: spreads what little entropy its argument has over all its bits. */
FILETIMER_API uint64_t filetimer_mix_(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* The whole of a small file, NUL-terminated; empty when it cannot be read. */
FILETIMER_COLD_ void filetimer_slurp_(const char *path, char *buffer, size_t size)
{
    ssize_t n = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        do
            n = read(fd, buffer, size - 1);
        while (n < 0 && errno == EINTR);
        close(fd);
    }
    buffer[n > 0 ? n : 0] = '\0';
}

/* Tokens count from here: 53 random bits (SPEC C-8). Should there be no
 * /dev/urandom, time and address space layout still differ between copies. */
FILETIMER_COLD_ uint64_t filetimer_first_token_(int pid)
{
    char random[9];
    uint64_t bits = 0;
    memset(random, 0, sizeof random);
    filetimer_slurp_("/dev/urandom", random, sizeof random);
    memcpy(&bits, random, sizeof bits);
    bits ^= filetimer_mix_((uint64_t)filetimer_clock_us_(CLOCK_MONOTONIC) << 20 ^
                           (uint64_t)(uintptr_t)random ^ (uint64_t)pid);
    return bits;
}

/* Field 22 of /proc/self/stat. Field 2 is a file name in parentheses, with
 * whatever characters: count from the last parenthesis. */
FILETIMER_COLD_ int64_t filetimer_start_time_(void)
{
#if defined(__linux__)
    char text[1024];
    const char *at;
    int64_t ticks = 0;
    int field;
    filetimer_slurp_("/proc/self/stat", text, sizeof text);
    at = strrchr(text, ')');
    for (field = 2; at != NULL && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (at == NULL || *++at < '0' || *at > '9')
        return -1;
    for (; *at >= '0' && *at <= '9' && ticks < (int64_t)1 << 49; at++)
        ticks = ticks * 10 + (*at - '0');
    return ticks;
#else
    return -1;
#endif
}

FILETIMER_COLD_ int64_t filetimer_pid_ns_(void)
{
#if defined(__linux__)
    struct stat namespace_;
    if (stat("/proc/self/ns/pid", &namespace_) == 0 && (uint64_t)namespace_.st_ino >> 53 == 0)
        return (int64_t)namespace_.st_ino;
#endif
    return -1;
}

FILETIMER_COLD_ void filetimer_look_in_the_mirror_(filetimer_process_ *process, int pid)
{
    filetimer_self_ *self = &process->self;
    self->pid = pid;
    self->start_time = filetimer_start_time_();
    self->pid_ns = filetimer_pid_ns_();
    self->identity = filetimer_mix_((uint64_t)self->start_time ^
                                    filetimer_mix_((uint64_t)self->pid_ns << 32 ^ (uint64_t)pid));
    filetimer_render_self_(self, 2);
    FILETIMER_STORE_(&process->next_token, filetimer_first_token_(pid));
}

/* Map the page that is wiped on fork. */
FILETIMER_COLD_ filetimer_process_ *filetimer_map_(void)
{
#if FILETIMER_LINUX_FAST && defined(MADV_WIPEONFORK)
    filetimer_process_ *none = NULL;
    const size_t size = sizeof(filetimer_process_);
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page != MAP_FAILED) {
        /* Some emulators take any advice and do nothing: one that takes -1 is not
         * to be believed. */
        if (madvise(page, size, -1) != 0 && madvise(page, size, MADV_WIPEONFORK) == 0) {
            if (FILETIMER_SWAP_IF_(&filetimer_shared_abi1.wiped, &none,
                                   (filetimer_process_ *)page))
                return (filetimer_process_ *)page;
            munmap(page, size); /* another thread was faster */
            return none;
        }
        munmap(page, size);
    }
#endif
    FILETIMER_STORE_(&filetimer_shared_abi1.no_wiping, 1);
    return NULL;
}

FILETIMER_COLD_ filetimer_process_ *filetimer_process_slowly_(filetimer_process_ *spare)
{
    filetimer_process_ *process = FILETIMER_LOAD_(&filetimer_shared_abi1.wiped);
    const int pid = (int)getpid();
    const uint64_t done = filetimer_phase_of_(FILETIMER_DONE_, pid);
    uint64_t seen;

    if (process == NULL && !FILETIMER_LOAD_(&filetimer_shared_abi1.no_wiping))
        process = filetimer_map_();
    if (process == NULL)
        process = &filetimer_shared_abi1.kept;
    seen = FILETIMER_LOAD_(&process->state);
    if (seen == done)
        return process;
    if (!filetimer_take_on_(&process->state, seen, pid)) {
        filetimer_look_in_the_mirror_(spare, pid);
        return spare;
    }
    filetimer_look_in_the_mirror_(process, pid);
    FILETIMER_STORE_(&process->state, done);
    return process;
}

/* This process; in `spare` while another thread is just finding out. */
FILETIMER_HOT_ filetimer_process_ *filetimer_process_now_(filetimer_process_ *spare)
{
    filetimer_process_ *process = FILETIMER_LOAD_(&filetimer_shared_abi1.wiped);
    if (FILETIMER_LIKELY_(process != NULL &&
                          (FILETIMER_LOAD_(&process->state) & 3) == FILETIMER_DONE_))
        return process;
    return filetimer_process_slowly_(spare);
}

FILETIMER_API int64_t filetimer_new_token_(filetimer_process_ *process)
{
    const uint64_t token = __atomic_fetch_add(&process->next_token, 1, __ATOMIC_RELAXED);
    return (int64_t)(token & (((uint64_t)1 << 53) - 1)); /* SPEC R-3 */
}

FILETIMER_API void filetimer_prepare(filetimer_record *record, const char *scope)
{
    const int saved = errno;
    filetimer_process_ spare;
    const filetimer_self_ *self = &filetimer_process_now_(&spare)->self;
    record->version = 2;
    record->pid = self->pid;
    record->scope = scope;
    record->scope_length = strlen(scope);
    record->expiration_us = -1;
    record->signal = 0;
    record->deadline_us = -1;
    record->start_time = self->start_time;
    record->pid_ns = self->pid_ns;
    record->token = -1;
    errno = saved;
}

/* ----------------------------------------------------------------- The FIFO */

/* SPEC C-4: a FIFO, ours or root's. By owner and not by mode: a server of another
 * make may be generous with its mode. 0 or -errno. */
FILETIMER_COLD_ int filetimer_vet_(const struct stat *file)
{
    if (!S_ISFIFO(file->st_mode))
        return -EINVAL;
    return file->st_uid == geteuid() || file->st_uid == 0 ? 0 : -EPERM;
}

/* A new descriptor on the FIFO at the client's path, or -errno. Looks before it
 * opens, for there are devices that take offence at being opened; and after,
 * for the path may have changed in between. Never creates (SPEC T-2). */
FILETIMER_COLD_ int filetimer_open_(const filetimer_client *client, struct stat *file)
{
    int fd, error;
    if (stat(client->path_, file) != 0)
        return -errno;
    if ((error = filetimer_vet_(file)) != 0)
        return error;
    do
        fd = open(client->path_, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return errno == ENXIO ? -EPIPE : -errno; /* ENXIO: a FIFO that nobody reads */
    if (fd <= STDERR_FILENO) { /* a closed standard stream: stay out of printf's way */
        const int low = fd;
        fd = fcntl(low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        error = fd < 0 ? -errno : 0;
        close(low);
        if (fd < 0)
            return error;
    }
    error = fstat(fd, file) != 0 ? -errno : filetimer_vet_(file);
    if (error != 0) {
        close(fd);
        return error;
    }
#if defined(F_SETNOSIGPIPE) /* macOS has per descriptor what others have per call */
    fcntl(fd, F_SETNOSIGPIPE, 1);
#endif
    return fd;
}

FILETIMER_COLD_ void filetimer_remember_(filetimer_client *client, const struct stat *file)
{
    FILETIMER_STORE_(&client->device_, (uint64_t)file->st_dev);
    FILETIMER_STORE_(&client->inode_, (uint64_t)file->st_ino);
}

/* Let descriptor `to` refer to what `from` does, close-on-exec. */
FILETIMER_COLD_ int filetimer_duplicate_onto_(int from, int to)
{
#if FILETIMER_LINUX_FAST && defined(SYS_dup3)
    return (int)syscall(SYS_dup3, from, to, O_CLOEXEC);
#else
    const int fd = dup2(from, to);
    return fd < 0 ? fd : fcntl(to, F_SETFD, FD_CLOEXEC);
#endif
}

/* The server that read fd_ is gone. Find its successor, on the same number (SPEC
 * C-5): were the number closed and taken by another thread's file in between,
 * a third thread's record would go into that file. Several threads may do this
 * at once: each duplicates a good descriptor, and the last one stays.
 * The number, or -errno. */
FILETIMER_COLD_ int filetimer_reopen_(filetimer_client *client, int number)
{
    struct stat file;
    int error = 0;
    const int fd = filetimer_open_(client, &file);
    if (fd < 0)
        return fd;
    if (filetimer_duplicate_onto_(fd, number) < 0)
        error = -errno;
    else
        filetimer_remember_(client, &file);
    close(fd);
    return error != 0 ? error : number;
}

/* The first descriptor of this client. */
FILETIMER_COLD_ int filetimer_open_first_(filetimer_client *client)
{
    struct stat file;
    int none = -1;
    const int fd = filetimer_open_(client, &file);
    if (fd < 0)
        return fd;
    filetimer_remember_(client, &file);
    if (FILETIMER_SWAP_IF_(&client->fd_, &none, fd))
        return fd;
    close(fd); /* another thread was faster; nobody has seen ours */
    return none;
}

FILETIMER_COLD_ int filetimer_is_ours_(const filetimer_client *client, int fd)
{
    struct stat file;
    return fstat(fd, &file) == 0 && S_ISFIFO(file.st_mode) &&
           (uint64_t)file.st_dev == FILETIMER_LOAD_(&client->device_) &&
           (uint64_t)file.st_ino == FILETIMER_LOAD_(&client->inode_);
}

/* Give up a number that is not ours any more, without closing it. */
FILETIMER_COLD_ void filetimer_forget_(filetimer_client *client, int fd)
{
    FILETIMER_SWAP_IF_(&client->fd_, &fd, -1);
}

/* In a new process, before fd_ is used: children may have closed what they do not
 * know, and opened their own files on the same numbers. */
FILETIMER_COLD_ void filetimer_move_in_(filetimer_client *client, uint64_t identity)
{
    const int fd = FILETIMER_LOAD_(&client->fd_);
    if (fd >= 0 && !filetimer_is_ours_(client, fd))
        filetimer_forget_(client, fd);
    FILETIMER_STORE_(&client->owner_, identity);
}

/* ------------------------------------------------------ Writing, no SIGPIPE */

/* A full write is 0, anything else an errno value. A write of at most PIPE_BUF
 * bytes is never partial (SPEC F-3). */
FILETIMER_API int filetimer_outcome_(ssize_t written, size_t length)
{
    return written < 0 ? errno : (size_t)written == length ? 0 : EIO;
}

/* SPEC C-3 by the signal mask: block SIGPIPE for this thread, write, take away
 * what EPIPE has raised, restore the mask. A SIGPIPE that was pending before is
 * not ours to take; that can only be where it was blocked before. */
FILETIMER_COLD_ int filetimer_write_masked_(int fd, const char *text, size_t length)
{
#if defined(F_SETNOSIGPIPE)
    return filetimer_outcome_(write(fd, text, length), length);
#else
    sigset_t pipe_only, before, pending;
    int error, was_pending = 0;

    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    error = pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    if (error != 0)
        return error;
    if (sigismember(&before, SIGPIPE) == 1) {
        sigemptyset(&pending);
        sigpending(&pending);
        was_pending = sigismember(&pending, SIGPIPE) == 1;
    }
    error = filetimer_outcome_(write(fd, text, length), length);
    if (error == EPIPE && !was_pending) {
        const struct timespec at_once = {0, 0};
        while (sigtimedwait(&pipe_only, NULL, &at_once) < 0 && errno == EINTR)
            ;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
#endif
}

/* SPEC C-3 by the system call: RWF_NOSIGNAL, in Linux since 6.18. Offset -1 is
 * the current one. A kernel without it says so and writes nothing; from then on
 * the mask serves. */
FILETIMER_HOT_ int filetimer_write_(filetimer_client *client, int fd, char *text, size_t length)
{
#if FILETIMER_LINUX_FAST && defined(SYS_pwritev2)
    if (FILETIMER_LIKELY_(!(FILETIMER_LOAD_(&client->flags_) & FILETIMER_MASK_SIGPIPE))) {
        const int rwf_nosignal = 0x100;
        struct iovec part;
        int error;
        part.iov_base = text;
        part.iov_len = length;
        error = filetimer_outcome_(
            syscall(SYS_pwritev2, (long)fd, &part, 1L, -1L, -1L, (long)rwf_nosignal), length);
        if (FILETIMER_LIKELY_(error != EOPNOTSUPP && error != ENOSYS && error != EPERM))
            return error;
        __atomic_fetch_or(&client->flags_, FILETIMER_MASK_SIGPIPE, __ATOMIC_RELAXED);
    }
#else
    (void)client;
#endif
    return filetimer_write_masked_(fd, text, length);
}

/* ----------------------------------------------------------------- Delivery */

/* How long a full pipe may be waited for: both bounds hold. */
typedef struct filetimer_patience_ {
    int64_t wait_us;  /* from now */
    int64_t until_us; /* CLOCK_MONOTONIC */
} filetimer_patience_;

/* Sleep until there may be room; with fd -1, for a moment. 0, or -EAGAIN at the end of patience (SPEC C-1).
 * `give_up_us` is set at the first call, when it is 0. */
FILETIMER_COLD_ int filetimer_wait_(int fd, filetimer_patience_ patience, int64_t *give_up_us)
{
    const int64_t now = filetimer_clock_us_(CLOCK_MONOTONIC);
    struct pollfd room;
    int64_t left;
    if (*give_up_us == 0) {
        *give_up_us = now + patience.wait_us;
        if (*give_up_us > patience.until_us)
            *give_up_us = patience.until_us;
    }
    left = *give_up_us - now;
    if (left <= 0)
        return -EAGAIN;
    room.fd = fd;
    room.events = POLLOUT;
    room.revents = 0;
    /* At most a second at a time, to fit an int. Without a descriptor there is no
     * event to wait for, and the sleep is short. */
    poll(&room, 1, fd < 0 ? 1 : left < 1000000 ? (int)(left / 1000) + 1 : 1000);
    return 0;
}

/* FILETIMER_ONE_SHOT. The descriptor is this call's own, so that C-5 is no concern. */
FILETIMER_COLD_ int filetimer_deliver_and_close_(filetimer_client *client, filetimer_line_ *line,
                                                 filetimer_patience_ patience)
{
    int64_t give_up_us = 0;
    struct stat file;
    int error;
    const int fd = filetimer_open_(client, &file);
    if (fd < 0)
        return fd;
    do
        error = filetimer_write_(client, fd, line->text, line->length);
    while (error == EINTR ||
           (error == EAGAIN && filetimer_wait_(fd, patience, &give_up_us) == 0));
    close(fd);
    return error == 0 ? 1 : -error;
}

FILETIMER_COLD_ int filetimer_deliver_(filetimer_client *client, filetimer_line_ *line,
                                       uint64_t identity, filetimer_patience_ patience)
{
    int64_t give_up_us = 0;
    int fd, error, reopened = 0;

    if (FILETIMER_LOAD_(&client->flags_) & FILETIMER_ONE_SHOT)
        return filetimer_deliver_and_close_(client, line, patience);
    if (FILETIMER_LOAD_(&client->owner_) != identity)
        filetimer_move_in_(client, identity);
    for (;;) {
        fd = FILETIMER_LOAD_(&client->fd_);
        if (fd < 0)
            fd = filetimer_open_first_(client);
        if (fd < 0)
            return fd;
        error = filetimer_write_(client, fd, line->text, line->length);
        if (error == 0)
            return 1;
        if (error == EAGAIN) {
            if ((error = filetimer_wait_(fd, patience, &give_up_us)) != 0)
                return error;
        } else if (error == EPIPE || error == EBADF) {
            if (reopened++)
                return -EPIPE; /* and that server is gone, too */
            if (error == EBADF)
                filetimer_forget_(client, fd); /* somebody has closed it */
            else if ((fd = filetimer_reopen_(client, fd)) < 0)
                return fd;
        } else if (error != EINTR) {
            return -error;
        }
    }
}

FILETIMER_HOT_ int filetimer_send_(filetimer_client *client, filetimer_line_ *line,
                                  uint64_t identity, filetimer_patience_ patience)
{
    const int saved = errno;
    const int fd = FILETIMER_LOAD_(&client->fd_);
    int result = 1;
    /* The common case; for all others filetimer_deliver_ starts afresh. */
    if (FILETIMER_LIKELY_(fd >= 0 && FILETIMER_LOAD_(&client->owner_) == identity &&
                          filetimer_write_(client, fd, line->text, line->length) == 0))
        return result;
    result = filetimer_deliver_(client, line, identity, patience);
    errno = saved;
    return result;
}

/* ------------------------------------------------------------------ Clients */

FILETIMER_COLD_ const char *filetimer_path_from_environment_(unsigned *flags)
{
    const char *path = getenv("FILETIMER_PATH"); /* SPEC T-1 */
    if (path == NULL || *path == '\0') {
        path = getenv("TORCHELASTIC_TIMER_FILE");
        *flags |= FILETIMER_ONE_SHOT; /* it may be torch's: SPEC C-10 */
    }
    return path;
}

/* Everything of filetimer_init but the last word: the client's state. */
FILETIMER_COLD_ int filetimer_set_up_(filetimer_client *client, const char *path, int signum,
                                      unsigned flags)
{
    filetimer_process_ spare;
    size_t length;
    int fd;
    if (path == NULL)
        path = filetimer_path_from_environment_(&flags);
    client->fd_ = -1;
    client->signal_ = signum;
    client->flags_ = flags;
    client->wait_us_ = filetimer_to_us_(FILETIMER_WAIT_SECONDS);
    client->device_ = client->inode_ = 0;
    client->attributes_.length_ = client->attributes_.count_ = 0;
    client->owner_ = filetimer_process_now_(&spare)->self.identity;
    client->path_[0] = '\0';
    if (path == NULL || *path == '\0')
        return 0; /* SPEC C-9 */
    length = strlen(path);
    if (length >= sizeof client->path_)
        return -ENAMETOOLONG;
    if (signum > 64)
        return -EINVAL;
    memcpy(client->path_, path, length + 1);
    if (flags & FILETIMER_ONE_SHOT) {
        struct stat file;
        if ((fd = filetimer_open_(client, &file)) >= 0)
            close(fd);
    } else {
        fd = filetimer_open_first_(client);
    }
    return fd < 0 ? fd : 1;
}

FILETIMER_COLD_ int filetimer_set_up_and_publish_(filetimer_client *client, const char *path,
                                                  int signum, unsigned flags)
{
    const int result = filetimer_set_up_(client, path, signum, flags);
    FILETIMER_STORE_(&client->state_, (uint64_t)(client->path_[0] != '\0' ? FILETIMER_DONE_
                                                                          : FILETIMER_VOID_));
    return result;
}

FILETIMER_API int filetimer_init(filetimer_client *client, const char *path, int signum,
                                 unsigned flags)
{
    const int saved = errno;
    const int result = filetimer_set_up_and_publish_(client, path, signum, flags);
    errno = saved;
    return result;
}

FILETIMER_API int filetimer_is_settled_(uint64_t state)
{
    return state == FILETIMER_DONE_ || state == FILETIMER_VOID_;
}

/* Opens the default client, or waits while another thread does. 0 or -EAGAIN. */
FILETIMER_COLD_ int filetimer_open_default_(double wait)
{
    filetimer_client *client = &filetimer_shared_abi1.client;
    const int saved = errno, pid = (int)getpid();
    filetimer_patience_ patience;
    int64_t give_up_us = 0;
    uint64_t seen;
    int result = 0;
    patience.wait_us = filetimer_to_us_(wait >= 0 ? wait : (double)FILETIMER_WAIT_SECONDS);
    patience.until_us = INT64_MAX;
    while (result == 0 && !filetimer_is_settled_(seen = FILETIMER_LOAD_(&client->state_))) {
        if (filetimer_take_on_(&client->state_, seen, pid))
            filetimer_set_up_and_publish_(client, NULL, SIGKILL, 0);
        else
            result = filetimer_wait_(-1, patience, &give_up_us);
    }
    errno = saved;
    return result;
}

FILETIMER_API filetimer_patience_ filetimer_patience_for_(const filetimer_client *client,
                                                          double wait)
{
    const int64_t us = filetimer_to_us_(wait);
    filetimer_patience_ patience;
    patience.wait_us = us >= 0 ? us : client->wait_us_;
    patience.until_us = INT64_MAX;
    return patience;
}

/* 1: *client is a client to send with; 0: not configured; < 0: -EAGAIN. */
FILETIMER_THIN_ int filetimer_pick_(filetimer_client **client, double wait)
{
    const int is_default = *client == NULL;
    uint64_t state;
    int error;
    if (is_default)
        *client = &filetimer_shared_abi1.client;
    state = FILETIMER_LOAD_(&(*client)->state_);
    if (FILETIMER_LIKELY_(state == FILETIMER_DONE_))
        return 1;
    if (!is_default || state == FILETIMER_VOID_)
        return 0;
    error = filetimer_open_default_(wait);
    return error != 0 ? error : FILETIMER_LOAD_(&(*client)->state_) == FILETIMER_DONE_;
}

FILETIMER_API int filetimer_configure(const char *path, int signum, unsigned flags)
{
    filetimer_client *client = &filetimer_shared_abi1.client;
    const int saved = errno;
    const uint64_t seen = FILETIMER_LOAD_(&client->state_);
    int result = -EBUSY;
    if (!filetimer_is_settled_(seen) && filetimer_take_on_(&client->state_, seen, (int)getpid()))
        result = filetimer_set_up_and_publish_(client, path, signum, flags);
    errno = saved;
    return result;
}

FILETIMER_API filetimer_client *filetimer_default(void)
{
    filetimer_client *client = NULL;
    filetimer_pick_(&client, FILETIMER_DEFAULT_WAIT);
    return client;
}

FILETIMER_API int filetimer_configured(filetimer_client *client)
{
    return filetimer_pick_(&client, 0) > 0;
}

FILETIMER_API void filetimer_set_wait(filetimer_client *client, double seconds)
{
    const int64_t us = filetimer_to_us_(seconds);
    if (filetimer_pick_(&client, FILETIMER_DEFAULT_WAIT) > 0)
        client->wait_us_ = us >= 0 ? us : filetimer_to_us_(FILETIMER_WAIT_SECONDS);
}

FILETIMER_API int filetimer_set_attributes(filetimer_client *client,
                                           const filetimer_attributes *attributes)
{
    const int usable = filetimer_pick_(&client, FILETIMER_DEFAULT_WAIT);
    if (usable <= 0)
        return usable;
    if (attributes != NULL)
        client->attributes_ = *attributes;
    else
        client->attributes_.length_ = client->attributes_.count_ = 0;
    return 1;
}

FILETIMER_API void filetimer_close(filetimer_client *client)
{
    const int saved = errno;
    filetimer_process_ spare;
    if (filetimer_pick_(&client, FILETIMER_DEFAULT_WAIT) > 0) {
        const uint64_t identity = filetimer_process_now_(&spare)->self.identity;
        if (FILETIMER_LOAD_(&client->owner_) != identity)
            filetimer_move_in_(client, identity);
        FILETIMER_STORE_(&client->state_, (uint64_t)FILETIMER_VOID_);
        if (client->fd_ >= 0)
            close(client->fd_);
        client->fd_ = -1;
    }
    errno = saved;
}

/* --------------------------------------------------------- Acquire, release */

/* When a timer expires, in microseconds; negative `after_us`: never a valid time. */
typedef struct filetimer_due_ {
    int64_t after_us;
    int64_t deadline_us;   /* CLOCK_MONOTONIC */
    int64_t expiration_us; /* CLOCK_REALTIME */
} filetimer_due_;

FILETIMER_HOT_ filetimer_due_ filetimer_due_in_(double after)
{
    filetimer_due_ due;
    due.after_us = filetimer_to_us_(after);
    due.deadline_us = filetimer_clock_us_(CLOCK_MONOTONIC) + due.after_us;
    due.expiration_us = filetimer_clock_us_(CLOCK_REALTIME) + due.after_us;
    return due;
}

/* Send an acquire. */
FILETIMER_HOT_ int filetimer_arm_(filetimer_client *client, filetimer_process_ *process,
                                 const char *scope, size_t length, filetimer_due_ due,
                                 double wait, int64_t token,
                                 const filetimer_attributes *attributes)
{
    filetimer_patience_ patience = filetimer_patience_for_(client, wait);
    filetimer_line_ line;
    int result;

    if (due.after_us < 0 || scope == NULL || length == 0)
        return -EINVAL; /* SPEC R-11 */
    if (patience.wait_us > due.after_us)
        patience.wait_us = due.after_us;
    result = filetimer_encode_acquire_(&line, &process->self, scope, length, due.expiration_us,
                                       client->signal_, due.deadline_us, token);
    if (attributes == NULL)
        attributes = &client->attributes_;
    if (result > 0 && attributes->length_ > 0)
        result = filetimer_add_attributes_(&line, attributes);
    if (result < 0)
        return result;
    return filetimer_send_(client, &line, process->self.identity, patience);
}

FILETIMER_HOT_ int filetimer_disarm_(filetimer_client *client, const filetimer_process_ *process,
                                    const char *scope, size_t length, int64_t token,
                                    filetimer_patience_ patience)
{
    filetimer_line_ line;
    int result;
    if (scope == NULL || length == 0)
        return -EINVAL;
    result = filetimer_encode_release_(&line, &process->self, scope, length, token);
    if (result < 0)
        return result;
    return filetimer_send_(client, &line, process->self.identity, patience);
}

FILETIMER_HOT_ int filetimer_acquire_n(filetimer_client *client, const char *scope, size_t length,
                                      double after, double wait)
{
    filetimer_process_ spare;
    const int usable = filetimer_pick_(&client, wait);
    if (usable <= 0)
        return usable;
    return filetimer_arm_(client, filetimer_process_now_(&spare), scope, length,
                          filetimer_due_in_(after), wait, -1, NULL);
}

FILETIMER_HOT_ int filetimer_release_n(filetimer_client *client, const char *scope, size_t length,
                                      double wait)
{
    filetimer_process_ spare;
    const int usable = filetimer_pick_(&client, wait);
    if (usable <= 0)
        return usable;
    return filetimer_disarm_(client, filetimer_process_now_(&spare), scope, length, -1,
                             filetimer_patience_for_(client, wait));
}

/* ------------------------------------------------------------------ Handles */

/* Arm the handle's timer, anew or for the first time. */
FILETIMER_HOT_ int filetimer_arm_handle_(filetimer_handle *handle, filetimer_process_ *process,
                                        double after, double wait)
{
    const filetimer_due_ due = filetimer_due_in_(after);
    const int result =
        filetimer_arm_(handle->client, process, handle->scope, handle->scope_length, due, wait,
                       handle->token, handle->attributes);
    if (result > 0) {
        handle->deadline_us = due.deadline_us;
        handle->armed = 1;
    }
    handle->error = result < 0 ? result : 0;
    return result;
}

FILETIMER_APART_ int filetimer_begin_configured_(filetimer_handle *handle,
                                                 filetimer_client *client, const char *scope,
                                                 size_t length, double after, double wait,
                                                 const filetimer_attributes *attributes)
{
    filetimer_process_ spare, *process = filetimer_process_now_(&spare);
    handle->client = client;
    handle->scope = scope;
    handle->scope_length = length;
    handle->attributes = attributes;
    handle->owner = process->self.identity;
    handle->token = filetimer_new_token_(process);
    handle->deadline_us = 0;
    return filetimer_arm_handle_(handle, process, after, wait);
}

FILETIMER_THIN_ int filetimer_begin_with_n_(filetimer_handle *handle, filetimer_client *client,
                                            const char *scope, size_t length, double after,
                                            double wait, const filetimer_attributes *attributes)
{
    const int usable = filetimer_pick_(&client, wait);
    handle->client = NULL;
    handle->armed = 0;
    handle->error = usable < 0 ? usable : 0;
    return usable > 0 ? filetimer_begin_configured_(handle, client, scope, length, after, wait,
                                                    attributes)
                      : usable;
}

FILETIMER_THIN_ int filetimer_begin_n(filetimer_handle *handle, filetimer_client *client,
                                     const char *scope, size_t length, double after, double wait)
{
    return filetimer_begin_with_n_(handle, client, scope, length, after, wait, NULL);
}

FILETIMER_API int filetimer_extend_(filetimer_handle *handle, double after, double wait)
{
    filetimer_process_ spare, *process;
    if (handle->client == NULL)
        return 0;
    process = filetimer_process_now_(&spare);
    if (handle->owner != process->self.identity)
        return handle->error = -ECHILD; /* SPEC C-6 */
    return filetimer_arm_handle_(handle, process, after, wait);
}

/* SPEC C-1: `wait_us` bounds what waits, and so does the timer itself. */
FILETIMER_APART_ int filetimer_end_armed_(filetimer_handle *handle, int64_t wait_us)
{
    filetimer_process_ spare, *process = filetimer_process_now_(&spare);
    filetimer_patience_ patience;
    int result;
    if (handle->owner != process->self.identity)
        return handle->error = -ECHILD; /* SPEC C-6 */
    patience.wait_us = wait_us;
    patience.until_us = handle->deadline_us;
    result = filetimer_disarm_(handle->client, process, handle->scope, handle->scope_length,
                               handle->token, patience);
    if (result > 0)
        handle->armed = 0;
    handle->error = result < 0 ? result : 0;
    return result;
}

FILETIMER_API int filetimer_extend(filetimer_handle *handle, double after)
{
    return filetimer_extend_(handle, after, FILETIMER_DEFAULT_WAIT);
}

FILETIMER_THIN_ int filetimer_end(filetimer_handle *handle)
{
    return handle->armed ? filetimer_end_armed_(handle, INT64_MAX / 2) : 0;
}

/* ---------------------------------------------------------------- Shorthands */

FILETIMER_THIN_ size_t filetimer_length_(const char *scope)
{
    return scope != NULL ? strlen(scope) : 0;
}

FILETIMER_API int filetimer_acquire(filetimer_client *client, const char *scope, double after)
{
    return filetimer_acquire_n(client, scope, filetimer_length_(scope), after,
                               FILETIMER_DEFAULT_WAIT);
}

FILETIMER_API int filetimer_release(filetimer_client *client, const char *scope)
{
    return filetimer_release_n(client, scope, filetimer_length_(scope), FILETIMER_DEFAULT_WAIT);
}

FILETIMER_THIN_ int filetimer_begin(filetimer_handle *handle, filetimer_client *client,
                                   const char *scope, double after)
{
    return filetimer_begin_n(handle, client, scope, filetimer_length_(scope), after,
                             FILETIMER_DEFAULT_WAIT);
}

FILETIMER_API int filetimer_begin_with(filetimer_handle *handle, filetimer_client *client,
                                       const char *scope, double after,
                                       const filetimer_attributes *attributes)
{
    return filetimer_begin_with_n_(handle, client, scope, filetimer_length_(scope), after,
                                   FILETIMER_DEFAULT_WAIT, attributes);
}

FILETIMER_API int filetimer_try_acquire(filetimer_client *client, const char *scope, double after)
{
    return filetimer_acquire_n(client, scope, filetimer_length_(scope), after, 0);
}

FILETIMER_API int filetimer_try_release(filetimer_client *client, const char *scope)
{
    return filetimer_release_n(client, scope, filetimer_length_(scope), 0);
}

FILETIMER_API int filetimer_try_begin(filetimer_handle *handle, filetimer_client *client,
                                      const char *scope, double after)
{
    return filetimer_begin_n(handle, client, scope, filetimer_length_(scope), after, 0);
}

FILETIMER_API int filetimer_try_extend(filetimer_handle *handle, double after)
{
    return filetimer_extend_(handle, after, 0);
}

FILETIMER_API int filetimer_try_end(filetimer_handle *handle)
{
    return handle->armed ? filetimer_end_armed_(handle, 0) : 0;
}

#endif /* FILETIMER_DISABLE */

FILETIMER_THIN_ filetimer_handle *filetimer_begun_(filetimer_handle *handle,
                                                  filetimer_client *client, const char *scope,
                                                  double after)
{
    filetimer_begin(handle, client, scope, after);
    return handle;
}

FILETIMER_THIN_ void filetimer_cleanup_(filetimer_handle *handle)
{
    filetimer_end(handle);
}

#if defined(__cplusplus)
} /* inline namespace */
#endif

#endif /* FILETIMER_H */
