/* The driver of filetimer.h (protocol/driver.md): an encoder and a client.
 *
 * JSON is jansson's (Debian: libjansson-dev), for this test only. cpp_driver.cpp
 * includes this file, and brings the client and the guard of filetimer.hpp.
 *
 *     cc -std=gnu99 -I c/include c_driver.c -ljansson -lm -lpthread
 */
#include <filetimer.h>

#include <jansson.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>

static volatile int in_handler; /* SPEC C-1: then nothing waits */

/* ------------------------------------------------------- client and guards */

#ifndef SUBJECT
#define LANGUAGE "C"
#define SUBJECT "filetimer.h"

static filetimer_client the_client;

static filetimer_client *client(void)
{
    return &the_client;
}

static int client_open(const char *path)
{
    filetimer_close(&the_client);
    return filetimer_init(&the_client, path, SIGKILL, 0);
}

enum { GUARDS_MAX = 8 };
static struct {
    char name[32];
    char scope[512]; /* a handle does not copy it */
    filetimer_handle handle;
} guards[GUARDS_MAX];

static int guard_slot(const char *name)
{
    int slot = 0;
    while (slot < GUARDS_MAX - 1 && guards[slot].name[0] && strcmp(guards[slot].name, name) != 0)
        slot++;
    snprintf(guards[slot].name, sizeof guards[slot].name, "%s", name);
    return slot;
}

static int guard_enter(const char *name, const char *scope, double after)
{
    int slot = guard_slot(name);
    snprintf(guards[slot].scope, sizeof guards[slot].scope, "%s", scope);
    return in_handler
               ? filetimer_try_begin(&guards[slot].handle, client(), guards[slot].scope, after)
               : filetimer_begin(&guards[slot].handle, client(), guards[slot].scope, after);
}

static int guard_leave(const char *name)
{
    filetimer_handle *handle = &guards[guard_slot(name)].handle;
    return in_handler ? filetimer_try_end(handle) : filetimer_end(handle);
}
#endif

/* ----------------------------------------------------------------- replies */

static json_t *acquired(int result)
{
    if (result < 0)
        return json_pack("{s:s}", "error", strerror(-result));
    if (result == 0)
        return json_pack("{s:b, s:s}", "ok", 0, "why", "the client is not configured");
    return json_pack("{s:b}", "ok", 1);
}

/* SPEC C-2: what is not released is told, and disturbs nobody. */
static json_t *released(int result)
{
    if (result < 0)
        return json_pack("{s:b, s:s}", "ok", 0, "why", strerror(-result));
    return json_pack("{s:b}", "ok", 1);
}

static const char *text(json_t *request, const char *name)
{
    const char *value = json_string_value(json_object_get(request, name));
    return value ? value : "";
}

static double number(json_t *request, const char *name)
{
    return json_number_value(json_object_get(request, name));
}

/* ------------------------------------------------------------------- codec */

static int64_t microseconds(json_t *record, const char *name)
{
    json_t *value = json_object_get(record, name);
    return value ? (int64_t)llround(json_number_value(value) * 1e6) : -1;
}

static int64_t whole(json_t *record, const char *name)
{
    json_t *value = json_object_get(record, name);
    return value ? (int64_t)json_integer_value(value) : -1;
}

static json_t *encode(json_t *fields)
{
    filetimer_record record;
    char line[8192];
    char hex[2 * sizeof line + 1];
    json_t *scope = json_object_get(fields, "scope_id");
    record.version = (int)whole(fields, "version");
    record.pid = (int)whole(fields, "pid");
    record.scope = json_string_value(scope);
    record.scope_length = json_string_length(scope);
    record.expiration_us = microseconds(fields, "expiration_time");
    record.signal = (int)whole(fields, "signal");
    record.deadline_us = microseconds(fields, "deadline");
    record.start_time = whole(fields, "start_time");
    record.pid_ns = whole(fields, "pid_ns");
    record.token = whole(fields, "token");
    int length = filetimer_encode(line, sizeof line, &record);
    if (length < 0)
        return json_pack("{s:s}", "error", strerror(-length));
    for (int i = 0; i < length; i++)
        snprintf(hex + 2 * i, 3, "%02x", (unsigned char)line[i]);
    return json_pack("{s:s}", "hex", hex);
}

/* ------------------------------------------------------------------ the ops */

static json_t *answer(json_t *request);

