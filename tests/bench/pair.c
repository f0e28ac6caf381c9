/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a timer costs in C: an acquire and its release, beside two write(2) of
 * the same bytes into the same FIFO, which is the least that any client pays.
 *
 *     pair [rounds]      one line of JSON: medians over alternating bursts
 *     pair --count N WAY N pairs and nothing else, for callgrind; WAY is nosignal (the
 *                        fastest that the kernel has) or masked
 *
 * The pipe is drained between bursts, outside the measured time, so that no
 * reader has to be woken: a woken reader costs more than all the rest, and both
 * sides the same.
 */
#include <filetimer.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Short bursts, alternating: what disturbs one side soon disturbs the other. */
enum { BURST = 50, MOST_ROUNDS = 100001 };

static int reader;

static void drain(void)
{
    static char sink[1 << 16];
    while (read(reader, sink, sizeof sink) > 0)
        ;
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double *values, int n, double q)
{
    qsort(values, (size_t)n, sizeof *values, ascending);
    return values[(int)(q * (n - 1))];
}

static char acquire[FILETIMER_RECORD_MAX], release[FILETIMER_RECORD_MAX];
static size_t acquire_length, release_length;
static const char scope[] = "training/loop.py#120";

/* The very bytes that a handle sends */
static void capture(filetimer_client *client)
{
    static char both[2 * FILETIMER_RECORD_MAX];
    filetimer_handle timer;
    char *end;
    drain();
    filetimer_begin(&timer, client, scope, 60);
    filetimer_end(&timer);
    if (read(reader, both, sizeof both) <= 0 || (end = strchr(both, '\n')) == NULL)
        exit(1);
    acquire_length = (size_t)(end + 1 - both);
    release_length = strlen(end + 1);
    memcpy(acquire, both, acquire_length);
    memcpy(release, end + 1, release_length);
}

static double time_writes(int fd)
{
    const double start = now_ns();
    double took;
    int i;
    for (i = 0; i < BURST; i++)
        if (write(fd, acquire, acquire_length) < 0 || write(fd, release, release_length) < 0)
            exit(1);
    took = now_ns() - start;
    drain();
    return took / BURST;
}

static double time_pairs(filetimer_client *client)
{
    const double start = now_ns();
    double took;
    int i;
    for (i = 0; i < BURST; i++) {
        filetimer_handle timer;
        if (filetimer_begin(&timer, client, scope, 60) <= 0 || filetimer_end(&timer) <= 0)
            exit(1);
    }
    took = now_ns() - start;
    drain();
    return took / BURST;
}

/* The least of many tries: what is longer was disturbed. */
static double time_unconfigured(void)
{
    const int n = 50000;
    double least = 1e9, least_empty = 1e9;
    int i, try;
    for (try = 0; try < 40; try++) {
        double start = now_ns(), took;
        for (i = 0; i < n; i++)
            __asm__ volatile("" ::: "memory");
        took = now_ns() - start;
        least_empty = took < least_empty ? took : least_empty;
        start = now_ns();
        for (i = 0; i < n; i++)
            FILETIMER_EXPIRES(60)
                __asm__ volatile("" ::: "memory");
        took = now_ns() - start;
        least = took < least ? took : least;
    }
    return (least - least_empty) / n;
}

int main(int argc, char **argv)
{
    static double writes[MOST_ROUNDS], pairs[MOST_ROUNDS], masked[MOST_ROUNDS], ratio[MOST_ROUNDS],
        masked_ratio[MOST_ROUNDS];
    static filetimer_client client, by_mask;
    char path[] = "/tmp/filetimer-pair-XXXXXX", fifo[64];
    int rounds = argc == 2 ? atoi(argv[1]) : 4001, fd, i;

    if (rounds < 1 || rounds > MOST_ROUNDS || mkdtemp(path) == NULL)
        return 1;
    snprintf(fifo, sizeof fifo, "%s/fifo", path);
    if (mkfifo(fifo, 0600) != 0 || (reader = open(fifo, O_RDWR | O_NONBLOCK)) < 0 ||
        fcntl(reader, F_SETPIPE_SZ, 1 << 20) < 0 || (fd = open(fifo, O_WRONLY | O_NONBLOCK)) < 0)
        return 1;
    unsetenv("FILETIMER_PATH");
    unsetenv("TORCHELASTIC_TIMER_FILE");
    if (filetimer_init(&client, fifo, SIGKILL, 0) <= 0 ||
        filetimer_init(&by_mask, fifo, SIGKILL, FILETIMER_MASK_SIGPIPE) <= 0)
        return 1;

    if (argc == 4) { /* --count N WAY */
        const int count = atoi(argv[2]);
        filetimer_client *one = strcmp(argv[3], "masked") == 0 ? &by_mask : &client;
        for (i = 0; i < count; i++) {
            filetimer_handle timer;
            filetimer_begin(&timer, one, scope, 60);
            filetimer_end(&timer);
            if (i % BURST == BURST - 1)
                drain();
        }
    } else {
        capture(&client);
        for (i = 0; i < rounds; i++) {
            writes[i] = time_writes(fd);
            pairs[i] = time_pairs(&client);
            masked[i] = time_pairs(&by_mask);
            ratio[i] = pairs[i] / writes[i];
            masked_ratio[i] = masked[i] / writes[i];
        }
        printf("{\"bytes\": %zu, \"rounds\": %d, \"two_writes_ns\": %.1f, \"pair_ns\": %.1f, "
               "\"pair_p10_ns\": %.1f, \"pair_p90_ns\": %.1f, \"ratio\": %.3f, "
               "\"masked_pair_ns\": %.1f, \"masked_ratio\": %.3f, \"nosignal\": %s, "
               "\"unconfigured_pair_ns\": %.2f}\n",
               acquire_length + release_length, rounds, quantile(writes, rounds, .5),
               quantile(pairs, rounds, .5), quantile(pairs, rounds, .1),
               quantile(pairs, rounds, .9), quantile(ratio, rounds, .5),
               quantile(masked, rounds, .5), quantile(masked_ratio, rounds, .5),
               client.flags_ & FILETIMER_MASK_SIGPIPE ? "false" : "true", time_unconfigured());
    }
    unlink(fifo);
    rmdir(path);
    return 0;
}
