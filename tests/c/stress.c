/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Many writers at once; who reads and judges is the Python test beside this file.
 *
 *     stress pairs FIFO PROCESSES THREADS PAIRS   begin and end, PAIRS times in each thread
 *     stress hammer FIFO          until end of file on stdin; says "sent" or "errors" at
 *                                 every change, and at last how it went, as JSON
 *     stress files FIFO DIR       threads that send, and threads that write ordinary
 *                                 files, until end of file on stdin
 */
#include <filetimer.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static filetimer_client client;
static int pairs;

static void *send_pairs(void *name)
{
    int i;
    for (i = 0; i < pairs; i++) {
        filetimer_handle timer;
        if (filetimer_begin(&timer, &client, (const char *)name, 600) != 1 ||
            filetimer_end(&timer) != 1)
            exit(3);
    }
    return NULL;
}

static void run_threads(int count)
{
    static char names[64][16];
    pthread_t threads[64];
    int i;
    for (i = 0; i < count; i++) {
        snprintf(names[i], sizeof names[i], "thread-%d", i);
        if (pthread_create(&threads[i], NULL, send_pairs, names[i]) != 0)
            exit(4);
    }
    for (i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static int run_processes(int processes, int threads)
{
    int i, status, failed = 0;
    for (i = 0; i < processes; i++)
        if (fork() == 0) {
            run_threads(threads);
            _exit(0);
        }
    while (wait(&status) > 0)
        failed |= status;
    return failed != 0;
}

static int told_to_stop(void)
{
    struct pollfd in;
    in.fd = STDIN_FILENO;
    in.events = POLLIN;
    return poll(&in, 1, 0) != 0;
}

/* Every call's result is one of: sent, or an error. When do they change? */
static void hammer(void)
{
    long sent = 0, errors = 0;
    int was_sent = -1, last_error = 0, i;
    while (!told_to_stop()) {
        for (i = 0; i < 200; i++) {
            const int result = i % 2 ? filetimer_release(&client, "hammer")
                                     : filetimer_acquire(&client, "hammer", 600);
            if (result == 1) {
                sent++;
            } else {
                errors++;
                last_error = -result;
            }
            if ((result == 1) != was_sent) {
                was_sent = result == 1;
                puts(was_sent ? "sent" : "errors");
                fflush(stdout);
            }
        }
    }
    printf("{\"sent\": %ld, \"errors\": %ld, \"last_error\": %d}\n", sent, errors, last_error);
}

static int stop;
static long sent, failed;

static void *send_until_stopped(void *unused)
{
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
        filetimer_handle timer;
        const int ok = filetimer_try_begin(&timer, &client, "files", 600) == 1;
        __atomic_fetch_add(ok ? &sent : &failed, 1, __ATOMIC_RELAXED);
        filetimer_try_end(&timer);
    }
    return unused;
}

/* What a training process does beside: checkpoints, logs, sockets that take and
 * give back descriptor numbers all the time. */
static void *write_files(void *directory)
{
    static int threads;
    const int me = __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED);
    char path[4096];
    int i;
    for (i = 0; !__atomic_load_n(&stop, __ATOMIC_ACQUIRE); i++) {
        int fd;
        snprintf(path, sizeof path, "%s/%d-%d", (const char *)directory, me, i % 500);
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        if (fd < 0 || write(fd, "ordinary\n", 9) != 9 || write(fd, "ordinary\n", 9) != 9)
            exit(5);
        close(fd);
    }
    return NULL;
}

static void files(char *directory)
{
    pthread_t threads[6];
    int i;
    for (i = 0; i < 6; i++)
        if (pthread_create(&threads[i], NULL, i < 3 ? send_until_stopped : write_files,
                           directory) != 0)
            exit(4);
    while (!told_to_stop())
        poll(NULL, 0, 10);
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    for (i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    printf("{\"sent\": %ld, \"failed\": %ld}\n", sent, failed);
}

int main(int argc, char **argv)
{
    const unsigned flags = getenv("MASK_SIGPIPE") != NULL ? FILETIMER_MASK_SIGPIPE : 0;
    if (argc < 3 || filetimer_init(&client, argv[2], SIGKILL, flags) != 1)
        return 1;
    filetimer_set_wait(&client, 60);
    if (strcmp(argv[1], "pairs") == 0 && argc == 6) {
        pairs = atoi(argv[5]);
        return run_processes(atoi(argv[3]), atoi(argv[4]));
    }
    if (strcmp(argv[1], "hammer") == 0)
        hammer();
    else if (strcmp(argv[1], "files") == 0 && argc == 4)
        files(argv[3]);
    else
        return 2;
    return 0;
}