static json_t *answer_all(json_t *requests)
{
    json_t *replies = json_array(), *one;
    size_t i;
    json_array_foreach(requests, i, one) json_array_append_new(replies, answer(one));
    return replies;
}

static json_t *open_client(json_t *request)
{
    int result = client_open(json_string_value(json_object_get(request, "path")));
    /* A server that is not there yet is looked for by each call. */
    return acquired(result == -ENXIO || result == -EPIPE ? 1 : result);
}

static json_t *acquire(json_t *request)
{
    const char *scope = text(request, "scope_id");
    double after = number(request, "after");
    return acquired(in_handler ? filetimer_try_acquire(client(), scope, after)
                               : filetimer_acquire(client(), scope, after));
}

static json_t *release(json_t *request)
{
    const char *scope = text(request, "scope_id");
    return released(in_handler ? filetimer_try_release(client(), scope)
                               : filetimer_release(client(), scope));
}

static json_t *forked(json_t *requests)
{
    int ends[2];
    if (pipe(ends) < 0)
        return acquired(-errno);
    pid_t child = fork();
    if (child == 0) {
        json_dumpfd(answer_all(requests), ends[1], 0);
        _exit(0);
    }
    close(ends[1]);
    json_t *replies = json_loadfd(ends[0], 0, NULL);
    close(ends[0]);
    waitpid(child, NULL, 0);
    return json_pack("{s:b, s:i, s:o}", "ok", 1, "pid", (int)child, "replies", replies);
}

static void *in_thread(void *requests)
{
    return answer_all((json_t *)requests);
}

static json_t *threaded(json_t *requests)
{
    pthread_t thread;
    void *replies;
    if (pthread_create(&thread, NULL, in_thread, requests) != 0)
        return acquired(-EAGAIN);
    pthread_join(thread, &replies);
    return json_pack("{s:b, s:o}", "ok", 1, "replies", (json_t *)replies);
}

static json_t *handler_requests, *handler_replies;

static void handle(int number_of_signal)
{
    (void)number_of_signal;
    in_handler = 1;
    handler_replies = answer_all(handler_requests); /* raise() comes when malloc is at rest */
    in_handler = 0;
}

static json_t *handled(json_t *requests)
{
    handler_requests = requests;
    signal(SIGUSR1, handle);
    raise(SIGUSR1);
    return json_pack("{s:b, s:o}", "ok", 1, "replies", handler_replies);
}

/* ------------------------------------------------------------------ driver */

static json_t *hello(void)
{
    json_t *skips = json_pack("{s:s}", "decode", "a client reads no records");
#ifdef NO_HANDLER
    json_object_set_new(skips, "handler", json_string(NO_HANDLER));
#endif
    return json_pack("{s:s, s:s, s:[i], s:[s,s], s:i, s:o}", "name", SUBJECT, "language", LANGUAGE,
                     "versions", 2, "roles", "codec", "client", "pid", (int)getpid(), "skips",
                     skips);
}

static json_t *answer(json_t *request)
{
    const char *op = text(request, "op");
    json_t *requests = json_object_get(request, "do");
    if (!strcmp(op, "hello"))
        return hello();
    if (!strcmp(op, "noop"))
        return acquired(1);
    if (!strcmp(op, "encode"))
        return encode(json_object_get(request, "record"));
    if (!strcmp(op, "open"))
        return open_client(request);
    if (!strcmp(op, "acquire"))
        return acquire(request);
    if (!strcmp(op, "release"))
        return release(request);
    if (!strcmp(op, "enter"))
        return acquired(guard_enter(text(request, "guard"), text(request, "scope_id"),
                                    number(request, "after")));
    if (!strcmp(op, "leave"))
        return released(guard_leave(text(request, "guard")));
    if (!strcmp(op, "fork"))
        return forked(requests);
    if (!strcmp(op, "thread"))
        return threaded(requests);
    if (!strcmp(op, "handler"))
        return handled(requests);
    if (!strcmp(op, "close_fd"))
        return acquired(close((int)number(request, "fd")) < 0 ? -errno : 1);
    return json_pack("{s:s}", "unsupported", op);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;
    setlocale(LC_ALL, "");
    while (getline(&line, &size, stdin) > 0) {
        json_t *request = json_loads(line, JSON_ALLOW_NUL, NULL);
        json_t *reply = answer(request);
        json_dumpf(reply, stdout, JSON_ENSURE_ASCII);
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        json_decref(request);
    }
    free(line);
    return 0;
}
