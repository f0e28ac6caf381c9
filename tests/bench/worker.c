/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The workers of the benchmarks. Each waits for a line on its standard input before
 * it starts, answers in lines of numbers, and stays until that input ends.
 *
 *     worker victim PATH FLAGS TIMERS BYTES AFTER
 *         touches BYTES of memory, acquires TIMERS - 1 timers of an hour and one of
 *         AFTER seconds; tells its deadline (monotonic seconds), and waits for its end
 *     worker flood PATH FLAGS TIMERS RECORDS WRITERS
 *         WRITERS processes acquire TIMERS timers each, in scopes of their own, and
 *         after another line write RECORDS more records each, in pairs; tells when the
 *         first began and the last ended, and how many records were refused
 *     worker pace PATH FLAGS INTERVAL RECORDS
 *         writes a record every INTERVAL seconds; tells the median and the p99 of what a
 *         write took, in seconds
 *
 *     worker watch
 *         for each line PID: tells that it watches, and when that process has died
 *         (monotonic seconds)
 *     worker kill
 *         for each line PID MOMENT: is awake then, and kills that process, with nothing
 *         else to do: what a server can be compared with
 *
 * FLAGS are those of filetimer_init.
 */
#include <filetimer.h>

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#define HOUR 3600.0

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void await_line(void)
{
    char c;
    do {
        if (read(0, &c, 1) <= 0)
            exit(0); /* nobody is there any more */
    } while (c != '\n');
}

static filetimer_client client;

static long acquire_many(const char *prefix, long timers)
{
    char scope[64];
    long i, refused = 0;
    for (i = 0; i < timers; i++) {
        snprintf(scope, sizeof scope, "%s#%ld", prefix, i);
        refused += filetimer_acquire(&client, scope, HOUR) <= 0;
    }
    return refused;
}

static int victim(long timers, size_t bytes, double after)
{
    filetimer_handle timer;
    char *memory = bytes > 0 ? malloc(bytes) : NULL;
    if (bytes > 0 && memory == NULL)
        return 1;
    if (bytes > 0)
        memset(memory, 1, bytes);
    await_line();
    if (acquire_many("other", timers - 1) != 0 ||
        filetimer_begin(&timer, &client, "victim", after) <= 0)
        return 1;
    printf("%.6f\n", (double)timer.deadline_us / 1e6);
    fflush(stdout);
    await_line();
    return 0;
}

/* One writer: tells through `answers` when it has set up, and what came of it. It takes
 * one byte from `go` to start, and lives until `stay` ends, for its timers are to live. */
static void flood_one(int go, int stay, int answers, long timers, long records)
{
    double answer[3];
    char c;
    long i, refused = acquire_many("live", timers);
    if (write(answers, answer, sizeof answer) < 0 || read(go, &c, 1) != 1)
        exit(1);
    answer[0] = now();
    for (i = 0; i < records / 2; i++) {
        refused += filetimer_acquire(&client, "training/loop.py#120", HOUR) <= 0;
        refused += filetimer_release(&client, "training/loop.py#120") <= 0;
    }
    answer[1] = now();
    answer[2] = (double)refused;
    if (write(answers, answer, sizeof answer) < 0)
        exit(1);
    exit(read(stay, &c, 1) == 0 ? 0 : 1);
}

static int flood(long timers, long records, long writers)
{
    int go[2], stay[2], answers[2];
    double answer[3], first = 1e300, last = 0, refused = 0;
    long i;
    if (pipe(go) != 0 || pipe(stay) != 0 || pipe(answers) != 0)
        return 1;
    filetimer_set_wait(&client, 5.0);
    await_line();
    for (i = 0; i < writers; i++) {
        if (fork() == 0) {
            close(go[1]); /* else their ends would never be seen */
            close(stay[1]);
            flood_one(go[0], stay[0], answers[1], timers, records);
        }
    }
    for (i = 0; i < writers; i++)
        if (read(answers[0], answer, sizeof answer) != sizeof answer)
            return 1;
    printf("ready\n");
    fflush(stdout);
    await_line();
    for (i = 0; i < writers; i++)
        if (write(go[1], "", 1) != 1)
            return 1;
    for (i = 0; i < writers; i++) {
        if (read(answers[0], answer, sizeof answer) != sizeof answer)
            return 1;
        first = answer[0] < first ? answer[0] : first;
        last = answer[1] > last ? answer[1] : last;
        refused += answer[2];
    }
    printf("%.6f %.6f %.0f\n", first, last, refused);
    fflush(stdout);
    await_line();
    return 0;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sleeps where there is time to, and spins the rest: a timer of the kernel is late by 50 us. */
static void wait_until(double moment)
{
    const double left = moment - now();
    if (left > 300e-6) {
        struct timespec t;
        t.tv_sec = (time_t)(left - 200e-6);
        t.tv_nsec = (long)((left - 200e-6 - (double)t.tv_sec) * 1e9);
        nanosleep(&t, NULL);
    }
    while (now() < moment)
        ;
}

static int pace(double interval, long records)
{
    double *took = malloc((size_t)records * sizeof *took), next;
    long i;
    if (took == NULL)
        return 1;
    await_line();
    next = now();
    for (i = 0; i < records; i++) {
        double start;
        int result;
        wait_until(next += interval);
        start = now();
        result = i % 2 == 0 ? filetimer_acquire(&client, "pace", HOUR)
                            : filetimer_release(&client, "pace");
        took[i] = now() - start;
        if (result <= 0)
            return 1;
    }
    qsort(took, (size_t)records, sizeof *took, ascending);
    printf("%.9f %.9f\n", took[records / 2], took[records * 99 / 100]);
    fflush(stdout);
    await_line();
    return 0;
}

static int open_process(pid_t pid)
{
    const int fd = (int)syscall(434, pid, 0); /* pidfd_open, on every architecture */
    if (fd < 0)
        exit(1);
    return fd;
}

static int watch(void)
{
    long pid;
    while (scanf("%ld", &pid) == 1) {
        struct pollfd process = {open_process((pid_t)pid), POLLIN, 0};
        printf("watching\n");
        fflush(stdout);
        if (poll(&process, 1, 60000) != 1)
            return 1;
        printf("%.9f\n", now());
        fflush(stdout);
        close(process.fd);
    }
    return 0;
}

static int kill_in_time(void)
{
    long pid;
    double moment;
    while (scanf("%ld %lf", &pid, &moment) == 2) {
        const int process = open_process((pid_t)pid);
        wait_until(moment);
        if (syscall(424, process, SIGKILL, NULL, 0) != 0) /* pidfd_send_signal */
            return 1;
        close(process);
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "watch") == 0)
        return watch();
    if (strcmp(what, "kill") == 0)
        return kill_in_time();
    if (argc < 6 || filetimer_init(&client, argv[2], SIGKILL, (unsigned)atoi(argv[3])) <= 0)
        return 2;
    if (strcmp(what, "victim") == 0 && argc == 7)
        return victim(atol(argv[4]), (size_t)atoll(argv[5]), atof(argv[6]));
    if (strcmp(what, "flood") == 0 && argc == 7)
        return flood(atol(argv[4]), atol(argv[5]), atol(argv[6]));
    if (strcmp(what, "pace") == 0 && argc == 6)
        return pace(atof(argv[4]), atol(argv[5]));
    return 2;
}
