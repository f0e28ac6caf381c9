/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What filetimer.NativeTimerClient calls: filetimer.h, cut to the measure of a
 * foreign function call. Each function takes as few arguments as can be, for each
 * one costs about as much as a clock.
 *
 * The quick_ functions never wait, and are called with the GIL held: to give it up
 * costs little, but beside a busy Python thread getting it back takes milliseconds.
 * All others may wait, and give it up.
 *
 * Functions of filetimer.h whose names end in an underscore are private; this file
 * is in the same house, and is compiled with the very header.
 */
#include <filetimer.h>

#include <float.h>
#include <sys/file.h>

/* cffi wraps each call in these two, in functions called _cffi_f_NAME. Should it one
 * day use other names or macros, all calls give up the GIL: slower, not wrong. */
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS                                                        \
    {                                                                                 \
        PyThreadState *native_thread =                                                \
            native_is_quick(__func__, sizeof __func__) ? NULL : PyEval_SaveThread();
#define Py_END_ALLOW_THREADS                  \
        if (native_thread != NULL)            \
            PyEval_RestoreThread(native_thread); \
    }

static inline int native_is_quick(const char *function, size_t size)
{
    static const char prefix[] = "_cffi_f_quick_";
    return size > sizeof prefix && memcmp(function, prefix, sizeof prefix - 1) == 0;
}

/* A scope of one client, encoded once. */
typedef struct native_scope {
    filetimer_client *client;
    int64_t deadline_us; /* of its plain timer; 0: it has none that we know of */
    filetimer_attributes attributes;
    size_t length;
    char text[]; /* UTF-8 */
} native_scope;

/* `text` is a JSON object that was checked, without its braces. */
static void set_attributes(native_scope *scope, const char *text, size_t length)
{
    memcpy(scope->attributes.text_, text, length);
    scope->attributes.length_ = (unsigned)length;
}

static int native_is_finite(double x)
{
    return x >= -DBL_MAX && x <= DBL_MAX;
}

/* A time that has passed expires at once: the header takes no negative `after`. */
static double native_at_once(double after)
{
    return after > 0 ? after : 0;
}

/* `expiration_time` is in Unix seconds, as torch's clients have it. */
static filetimer_due_ native_due_at(double expiration_time)
{
    const int64_t now = filetimer_clock_us_(CLOCK_REALTIME);
    filetimer_due_ due;
    due.after_us = filetimer_to_us_(native_at_once(expiration_time - (double)now / 1e6));
    due.deadline_us = filetimer_clock_us_(CLOCK_MONOTONIC) + due.after_us;
    due.expiration_us = now + due.after_us;
    return due;
}

static int acquire(native_scope *scope, double expiration_time, double wait)
{
    filetimer_process_ spare;
    filetimer_due_ due;
    int result;
    if (!native_is_finite(expiration_time) || expiration_time < 0)
        return -EINVAL;
    due = native_due_at(expiration_time);
    result = filetimer_arm_(scope->client, filetimer_process_now_(&spare), scope->text,
                            scope->length, due, wait, -1, &scope->attributes);
    if (result > 0)
        __atomic_store_n(&scope->deadline_us, due.deadline_us, __ATOMIC_RELAXED);
    return result;
}

static int release(native_scope *scope, double wait)
{
    const int result = filetimer_release_n(scope->client, scope->text, scope->length, wait);
    if (result > 0)
        __atomic_store_n(&scope->deadline_us, 0, __ATOMIC_RELAXED);
    return result;
}

static int begin(filetimer_handle *timer, native_scope *scope, double after, double wait)
{
    if (!native_is_finite(after))
        return -EINVAL;
    return filetimer_begin_with_n_(timer, scope->client, scope->text, scope->length,
                                   native_at_once(after), wait, &scope->attributes);
}

static int extend(filetimer_handle *timer, double after, double wait)
{
    if (!native_is_finite(after))
        return -EINVAL;
    return filetimer_extend_(timer, native_at_once(after), wait);
}

static int end(filetimer_handle *timer, double wait)
{
    return timer->armed ? filetimer_end_armed_(timer, filetimer_to_us_(wait)) : 0;
}

static int quick_acquire(native_scope *scope, double expiration_time)
{
    return acquire(scope, expiration_time, 0);
}

static int quick_release(native_scope *scope)
{
    return release(scope, 0);
}

static int quick_begin(filetimer_handle *timer, native_scope *scope, double after)
{
    return begin(timer, scope, after, 0);
}

static int quick_extend(filetimer_handle *timer, double after)
{
    return extend(timer, after, 0);
}

static int quick_end(filetimer_handle *timer)
{
    return end(timer, 0);
}

/* SPEC C-10: keep the pipe open between records, once its server holds the lock that tells it
 * from torch's (SPEC S-18). */
static void keep_open_if_locked(filetimer_client *client)
{
    struct stat file;
    const int fd = filetimer_open_(client, &file);
    if (fd < 0)
        return;
    /* Where the file system has no locks nothing is to be told from that. */
    if (flock(fd, LOCK_SH | LOCK_NB) != 0)
        __atomic_fetch_and(&client->flags_, ~FILETIMER_ONE_SHOT, __ATOMIC_RELAXED);
    close(fd);
}

/* Close the descriptor, and leave the client configured: the next timer opens another. */
static void close_pipe(filetimer_client *client)
{
    filetimer_process_ spare;
    const uint64_t identity = filetimer_process_now_(&spare)->self.identity;
    int fd;
    if (FILETIMER_LOAD_(&client->owner_) != identity)
        filetimer_move_in_(client, identity); /* a number that is not ours is not closed */
    fd = __atomic_exchange_n(&client->fd_, -1, __ATOMIC_ACQ_REL);
    if (fd >= 0)
        close(fd);
}
